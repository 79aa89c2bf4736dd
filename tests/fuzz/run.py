"""Fuzz one target, or try inputs again.

    PYTHONPATH=tests python -m fuzz.run TARGET --seconds 60    fuzz it; the exit code is 1 if something was found
    PYTHONPATH=tests python -m fuzz.run TARGET FILE ...        try these files, or all in these folders, without atheris

Findings, and the inputs that reach something new, stay in the folder that PARAMCTL_FUZZ_FOLDER names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from fuzz import engine

if TYPE_CHECKING:
    from fuzz.rules import Finding

TESTS = Path(__file__).parents[1]
STARTS = 20  # of the fuzzer, which ends where one input hangs
GROWTH, MARGIN = (
    2,
    8192,
)  # an input is so many times as long as the longest seed, and so many bytes more: small ones are fast
FIRST_SECONDS = 600  # in which all is imported, and the seeds are made, however busy the machine is


def main() -> int:
    """Run the command line; the exit code says whether something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description="Fuzz one target, or try inputs again.")
    parser.add_argument("target")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--here", action="store_true", help="in this process, which ends with it")
    asked = parser.parse_args()
    if asked.files:
        return _replay(asked.target, asked.files)
    if asked.here:
        _fuzz_here(asked.target, asked.seconds)
    found = fuzz(asked.target, asked.seconds)
    _say("\n".join([*found, summary(asked.target)]))
    return int(bool(found))


def place(target: str) -> Path:
    """Return the folder of a target: its corpus, its findings and its report."""
    base = os.environ.get("PARAMCTL_FUZZ_FOLDER") or Path(tempfile.gettempdir(), "paramctl-fuzz")
    return Path(base, target)


def replay_line(target: str, file: Path) -> str:
    """Return the command that tries one input again."""
    return f"PYTHONPATH=tests python -m fuzz.run {target} {file}"


# --- a run, from outside -------------------------------------------------------------------------


def fuzz(target: str, seconds: float) -> list[str]:
    """Fuzz a target in processes of its own, and return what was found and holds in a process without atheris."""
    folder = place(target)
    (folder / "findings").mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)  # of an earlier run
    end = time.monotonic() + seconds
    for _ in range(STARTS):
        left = max(end - time.monotonic(), 1)
        ended = _python(target, "--here", "--seconds", f"{left}", timeout=left + FIRST_SECONDS + 2 * engine.HANGS)
        (folder / "log.txt").write_bytes(ended.stderr[-100_000:])
        if ended.returncode == 0:
            break
        if not [*_keep_hangs(folder)]:
            return [f"the fuzzer itself failed: {ended.stderr[-3000:].decode(errors='replace')}"]
    return [*_confirmed(target, folder / "findings")]


def _python(target: str, *args: str, timeout: float) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "fuzz.run", target, *args]
    paths = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, timeout=timeout, check=False
    )


def _keep_hangs(folder: Path) -> Iterator[Path]:
    """Move the inputs that ended the fuzzer to the findings."""
    for path in folder.glob(f"{engine.ENDED}*"):
        yield path.rename(folder / "findings" / f"{path.name}.bin")


def _confirmed(target: str, folder: Path) -> Iterator[str]:
    """Try each finding again where nothing slows it down; what does not hold is deleted."""
    for path in sorted(folder.glob("*.bin")):
        try:
            again = _python(target, str(path), timeout=FIRST_SECONDS + engine.HANGS)
        except subprocess.TimeoutExpired:
            yield f"{path.name} hangs\n  {replay_line(target, path)}"
            continue
        if again.returncode:
            text = again.stdout or again.stderr
            yield f"{text.decode(errors='replace')}\n  {replay_line(target, path)}"
        else:
            path.unlink()
            path.with_suffix(".txt").unlink(missing_ok=True)


def summary(target: str) -> str:
    """Return how far the last run came, as one line."""
    report = place(target) / "report.json"
    if not report.exists():
        return f"{target}: ended before its first report"
    executions = json.loads(report.read_text())["executions"]
    return f"{target}: {executions:,} executions, {len([*(place(target) / 'corpus').iterdir()]):,} inputs kept"


# --- inputs tried again --------------------------------------------------------------------------


def _replay(name: str, paths: list[Path]) -> int:
    _prepare()
    found = 0
    for path in _files(paths):
        finding = judged(name, path.read_bytes())
        if finding is not None:
            found += 1
            _say(f"{path.name}: {finding.kind}\n{finding.report}")
    return int(found > 0)


def _prepare(with_atheris: bool = False) -> None:
    """Import and use whatever is imported or used late, so that only a file can be to blame for more."""
    with engine.instrumented() if with_atheris else nullcontext():
        engine.import_all()
    from fuzz.targets import warm_up

    warm_up()


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def judged(name: str, data: bytes) -> Finding | None:
    """Return the rule that an input breaks in a target, or None."""
    from fuzz.rules import judge
    from fuzz.targets import TARGETS

    return judge(TARGETS[name].steps, data)


def reduced(name: str, data: bytes, tries: int = 1000) -> bytes:
    """Return a smaller input that breaks the same rule at the same place, if one comes up in so many tries."""
    from fuzz import mutators

    rng, wanted = Random(0), judged(name, data)
    for _ in range(tries if wanted else 0):
        smaller = mutators.mutate(data, rng)
        if len(smaller) < len(data) and (found := judged(name, smaller)) and wanted and found.kind == wanted.kind:
            data = smaller
    return data


# --- a run, from inside --------------------------------------------------------------------------


def _fuzz_here(name: str, seconds: float) -> None:
    _prepare(with_atheris=True)
    from fuzz import mutators, seeds
    from fuzz.rules import LARGEST
    from fuzz.targets import TARGETS

    corpus = place(name) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    held = seeds.made(TARGETS[name].seeds)
    for seed in held:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    largest = min(LARGEST, GROWTH * max(map(len, held)) + MARGIN)
    found = _Findings(name)
    engine.fuzz(found.judge, mutators.mutate, corpus, seconds, largest, found.report)


class _Findings:
    """What was found in a target: of each kind the smallest input."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._folder = place(target) / "findings"
        self._folder.mkdir(exist_ok=True)
        self._sizes: dict[str, int] = {}

    def judge(self, data: bytes) -> None:
        """Judge an input, and keep it if it breaks a rule and none smaller does so at the same place."""
        finding = judged(self._target, data)
        if finding is not None and len(data) < self._sizes.get(finding.kind, len(data) + 1):
            self._keep(finding, data)

    def _keep(self, finding: Finding, data: bytes) -> None:
        path = self._folder / f"{hashlib.sha1(finding.kind.encode()).hexdigest()[:12]}.bin"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{finding.kind}\n{finding.report}", errors="backslashreplace")
        if finding.kind not in self._sizes:
            _say(f"{finding.kind}\n  {replay_line(self._target, path)}")
        self._sizes[finding.kind] = len(data)

    def report(self, executions: int) -> None:
        """Write how far it came."""
        text = json.dumps({"target": self._target, "executions": executions, "kinds": sorted(self._sizes)}, indent=1)
        (place(self._target) / "report.json").write_text(text)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
