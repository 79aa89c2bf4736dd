"""What every command shares: errors and exit codes, signals, closed pipes, help."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramctl import __version__, errors
from paramctl.cli import app, completion
from paramctl.cli.app import CHANGE, LOOK
from paramctl.formats import opening

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_file(
        {"0.weight": torch.zeros(2, 2), "0.block 1.bias": torch.zeros(2), "evil$(touch x)": torch.zeros(1)},
        path,
    )
    return path


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Save a file whose listing does not fit into a pipe."""
    path = tmp_path / "long.safetensors"
    save_file({f"some.long.name.{i}": torch.zeros(i % 5) for i in range(5000)}, path)
    return path


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["schem", "x"], "no command 'schem'; nearest: schemes"),
        (["recover", "x", "y"], "got unexpected extra argument(s) (y); see 'paramctl recover --help'"),
        (["tree", "--dep", "1"], "no option --dep; nearest: --depth"),
        (
            ["tree", "-L", "0"],
            "--depth must be a whole number, 1 or more; see 'paramctl tree --help'",
        ),
        (["tree", "--\x1b[31m"], "no option --\\x1b[31m; see 'paramctl tree --help'"),
    ],
)
def test_a_usage_error_is_one_line(run: Run, args: list[str], line: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err == f"paramctl: {line}\n"


def numeric_options() -> Iterator[tuple[str, str, float, float | None]]:
    """Yield each option of each command that takes a number: command, name, least and most."""
    commands = app.Commands()
    for name in (*LOOK, *CHANGE):
        for option in commands.get_command(None, name).params:
            if hasattr(option.type, "min"):
                yield name, max(option.opts, key=len), option.type.min, option.type.max


NUMERIC = list(numeric_options())


@pytest.mark.parametrize(("command", "name", "least", "most"), NUMERIC)
def test_a_number_that_will_not_do_is_answered_with_those_that_will(
    run: Run, command: str, name: str, least: float, most: float | None
) -> None:
    for value in ("abc", f"{least - 1:g}", *([] if most is None else [f"{most + 1:g}"])):
        code, out, err = run(command, f"{name}={value}")
        assert (code, out) == (2, "")
        assert re.fullmatch(
            rf"paramctl: {name} must be a (whole )?number, {least:g} or more( and at most [0-9]+)?; "
            rf"see 'paramctl {command} --help'\n",
            err,
        )


def test_the_seed_is_among_the_numeric_options() -> None:
    assert ("init", "--seed", 0, None) in NUMERIC


def test_options_are_not_abbreviated(run: Run, model: Path) -> None:
    assert run("tree", model, "--jso")[0] == 2


def test_alone_it_prints_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out == run("--help")[1] == run("-h")[1]


def test_the_version_is_that_of_the_package_installed_or_not(spawn: Spawn) -> None:
    done = spawn("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"paramctl {__version__}\n".encode(), b"")
    changelog = Path(__file__).parents[2] / "CHANGELOG.md"
    assert f"## {__version__}\n" in changelog.read_text()


def test_nothing_says_to_install_the_project_that_has_our_name_on_pypi() -> None:
    """Nor an extra of it: a message names the library that is missing."""
    root = Path(__file__).parents[2]
    named = re.compile(r"""\b(?:pip|pipx|uv tool) install [^\n&;]*\bparamctl(?!-cli|/)\b""")
    texts = {path: path.read_text() for path in [root / "README.md", *app_files()]}
    assert {path.name: found[0] for path, text in texts.items() if (found := named.search(text))} == {}
    assert any("pip install matplotlib" in text for text in texts.values())


def app_files() -> list[Path]:
    package = Path(app.__file__).parents[1]
    return [*package.rglob("*.py"), *package.rglob("*.md")]


@pytest.mark.parametrize("name", [*LOOK, *CHANGE])
def test_every_command_has_help_with_examples_that_fits(run: Run, name: str) -> None:
    code, out, _ = run(name, "-h")
    assert code == 0
    assert "\n  Examples:\n    paramctl " in out or f"| paramctl {name}" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert f"  {name} " in run("--help")[1]


def test_a_missing_file(run: Run) -> None:
    assert run("tree", "no\nsuch\x1b") == (3, "", "paramctl: no\\nsuch\\x1b: no such file; check the path\n")


def test_an_error_inside_a_command_names_the_file(run: Run, model: Path) -> None:
    code, out, err = run("tree", model, "--layer", "nothing")
    assert (code, out) == (1, "")
    assert err.startswith(f"paramctl: {model}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UsageError("does not fit", hint="try less", file="x.pt"), 2, "x.pt: does not fit; try less"),
        (errors.NoMatch("nothing"), 1, "x: nothing"),
        (errors.FormatError("a\nb\x1b"), 3, "x: a\\nb\\x1b"),
        (MemoryError(), 3, "there is not enough memory"),
        (RecursionError(), 3, "the file is nested too deeply"),
        (
            PermissionError(13, "Permission denied", "y.pt"),
            3,
            "y.pt: cannot read or write: Permission denied",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ValueError("odd"),
            3,
            "internal error: ValueError: odd; run it with --debug and report what it prints",
        ),
    ],
)
def test_every_error_is_one_line_and_a_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(name: str, *callbacks: object) -> None:
        raise error

    monkeypatch.setattr(opening, "open", fail)
    got = run("tree", "x")
    assert got[1:] == ("", "" if code == 130 and not got[2] else f"paramctl: {line}\n")
    assert got[0] == code


@pytest.mark.parametrize("args", [("--debug", "tree", "x\x1b"), ("tree", "x\x1b", "--debug")])
def test_debug_shows_the_traceback_first(run: Run, args: tuple[str, ...]) -> None:
    code, _, err = run(*args)
    assert code == 3
    assert err.startswith("Traceback")
    assert err.endswith("paramctl: x\\x1b: no such file; check the path\n")
    assert "\x1b" not in err


def test_a_name_without_end_is_elided_and_the_message_about_it_is_not(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    names = [letter * 10_000 for letter in "abcdefgh"]
    save_file({name: torch.zeros(i) for i, name in enumerate(names)}, path)
    short = [f"{letter * 249}…{letter * 250}" for letter in "abcdefgh"]
    assert run("tie", path, *names, "-n") == (
        2,
        "",
        f"paramctl: {path}: cannot tie: "
        + "; ".join(f"{short[0]} is float32 0 and {name} is float32 {i}" for i, name in enumerate(short[1:], 1))
        + "\n",
    )


def test_a_message_without_end_is_cut_but_its_hint_is_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *callbacks: object) -> None:
        raise errors.FormatError("a name " * 100_000, hint="do this")

    monkeypatch.setattr(opening, "open", fail)
    err = run("tree", "x")[2]
    assert len(err) < 51_000
    assert err.endswith("a name ; do this\n")


def test_a_message_of_many_mismatches_is_whole(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"{side}.{i}.weight": torch.zeros(i, side) for i in range(100) for side in (2, 4)}, path)
    problems = [f"2.{i}.weight is float32 {i} × 2 and 4.{i}.weight is float32 {i} × 4" for i in sorted(range(100), key=str)]
    assert run("tie", path, "2", "4", "-n") == (2, "", f"paramctl: {path}: cannot tie: {'; '.join(problems)}\n")


@pytest.mark.parametrize("args", [["tree"], ["tree", "-"], ["ls"]])
def test_a_pipe_is_read(spawn: Spawn, model: Path, args: list[str]) -> None:
    done = spawn(*args, input=model.read_bytes(), stdin=None)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"weight" in done.stdout


def test_an_empty_pipe_is_an_error(spawn: Spawn) -> None:
    done = spawn("tree", input=b"", stdin=None)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith(b"paramctl: standard input: is empty; ")


def test_a_terminal_is_not_read(spawn: Spawn) -> None:
    reader, terminal = pty.openpty()
    done = spawn("tree", stdin=terminal)
    os.close(reader)
    os.close(terminal)
    assert (done.returncode, done.stderr) == (
        2, b"paramctl: no checkpoint was named; name a FILE, or pipe one in and name '-' or nothing\n"
    )  # fmt: skip


@pytest.mark.parametrize("args", [["tree", "--expand"], ["ls"], ["ls", "--json"], ["tree", "--json"]])
def test_head_ends_a_listing_quietly(long: Path, args: list[str]) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "paramctl", *args, long],
        stdout=writer, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        os.close(writer)
        assert os.read(reader, 10)
        os.close(reader)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0


def test_a_reader_that_never_was_is_no_trouble_either(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "paramctl", "tree", model],
        stdout=writer, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("args", [["--help"], ["tree", "--help"], ["--version"], []])
def test_help_that_nobody_reads_is_no_trouble(args: list[str]) -> None:
    command = [sys.executable, "-m", "paramctl", *args]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_inside_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *callbacks: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "open", fail)
    assert run("tree", "x") == (130, "", "paramctl: interrupted\n")


def test_a_full_disk_is_said_once(spawn: Spawn, model: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = spawn("tree", model, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (
        3, b"paramctl: standard output: cannot write: No space left on device\n"
    )  # fmt: skip


def shell(line: str) -> tuple[int, bytes, bytes]:
    """Return exit code and output of a shell's command line; `paramctl` in it is the one under test."""
    line = line.replace("paramctl", f"{sys.executable} -m paramctl", 1)
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, cwd=Path(__file__).parents[2], check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


CLOSED = (3, b"", b"paramctl: standard output: is closed\n")


@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
@pytest.mark.parametrize("command", ["tree", "ls", "ls --json"])
def test_a_listing_with_standard_output_closed(model: Path, command: str, closed: str) -> None:
    before = model.read_bytes()
    assert shell(f"paramctl {command} {model} {closed}") == CLOSED
    assert shell(f"paramctl {command} {model} {closed} 2>&-") == (3, b"", b"")
    assert model.read_bytes() == before


@pytest.mark.parametrize("command", ["tree", "tree -", "ls -", "init - -o {out}", "set - 'x = 1'", "show - x"])
def test_standard_input_closed(tmp_path: Path, command: str) -> None:
    line = command.format(out=tmp_path / "out.pt")
    assert shell(f"paramctl {line} <&-") == (3, b"", b"paramctl: standard input: is closed; name a FILE\n")
    assert list(tmp_path.iterdir()) == []


def test_a_listing_with_standard_error_closed(model: Path) -> None:
    assert shell(f"paramctl ls {model} -l 0.weight 2>&-") == (0, b"0.weight\ttensor\tfloat32\t2x2\t4\t16\t\n", b"")


@pytest.fixture
def waiting() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts a command that waits for its standard input, behind `prefix`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(prefix: str = "") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"{prefix} exec {sys.executable} -m paramctl --debug tree"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        started.append(process)
        _wait_until_it_reads(process.pid)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _wait_until_it_reads(pid: int) -> None:
    for _ in range(400):
        where = Path(f"/proc/{pid}/wchan").read_text() if sys.platform == "linux" else "pipe"
        if "pipe" in where or "splice" in where:
            break
        time.sleep(0.025)
    time.sleep(0.05)


@pytest.mark.parametrize(
    ("signum", "code", "word"),
    [
        (signal.SIGINT, 130, b"interrupted"),
        (signal.SIGTERM, 143, b"terminated"),
        (signal.SIGHUP, 129, b"hung up"),
    ],
)
def test_signals_clean_up_and_tell(
    waiting: Callable[..., subprocess.Popen[bytes]], signum: signal.Signals, code: int, word: bytes
) -> None:
    process = waiting()
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.splitlines()[-1] == b"paramctl: " + word
    assert b"Stopped" in err, "it ended by the exception, so that every finally ran"


def test_nohup_stays_so(waiting: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = waiting("trap '' HUP;")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None


def test_the_handlers_are_put_back(run: Run, model: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run("tree", model)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def complete(spawn: Spawn, line: str) -> list[str]:
    words = line.split(" ")
    done = spawn(
        env={
            "_PARAMCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
    )
    return done.stdout.decode().split("\n")[:-1] if done.stdout.strip() else []


def test_the_shell_completes_commands_and_options(spawn: Spawn) -> None:
    assert complete(spawn, "paramctl tre") == ["tree"]
    assert "--layer" in complete(spawn, "paramctl tree --l")


def test_the_shell_completes_paths_inside_the_file(spawn: Spawn, model: Path) -> None:
    assert complete(spawn, f"paramctl tree {model} --layer 0.b") == ["0.block\\ 1", "0.block\\ 1.bias"]
    assert complete(spawn, f"paramctl tree {model} --layer '0.b") == ["0.block 1", "0.block 1.bias"]


def test_a_name_that_a_shell_would_run_is_not_offered(spawn: Spawn, model: Path) -> None:
    assert complete(spawn, f"paramctl tree {model} --layer ") == ["0", "0.block\\ 1.bias", "0.weight"]
    assert complete(spawn, f"paramctl tree {model} --layer ev") == []


def test_nothing_is_offered_where_anything_is_amiss(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    assert complete(spawn, f"paramctl tree {tmp_path}/bad.pt --layer ") == []
    assert complete(spawn, "paramctl tree - --layer ") == []


def test_next_names() -> None:
    assert list(completion._next_names("a.b.c", "")) == ["a", "a.b.c"]
    assert list(completion._next_names("a.b.c", "a.")) == ["a.b", "a.b.c"]
    assert list(completion._next_names("a.b.c", "a.b.c")) == ["a.b.c"]
    assert list(completion._next_names("x", "a")) == []


def test_the_table_names_only_commands_there_are() -> None:
    folder = Path(app.__file__).parent / "commands"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == {*LOOK, *CHANGE}


@pytest.mark.parametrize("name", [*LOOK, *CHANGE])
def test_the_summary_of_a_command_is_one_line_that_fits(name: str) -> None:
    summary = app.Commands().get_command(None, name).get_short_help_str(66)
    assert summary.endswith(".")
    assert not summary.endswith("...")
