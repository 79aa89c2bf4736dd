"""Files that a fuzzer found: every verb ends in a listing or in one line, at once, and `check` says what is dangerous.

They lie beside the clone, in the folder that PARAMCTL_SHARED names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = os.environ.get("PARAMCTL_SHARED", "")
FOLDER = Path(SHARED, "hostile", "found")
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".md") if SHARED and FOLDER.is_dir() else []
VERBS = {
    "check": ("check", "{}"),
    "ls": ("ls", "{}"),
    "tree": ("tree", "{}"),
    "stats": ("stats", "{}"),
    "show": ("show", "{}", "**"),
    "set": ("set", "{}", "w = 0", "-o", "out"),
    "convert": ("convert", "{}", "--to", "safetensors", "--lossy", "-o", "out.safetensors"),
    "init": ("init", "{}", "--scheme", "zeros", "--seed", "1", "-o", "out"),
}
# What `check` must call dangerous: torch.load(weights_only=False) runs a program, or readers disagree.
DANGEROUS = {"01-frame-two-readings.pt", "03-tar-inside-legacy.pt", "04-crash-hides-danger.pt", "29-damaged-for-us-only.pt"}
MEMORY = 300 << 20  # bytes; drawing needs torch, which takes 220 MiB itself
TORCH = 400 << 20


# A process counts the memory of the one that started it, so that this small one stands between.
LAUNCHER = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run(tmp_path: Path, name: str, verb: str) -> tuple[int, str, int]:
    """Run a verb on a copy of a file; return the exit code, standard error and the peak of memory in bytes."""
    source, copy = FOLDER / name, tmp_path / name
    if source.is_dir():
        shutil.copytree(source, copy)
    else:
        shutil.copy(source, copy)
    line = [word.format(name) for word in VERBS[verb]]
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "paramctl", *line]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    code, peak = map(int, done.stdout.split())
    return code, done.stderr, peak * 1024


@pytest.mark.real
@pytest.mark.skipif(not FILES, reason="no files: PARAMCTL_SHARED names no folder with hostile/found")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", FILES or ["none"])
def test_a_verb_ends_at_once_in_a_listing_or_one_line(tmp_path: Path, name: str, verb: str) -> None:
    code, error, peak = run(tmp_path, name, verb)
    assert code in (0, 1, 2, 3), error
    assert "Traceback" not in error and "internal error" not in error
    assert peak <= (TORCH if verb in ("init", "set") else MEMORY)
    if verb == "check" and name in DANGEROUS:
        assert code == 1
