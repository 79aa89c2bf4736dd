"""What every command that changes a checkpoint shares: where it writes, what it reports, what it leaves alone."""

from __future__ import annotations

import json
import os
import pty
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import without_plan
from verb_files import changed, loaded, mlp, saved

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]
ROOT = Path(__file__).parents[2]
VERBS: dict[str, list[str]] = {
    "init": ["--layer", "0", "--scheme", "ones"],
    "set": ["0.weight = 5"],
    "tie": ["0", "3"],
    "untie": ["3"],
    "convert": ["--to", "torch-zip"],
}


def net() -> dict[str, torch.Tensor]:
    return {
        "0.weight": torch.full((2, 3), 0.5),
        "0.bias": torch.zeros(2),
        "3.weight": torch.full((2, 3), 0.25),
        "3.bias": torch.ones(2),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path, net(), "net.pt")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def command(verb: str, file: object) -> list[object]:
    first, *others = VERBS[verb]
    return [verb, file, first, *others]


@pytest.mark.parametrize("verb", VERBS)
def test_a_new_file(run: Run, model: Path, verb: str) -> None:
    before = model.read_bytes()
    out = model.with_name("out.pt")
    code, text, err = run(*command(verb, model), "-o", out)
    assert (code, text) == (0, "")
    assert err.splitlines()[-1].startswith("wrote ") and err.endswith(f" to {out}\n")
    assert sorted(files(model.parent)) == ["net.pt", "out.pt"]
    assert model.read_bytes() == before
    assert list(loaded(out)) == list(net())


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_exists_needs_force(run: Run, model: Path, verb: str) -> None:
    out = model.with_name("out.pt")
    out.write_bytes(b"precious")
    before = files(model.parent)
    assert run(*command(verb, model), "-o", out) == (2, "", f"paramctl: {out}: exists already; add -f to replace it\n")
    assert files(model.parent) == before
    assert run(*command(verb, model), "-o", out, "-f")[0] == 0
    assert list(loaded(out)) == list(net())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "convert"])
def test_in_place_keeps_mode_and_links(run: Run, model: Path, verb: str) -> None:
    model.chmod(0o640)
    link = model.with_name("link.pt")
    link.symlink_to("net.pt")
    code, text, err = run(*command(verb, link), "-i")
    assert (code, text) == (0, "")
    assert err.splitlines()[-1].endswith(" in place")
    assert link.is_symlink() and stat.S_IMODE(model.stat().st_mode) == 0o640
    assert sorted(path.name for path in model.parent.iterdir()) == ["link.pt", "net.pt"]
    assert list(loaded(model)) == list(net())


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_writes_nothing_and_says_the_same(run: Run, model: Path, verb: str) -> None:
    seed = ["--seed", "1"] if verb == "init" else []
    before = files(model.parent)
    code, dry, noted = run(*command(verb, model), *seed, "-n")
    dry = without_plan(dry)
    assert (code, noted) == (0, "")
    assert files(model.parent) == before
    real = run(*command(verb, model), *seed, "-o", model.with_name("out.pt"))[2]
    assert dry.splitlines()[-1] == "nothing was written (dry run); …"
    assert dry.splitlines()[:-1] == real.splitlines()[:-1]


def test_quiet(run: Run, model: Path) -> None:
    assert run("init", model, "--scheme", "ones", "-q", "-o", model.with_name("out.pt")) == (0, "", "")


@pytest.mark.parametrize("verb", VERBS)
def test_pipes(spawn: Spawn, model: Path, verb: str) -> None:
    expected = model.with_name("expected.pt")
    spawn(*command(verb, model), "-o", expected)
    piped = spawn(*command(verb, "-"), "-o", "-", stdin=None, input=model.read_bytes())
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == expected.read_bytes()
    assert piped.stderr.endswith(b" to standard output\n")


def test_two_commands_in_a_pipe_as_promised(tmp_path: Path) -> None:
    saved(tmp_path, torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(5)]).state_dict(), "a.pt")
    paramctl = f"{shlex.quote(sys.executable)} -m paramctl"
    line = f"{paramctl} init --layer 0 --scheme xavier < a.pt | {paramctl} tie - 2 4 > b.pt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    before, after = loaded(tmp_path / "a.pt"), loaded(tmp_path / "b.pt")
    assert changed(before, after) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert after["2.weight"].data_ptr() == after["4.weight"].data_ptr()


def test_a_reader_that_is_gone(tmp_path: Path) -> None:
    saved(tmp_path, {"w": torch.zeros(1 << 20)}, "a.pt")
    line = f"{shlex.quote(sys.executable)} -m paramctl set a.pt 'w = 1' | head -c 10 > cut"
    done = subprocess.run(
        ["/bin/bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "cut"]


def shell(line: str, folder: Path) -> tuple[int, bytes, bytes]:
    """Return exit code and output of a shell's command line; `paramctl` in it is the one under test."""
    line = line.replace("paramctl", f"{shlex.quote(sys.executable)} -m paramctl")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=folder, env=environment, capture_output=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["set net.pt '0.bias = 1'", "show net.pt 0.bias --npy"])
def test_standard_output_is_full(model: Path, command: str) -> None:
    assert shell(f"paramctl {command} > /dev/full", model.parent) == (
        3,
        b"",
        b"paramctl: standard output: cannot write: No space left on device; make room there or write elsewhere with -o\n",
    )


@pytest.mark.parametrize("command", ["set net.pt '0.bias = 1'", "show net.pt 0.bias --npy"])
def test_standard_output_is_closed(model: Path, command: str) -> None:
    before = files(model.parent)
    assert shell(f"paramctl {command} >&-", model.parent) == (
        3,
        b"",
        b"paramctl: standard output: is closed; give -o FILE\n",
    )
    assert files(model.parent) == before


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("where", ["-o out.pt", "-i"])
def test_an_edit_with_descriptors_closed_writes_the_right_file(model: Path, closed: str, where: str) -> None:
    expected = model.with_name("expected.pt")
    line = "paramctl set net.pt '0.weight = 1'"
    assert shell(f"{line} -o {expected}", model.parent)[0] == 0
    assert shell(f"{line} {where} {closed}", model.parent)[:2] == (0, b"")
    out = model if where == "-i" else model.with_name("out.pt")
    assert loaded(out)["0.weight"].eq(1).all()
    assert out.read_bytes() == expected.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc/self/fd here")
def test_no_file_of_ours_gets_the_number_of_a_closed_descriptor(model: Path) -> None:
    model.with_name("my.py").write_text(
        "import os, pathlib\n"
        "held = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        "pathlib.Path('held').write_text(' '.join(held))\n"
        "def f(w): w.fill_(3)\n"
    )
    line = "paramctl init net.pt -l 0.bias -s my.py:f -i <&- >&- 2>&-"
    assert shell(line, model.parent) == (0, b"", b"")
    assert model.with_name("held").read_text() == "/dev/null /dev/null /dev/null"
    assert loaded(model)["0.bias"].tolist() == [3.0, 3.0]


PRINTS = """
import ctypes, os, subprocess, sys
print("loaded")
os.write(1, b"loaded raw\\n")
def f(w):
    print("drawn")
    os.write(1, b"drawn raw\\n")
    subprocess.run(["echo", "drawn by a process"])
    ctypes.CDLL(None).puts(b"drawn by C")
    sys.__stdout__.write("drawn late\\n")
    w.fill_(3)
"""


def test_nothing_that_a_persons_function_prints_gets_into_the_checkpoint(model: Path) -> None:
    model.with_name("my.py").write_text(PRINTS)
    expected = model.with_name("expected.pt")
    line = "paramctl init net.pt -l 0.bias -s my.py:f --seed 1"
    assert shell(f"{line} -o {expected}", model.parent)[0] == 0
    code, out, err = shell(f"{line} > out.pt", model.parent)
    assert (code, out) == (0, b"")
    assert {b"loaded", b"loaded raw", b"drawn", b"drawn raw", b"drawn by a process", b"drawn by C"} <= {
        *err.splitlines()
    }
    assert b"drawn late" in err
    assert model.with_name("out.pt").read_bytes() == expected.read_bytes()


def test_a_persons_function_that_ends_oddly_is_named(model: Path) -> None:
    model.with_name("my.py").write_text("class Odd(BaseException): pass\ndef f(w):\n    raise Odd('no')\n")
    assert shell("paramctl init net.pt -l 0.bias -s my.py:f -o out.pt", model.parent) == (
        2,
        b"",
        b"paramctl: net.pt: my.py:f failed for 0.bias: Odd: no (line 3)\n",
    )
    assert sorted(files(model.parent)) == ["my.py", "net.pt"]


@pytest.mark.parametrize(("signal", "code", "word"), [("SIGINT", 130, b"interrupted"), ("SIGTERM", 143, b"terminated")])
def test_a_signal_while_a_persons_function_runs(model: Path, signal: str, code: int, word: bytes) -> None:
    source = f"import os, signal, time\ndef f(w):\n    os.kill(os.getpid(), signal.{signal})\n    time.sleep(60)\n"
    model.with_name("my.py").write_text(source)
    line = "paramctl init net.pt -l 0.bias -s my.py:f -o out.pt"
    assert shell(line, model.parent) == (code, b"", b"paramctl: " + word + b"\n")
    assert sorted(files(model.parent)) == ["my.py", "net.pt"]


@pytest.mark.parametrize("out", [[], ["-o", "-"]])
def test_a_terminal_never_gets_binary(model: Path, out: list[str]) -> None:
    for verb in ("init", "convert"):
        ours, theirs = pty.openpty()
        done = subprocess.run(
            [sys.executable, "-m", "paramctl", *map(str, command(verb, model)), *out],
            stdout=theirs, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=ROOT, check=False,
        )  # fmt: skip
        os.close(theirs)
        with pytest.raises(OSError):
            os.read(ours, 100)
        os.close(ours)
        assert done.returncode == 2
        assert done.stderr.decode() == (
            f"paramctl: {model}: a checkpoint is not written to a terminal; "
            "give -o FILE, or -i to replace FILE, or use a pipe\n"
        )


def test_the_report_for_people(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, mlp().state_dict(), "net.pt")
    code, out, err = run("init", path, "--scheme", "xavier", "--seed", "7", "-n")
    assert (code, without_plan(out), err) == (
        0,
        "0.weight  xavier_uniform  fan 4 → 8\n"
        "0.bias    zeros\n"
        "2.weight  ones\n"
        "2.bias    zeros\n"
        "3.weight  xavier_uniform  fan 8 → 2\n"
        "3.bias    zeros\n"
        "kept 2.running_mean, 2.running_var: running statistics are kept\n"
        "kept 2.num_batches_tracked: int64 values are not weights\n"
        "note: the whole model was drawn anew, since no --layer was given\n"
        "seed 7\n"
        "nothing was written (dry run); …\n",
        "",
    )


def test_the_report_of_a_default_shortens_numbers(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, mlp().state_dict(), "net.pt")
    assert without_plan(run("init", path, "--layer", "3", "--seed", "7", "-n")[1]) == (
        "3.weight  kaiming_uniform:a=2.2361 (assumed)      fan 8 → 2\n"
        "3.bias    uniform:a=-0.35355,b=0.35355 (assumed)\n"
        "note: assumed: the file names no class for these layers, so they were taken for Linear, Conv or the like\n"
        "seed 7\n"
        "nothing was written (dry run); …\n"
    )


def test_the_report_names_ties_and_escapes_names(run: Run, tmp_path: Path) -> None:
    shared = torch.ones(2, 2)
    names = {"[b]x[/b]": shared, "a\x1b[31m": shared, "e": torch.zeros(2)}
    path = saved(tmp_path, {**names, **{f"t{i}": shared for i in range(7)}}, "net.pt")
    assert without_plan(run("set", path, "[b]x[/b] += 1", "e[0] = 5", "-n")[1]) == (
        "[b]x[/b]  += 1     also a\\x1b[31m, t0, t1, t2, t3 and 3 more\n"
        "e         [0] = 5\n"
        "nothing was written (dry run); …\n"
    )


def test_a_long_path_does_not_push_all_others_to_the_right(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, {"x" * 70: torch.ones(2, 2), "y": torch.ones(2, 2)}, "net.pt")
    assert run("init", path, "--scheme", "ones", "--seed", "1", "-n")[1].splitlines()[:2] == [
        f"{'x' * 70}  ones  fan 2 → 2",
        f"{'y':48}  ones  fan 2 → 2",
    ]


def test_a_report_of_thousands_is_cut(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, {f"{i}.weight": torch.ones(1, 1) for i in range(1234)}, "net.pt")
    lines = without_plan(run("init", path, "--scheme", "ones", "--seed", "1", "-n")[1]).splitlines()
    assert lines[200] == "… and 1,034 more; --json lists all"
    assert lines[202:] == ["seed 1", "nothing was written (dry run); …"]


def test_what_is_kept_is_named_up_to_twenty(run: Run, tmp_path: Path) -> None:
    made = {"weight": torch.ones(1, 1), **{f"n{i:02}": torch.tensor([i]) for i in range(57)}}
    path = saved(tmp_path, made, "net.pt")
    names = ", ".join(f"n{i:02}" for i in range(20))
    assert run("init", path, "--scheme", "ones", "--seed", "1", "-n")[1].splitlines()[1] == (
        f"kept {names} and 37 more (--json lists all): int64 values are not weights"
    )
    assert len(json.loads(run("init", path, "--scheme", "ones", "-n", "--json")[1])["kept"]) == 57
    made = {name: tensor for name, tensor in made.items() if name in ("weight", "n00", "n01", "n02", "n03", "n04", "n05")}
    path = saved(tmp_path, made, "few.pt")
    assert run("init", path, "--scheme", "ones", "--seed", "1", "-n")[1].splitlines()[1] == (
        "kept n00, n01, n02, n03, n04, n05: int64 values are not weights"
    )


def test_only_what_was_drawn_has_a_role(run: Run, model: Path) -> None:
    for args in (["set", model, "0.bias = 1"], ["tie", model, "0", "3"], ["untie", model, "3"]):
        changed = json.loads(run(*args, "-n", "--json")[1])["changed"]
        assert [change["role"] for change in changed] == [None] * len(changed)


def test_the_machine_readable_report(run: Run, tmp_path: Path) -> None:
    shared = torch.ones(2, 3)
    made = {"model": {"a.weight": shared, "a.bias": torch.ones(2), "a.n": torch.tensor(1), "b.weight": shared}}
    path, out = saved(tmp_path, made, "net.pt"), tmp_path / "out.pt"
    code, text, err = run("init", path, "--layer", "a", "--scheme", "normal", "--seed", "5", "--json", "-o", out)
    assert code == 0
    assert json.loads(text) == {
        "schema": 1,
        "seed": 5,
        "changed": [
            {"path": "model.a.weight", "how": "normal", "role": "weight", "fan_in": 3, "fan_out": 2,
             "also": ["model.b.weight"]},
            {"path": "model.a.bias", "how": "zeros", "role": "bias", "fan_in": None, "fan_out": None, "also": []},
        ],
        "kept": ["model.a.n"],
        "bytes_written": out.stat().st_size,
    }  # fmt: skip
    assert err == "note: selected inside 'model'\n"
    assert run("init", path, "--layer", "a", "--scheme", "ones", "--json", "-n", "-q")[2] == ""


def test_the_report_goes_to_standard_error_when_the_checkpoint_is_on_standard_output(spawn: Spawn, model: Path) -> None:
    done = spawn("set", model, "0.bias = 1", "--json")
    report = json.loads(done.stderr)
    assert (report["changed"][0]["path"], report["seed"]) == ("0.bias", None)
    assert report["bytes_written"] == len(done.stdout)


def test_a_seed_that_was_printed_draws_the_same_again(run: Run, model: Path) -> None:
    first, second = model.with_name("1.pt"), model.with_name("2.pt")
    err = run("init", model, "--scheme", "normal", "-o", first)[2]
    seed = next(line.split()[1] for line in err.splitlines() if line.startswith("seed "))
    run("init", model, "--scheme", "normal", "--seed", seed, "-o", second)
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Make a folder of files that cannot be edited, beside one that can."""
    saved(tmp_path, {**net(), "n": torch.tensor([1, 2])}, "net.pt")
    safetensors.torch.save_file(net(), tmp_path / "net.safetensors")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:-100])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-10])
    (tmp_path / "text.pt").write_text("hello, world, this is no checkpoint\n")
    torch.save(net(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "a.npy", np.ones(5))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "out.pt").write_bytes(b"precious")
    return tmp_path


OUT = ["-o", "out.pt"]
KNOWN = "torch-zip, torchscript, torchscript-json, torch-export, torch-tar, torch-legacy, safetensors"
LINES: list[tuple[list[str], int, str]] = [
    (["init", "none.pt", *OUT], 3, "none.pt: no such file; check the path"),
    (["init", "folder", *OUT], 3, "folder: is a directory, not a checkpoint file; name a file in it"),
    (["init", "empty.pt", *OUT], 3, "empty.pt: is empty; check the command or the download that made it"),
    (["init", "text.pt", *OUT], 3, "text.pt: is no checkpoint that paramctl knows; it reads {known}"),
    (["init", "cut.pt", "-i"], 3, "cut.pt: is truncated or damaged: the zip directory at its end is missing"),
    (["init", "cut.safetensors", "-i"], 3, "cut.safetensors: is truncated: its tensors take 64 bytes, 54 are there"),
    (["init", "net.pt", "-l", "x", *OUT], 1,
     "net.pt: no parameter or layer matches 'x'; 'paramctl ls' lists them all"),
    (["init", "net.pt", "-l", "0.wieght", *OUT], 1,
     "net.pt: no parameter or layer matches '0.wieght'; nearest: 0.weight, 3.weight"),
    (["init", "net.pt", "-s", "xaver", *OUT], 2,
     "net.pt: no scheme 'xaver'; did you mean xavier_uniform, xavier_normal? (paramctl schemes lists all)"),
    (["init", "net.pt", "-l", "0.bias", "-s", "xavier", *OUT], 2,
     "net.pt: xavier_uniform cannot apply to 0.bias (2): it needs 2 or more dimensions to have a fan-in and fan-out; "
     "name another scheme for it"),
    (["init", "net.pt", "-l", "n", "-s", "normal", *OUT], 2,
     "net.pt: normal cannot apply to n (2): it draws fractions, and int64 holds whole numbers; "
     "name another scheme for it"),
    (["init", "net.pt", "-s", "normal:sdt=1", *OUT], 2, "net.pt: normal has no argument 'sdt'; it takes mean, std"),
    (["init", "net.pt", "-s", "normal:std=x", *OUT], 2, "net.pt: normal: std must be a number, not 'x'"),
    (["init", "net.pt", "-l", "0", "-l", "3", "-l", "n", "-s", "ones", "-s", "zeros", *OUT], 2,
     "net.pt: 3 --layer and 2 --scheme do not pair up; "
     "give one --scheme for all layers, or one for each --layer, in order"),
    (["init", "net.pt", "-s", "none.py:f", *OUT], 2, "net.pt: cannot read none.py: No such file or directory"),
    (["init", "net.pt", "-s", "none.py", *OUT], 2,
     "net.pt: none.py needs the name of a function in it; write none.py:FUNCTION"),
    (["init", "net.pt", "--seed", "-1", *OUT], 2,
     "--seed must be a whole number, 0 or more; see 'paramctl init --help'"),
    (["init", "net.pt", "-i", *OUT], 2, "net.pt: -o and -i contradict each other; give one of them"),
    (["init", "net.pt", "-o", "net.pt"], 2, "net.pt: exists already; add -f to replace it"),
    (["init", "net.pt", "-o", "out.safetensors"], 2,
     "net.pt: '.safetensors' is a suffix of safetensors files, and this would be torch-zip; "
     "run 'paramctl convert' to make out.safetensors"),
    (["init", "net.safetensors", *OUT], 2,
     "net.safetensors: '.pt' is a suffix of torch-zip files, and this would be safetensors; "
     "run 'paramctl convert' to make out.pt"),
    (["init", "net.pt", "-o", "folder"], 2, "folder: is a directory; name a file for -o"),
    (["init", "net.pt", "-o", "no/out.pt"], 3, "no/out.pt: there is no directory {folder}/no; make it first"),
    (["set", "net.pt", *OUT], 2, "missing argument 'STATEMENT...'; see 'paramctl set --help'"),
    (["set", "net.pt", "0.weight", *OUT], 2,
     "net.pt: '0.weight' is not an assignment; say PATH[INDEX] = VALUE, or with +=, -=, *=, /="),
    (["set", "net.pt", "0.weight = 0.bias", *OUT], 2, "net.pt: 0.bias (2) does not broadcast to 0.weight (2 × 3)"),
    (["set", "net.pt", "0.weight = @a.npy", *OUT], 2, "net.pt: @a.npy (5) does not broadcast to 0.weight (2 × 3)"),
    (["set", "net.pt", "0.weight = @none.npy", *OUT], 3, "none.npy: no such file; check the path"),
    (["set", "net.pt", "0.weight[5] = 1", *OUT], 2, "net.pt: index 5 is out of range for axis 0 of 0.weight (2 × 3)"),
    (["set", "net.pt", "n = 1.5", "-i"], 2, "net.pt: n = 1.5: int64 holds whole numbers only"),
    (["set", "net.pt", "n /= 2", "-i"], 2, "net.pt: n /= 2: int64 holds whole numbers only"),
    (["tie", "net.pt", *OUT], 2, "missing argument 'A B...'; see 'paramctl tie --help'"),
    (["tie", "net.pt", "0", *OUT], 2,
     "net.pt: tie needs at least two layers or params; name the one to keep first"),
    (["tie", "net.pt", "0", "n", *OUT], 2, "net.pt: cannot tie: 0 is a layer and n a single parameter"),
    (["tie", "net.pt", "0.weight", "3.bias", "-i"], 2,
     "net.pt: cannot tie: 0.weight is float32 2 × 3 and 3.bias is float32 2"),
    (["untie", "net.pt", "x", "-i"], 1, "net.pt: no parameter or layer matches 'x'; 'paramctl ls' lists them all"),
    (["convert", "net.pt", "-o", "out.what"], 2,
     "cannot tell which format to write; name it with --to safetensors, torch-zip or dcp, or a directory for shards"
     " with a / at its end"),
    (["convert", "net.pt"], 2,
     "cannot tell which format to write; name it with --to safetensors, torch-zip or dcp, or a directory for shards"
     " with a / at its end"),
    (["convert", "net.pt", "-o", "out.safetensors", "--to", "dcp"], 2,
     "out.safetensors: is one file, and shards are several; name a directory, or an index such as"
     " model.safetensors.index.json"),
    (["convert", "net.pt", "--to", "onnx", *OUT], 2, "no format 'onnx'; name one of {known}, sharded, dcp"),
    (["convert", "net.pt", "--to", "safetensors", *OUT], 2,
     "net.pt: '.pt' is a suffix of torch-zip files, and this would be safetensors; name it out.safetensors"),
    (["convert", "net.pt", "-o", "net.safetensors"], 2, "net.safetensors: exists already; add -f to replace it"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "code", "line"), LINES, ids=[" ".join(args) for args, _, _ in LINES])
def test_bad_input_is_one_line_and_nothing_is_written(
    run: Run, bad: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, line: str
) -> None:
    monkeypatch.chdir(bad)
    before = files(bad)
    assert run(*args) == (code, "", f"paramctl: {line.format(folder=bad, known=KNOWN)}\n")
    assert files(bad) == before
    assert files(bad / "folder") == {"out.pt": b"precious"}


def test_old_torch_files_are_edited_and_stay_old(run: Run, bad: Path) -> None:
    code, out, _ = run("init", bad / "old.pt", "--scheme", "zeros", "-i")
    assert (code, out) == (0, "")
    assert (bad / "old.pt").read_bytes().startswith(b"\x80\x02\x8a\nl\xfc\x9cF")
    assert not torch.load(bad / "old.pt")["0.weight"].any()
    cut = (bad / "old.pt").read_bytes()[:-3]
    (bad / "old.pt").write_bytes(cut)
    code, out, err = run("init", bad / "old.pt", "-i")
    assert (code, out) == (3, "") and "bytes from byte" in err and err.count("\n") == 1
    assert (bad / "old.pt").read_bytes() == cut


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "convert"])
def test_standard_input_cannot_be_replaced(spawn: Spawn, model: Path, verb: str) -> None:
    with model.open("rb") as redirected:
        results = [
            spawn(*command(verb, "-"), "-i", stdin=redirected),
            spawn(*command(verb, "-"), "-i", stdin=None, input=model.read_bytes()),
        ]
    for done in results:
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr == b"paramctl: standard input: has no place to write back to; give -o FILE in place of -i\n"


def test_empty_standard_input(spawn: Spawn, tmp_path: Path) -> None:
    done = spawn("init", "-o", tmp_path / "out.pt")
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == b"paramctl: standard input: is empty; check the command or the download that made it\n"
    assert files(tmp_path) == {}


def test_no_file_and_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "paramctl", "init", "-o", str(tmp_path / "out.pt")],
        stdin=theirs, capture_output=True, cwd=ROOT, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"paramctl: no checkpoint was named; name a FILE, or pipe one in and name '-' or nothing\n"


def test_a_file_with_several_names_or_in_a_model_cache_is_not_replaced(run: Run, model: Path) -> None:
    other = model.with_name("other.pt")
    other.hardlink_to(model)
    before = files(model.parent)
    assert run("init", model, "-i") == (
        2,
        "",
        f"paramctl: {model}: has 2 names (hard links), and replacing it would separate them; write a copy with -o FILE\n",
    )
    assert run("init", model, "-o", other, "-f") == (
        2,
        "",
        f"paramctl: {other}: has 2 names (hard links), and replacing it would separate them; "
        "name another file, or remove this one first\n",
    )
    assert files(model.parent) == before
    other.unlink()
    blobs = model.parent / "blobs"
    blobs.mkdir()
    model.rename(blobs / ("0" * 64))
    model.symlink_to(blobs / ("0" * 64))
    assert run("init", model, "-i")[::2] == (
        2,
        f"paramctl: {model}: is a link into a model cache ({blobs / ('0' * 64)}), which other links share; "
        "write a copy with -o FILE\n",
    )


def test_a_read_only_file_is_not_replaced(run: Run, model: Path) -> None:
    model.chmod(0o444)
    before = files(model.parent)
    for args in (["-i"], ["-f", "-o", model]):
        code, out, err = run("init", model, *args)
        assert (code, out) == (3, "")
        assert err == (
            f"paramctl: {model}: is read-only; write elsewhere with -o, or make it writable first\n"
        )
    assert files(model.parent) == before


def test_corrupt_values_are_found_before_anything_is_written(run: Run, model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[data.find(torch.full((2, 3), 0.25).numpy().tobytes())] ^= 1
    model.write_bytes(data)
    before = files(model.parent)
    assert run("set", model, "3.weight[0,0] += 1", "-o", model.with_name("out.pt")) == (
        3,
        "",
        f"paramctl: {model}: storage 2 is corrupt: its bytes do not match their CRC-32\n",
    )
    assert files(model.parent) == before
    assert run("set", model, "3.weight = 1", "-o", model.with_name("out.pt"))[0] == 0


def test_the_output_may_be_the_input(run: Run, model: Path) -> None:
    assert run("set", model, "0.bias = 3", "-f", "-o", model)[0] == 0
    assert loaded(model)["0.bias"].tolist() == [3.0, 3.0]
    assert sorted(files(model.parent)) == ["net.pt"]
