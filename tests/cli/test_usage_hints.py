"""A mistaken command line is answered with the one that was meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from paramctl.cli import app, usage_hints
from paramctl.cli.app import CHANGE, LOOK

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Save a file in the working directory, and return its name."""
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": torch.zeros(2, 2)}, "m.pt")
    return "m.pt"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("inspect m.pt", "no command 'inspect'; run 'paramctl tree m.pt'"),
        ("info m.pt", "no command 'info'; run 'paramctl tree m.pt'"),
        ("summary m.pt", "no command 'summary'; run 'paramctl tree m.pt'"),
        ("list m.pt", "no command 'list'; run 'paramctl ls m.pt'"),
        ("compare a.pt b.pt", "no command 'compare'; run 'paramctl diff a.pt b.pt'"),
        ("reset m.pt", "no command 'reset'; run 'paramctl init m.pt'"),
        ("reinit m.pt", "no command 'reinit'; run 'paramctl init m.pt'"),
        ("export m.pt", "no command 'export'; run 'paramctl convert m.pt'"),
        ("m.pt", "no command 'm.pt'; run 'paramctl tree m.pt' to look into a checkpoint"),
        ("init m.pt 0 xavier", "got unexpected extra argument(s) (0 xavier); write --layer 0 --scheme xavier"),
        ("convert m.pt b.safetensors", "got unexpected extra argument(s) (b.safetensors); write -o b.safetensors"),
        ("frobnicate", "no command 'frobnicate'; 'paramctl --help' lists the commands"),
        ("init m.pt --inplace", "no option --inplace; write --in-place"),
        ("init m.pt --dryrun", "no option --dryrun; write --dry-run"),
        ("init m.pt --layers 0", "no option --layers; write --layer"),
        ("tree m.pt --format json", "no option --format; write --json"),
        ("tree m.pt --tsv", "no option --tsv; see 'paramctl tree --help'"),
        ("ls m.pt --dtype float32", "no option --dtype; filter the lines of 'paramctl ls': in a pipe, column 3 is the dtype"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_what_was_meant(run: Run, file: str, line: str, hint: str) -> None:
    assert run(*line.split()) == (2, "", f"paramctl: {hint}\n")


def test_flags_that_other_tools_have(run: Run, file: str) -> None:
    code, _, err = run("ls", "-lh", file)
    assert code == 1
    assert err.endswith("-lh means --layer h; 'paramctl ls FILE' shows sizes without options\n")
    assert run("-V")[1].startswith("paramctl ")


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\x1b[31m", "-"])
def test_any_name_is_answered(run: Run, name: str) -> None:
    code, out, err = run(name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no command" in err or "got unexpected" in err


def options() -> Iterator[tuple[str, str]]:
    """Yield each long option of each command, and the command."""
    commands = app.Commands()
    for name in (*LOOK, *CHANGE):
        yield from (
            (name, each) for one in commands.get_command(None, name).params for each in one.opts if "--" in each
        )


def test_hints_name_only_what_there_is(run: Run) -> None:
    assert {*usage_hints.COMMANDS.values()} <= {*LOOK, *CHANGE, "--version"}
    assert not {*usage_hints.COMMANDS} & {*LOOK, *CHANGE}


@pytest.mark.parametrize(("command", "option"), [*options()])
def test_an_option_without_its_dashes_is_recognised(run: Run, command: str, option: str) -> None:
    wrong = f"--{option[2:].replace('-', '_') if '-' in option[2:] else option[2:].upper()}"
    assert run(command, wrong)[2] == f"paramctl: no option {wrong}; write {option}\n"


@pytest.mark.parametrize("verb", ["tree", "ls", "stats", "ties"])
def test_selections_may_stand_behind_the_file(run: Run, file: str, verb: str) -> None:
    torch.save({"0.weight": torch.ones(2, 2), "1.weight": torch.zeros(2, 2)}, file)
    assert run(verb, file, "0", "1.weight") == run(verb, file, "--layer", "0", "-l", "1.weight")
    assert run(verb, file, "1") == run(verb, file, "-l", "1")
    code, out, err = run(verb, file, file)
    assert (code, out) == (1, "")
    assert err.endswith("m.pt is a file: 'paramctl diff' compares two, and others take one\n")


def test_diff_takes_selections_behind_its_files(run: Run, file: str) -> None:
    torch.save({"0.weight": torch.ones(2, 2), "1.weight": torch.zeros(2, 2)}, "n.pt")
    torch.save({"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2, 2)}, file)
    assert run("diff", file, "n.pt", "0", "-q")[0] == 0
    assert run("diff", file, "n.pt", "1", "-q")[0] == 1
