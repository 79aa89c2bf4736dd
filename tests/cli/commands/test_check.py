"""`paramctl check`: what is found, in a pipe, on a terminal and for programs; exit codes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from helpers import stdin_from, stdin_pipe
from safetensors.torch import save_file
from terminals import shown

from paramctl import __version__
from paramctl.findings import RULES

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., "subprocess.CompletedProcess[bytes]"]
ROOT = Path(__file__).parents[3]


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return subprocess.getoutput, ("true",)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory with a file in which nothing is wrong, and one in which much is."""
    monkeypatch.chdir(tmp_path)
    weight = torch.linspace(1, 2, 6).reshape(3, 2)
    torch.save({"weight": weight, "bias": torch.zeros(2)}, "fine.pt")
    nan = weight.clone()
    nan[0, 0] = float("nan")
    state = {
        "fc.weight": nan,
        "zero.weight": torch.zeros(3, 2),
        "norm.weight": torch.ones(2, 2),
        "x\x1b[31m\n": torch.tensor(float("nan")),
        "run": Runs(),
    }
    torch.save(state, "sick.pt")
    return tmp_path


@pytest.fixture
def shards(here: Path) -> Path:
    save_file({"a": torch.ones(2)}, here / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "../c"}}
    (here / "model.safetensors.index.json").write_text(json.dumps(index))
    return here


def terminal(code: int, columns: int, *args: str, **env: str) -> str:
    """Return what a terminal shows of a command that ends with `code`."""
    return shown(columns, *args, code=code, **env)


def expected(text: str) -> str:
    return dedent(text).lstrip("\n")


FINE = "fine.pt: nothing wrong (2 tensors; integrity, health, safety)\n"
SUMMARY = "sick.pt: 1 error, 3 warnings, 2 notes (4 tensors; integrity, health, safety)\n"
LINES = (
    "error\tsafety\tdangerous\t\t\tthe pickle names commands.getoutput, which runs a shell command\n"
    "warning\thealth\tnan\t\tfc.weight\t1 of 6 values is NaN\n"
    "warning\thealth\tall-zero\t\tzero.weight\tall 6 weights are zero\n"
    "warning\thealth\tnan\t\tx\\x1b[31m\\n\tis NaN\n"
    "note\thealth\tconstant\t\tnorm.weight\tall 4 weights are 1, the initial value of a scale\n"
    "note\tsafety\tweights-only\t\t\ttorch.load(weights_only=True) refuses it: 1 global: subprocess.getoutput\n"
)


def test_nothing_wrong(run: Run, here: Path) -> None:
    assert run("check", "fine.pt") == (0, "", FINE)
    assert run("check", "fine.pt", "--quiet") == (0, FINE, "")


def test_a_line_for_each_finding_the_worst_first(run: Run, here: Path) -> None:
    assert run("check", "sick.pt") == (1, LINES, SUMMARY)
    assert run("check", "sick.pt", "-q") == (1, SUMMARY, "")


def test_several_checkpoints(run: Run, here: Path) -> None:
    assert run("check", "-q", "fine.pt", "sick.pt") == (1, FINE + SUMMARY, "")
    code, out, err = run("check", "fine.pt", "sick.pt")
    assert (code, err) == (1, FINE + SUMMARY)
    assert {line.split("\t")[3] for line in out.splitlines()} == {"sick.pt"}
    assert [line.split("\t")[4] for line in out.splitlines()] == [line.split("\t")[4] for line in LINES.splitlines()]
    code, out, _ = run("check", "fine.pt", "sick.pt", "--json")
    both = json.loads(out)["checkpoints"]
    assert (code, [one["file"] for one in both]) == (1, ["fine.pt", "sick.pt"])
    assert {"schema": 1, **both[1]} == json.loads(run("check", "sick.pt", "--json")[1])
    sarif = json.loads(run("check", "fine.pt", "sick.pt", "--sarif")[1])
    assert sarif == json.loads(run("check", "sick.pt", "--sarif")[1])


def test_one_that_cannot_be_read_does_not_hide_the_others(run: Run, here: Path) -> None:
    missing = "paramctl: none.pt: no such file; check the path\n"
    assert run("check", "none.pt", "fine.pt") == (3, "", missing + FINE)
    assert run("check", "none.pt", "sick.pt", "-q") == (1, SUMMARY, missing)
    assert json.loads(run("check", "none.pt", "fine.pt", "--json")[1])["checkpoints"][0]["file"] == "fine.pt"
    assert run("check", "none.pt") == (3, "", missing)


def test_on_a_narrow_terminal(here: Path) -> None:
    assert terminal(1, 80, "check", "sick.pt", NO_COLOR="1") == expected("""
        error    safety     the pickle names commands.getoutput, which runs a shell
                            command
        warning  health     fc.weight: 1 of 6 values is NaN
        warning  health     zero.weight: all 6 weights are zero
        warning  health     x\\x1b[31m\\n: is NaN
        note     health     norm.weight: all 4 weights are 1, the initial value of a
                            scale
        note     safety     torch.load(weights_only=True) refuses it: 1 global:
                            subprocess.getoutput
        sick.pt: 1 error, 3 warnings, 2 notes (4 tensors; integrity, health, safety)
    """)


def test_on_a_wide_terminal(here: Path) -> None:
    assert terminal(1, 140, "check", "sick.pt", "--only", "safety", NO_COLOR="1") == expected("""
        error    safety     the pickle names commands.getoutput, which runs a shell command
        note     safety     torch.load(weights_only=True) refuses it: 1 global: subprocess.getoutput
        sick.pt: 1 error, 1 note (4 tensors; safety)
    """)
    assert terminal(0, 140, "check", "fine.pt") == FINE


RED = "\x1b[1;31merror    safety     \x1b[0mthe pickle names commands.getoutput, which runs a shell command\n"


def test_in_colour(run: Run, here: Path) -> None:
    assert terminal(1, 140, "check", "sick.pt", "--only", "safety").startswith(RED)
    assert terminal(1, 140, "check", "sick.pt", "--only", "safety", "--color", "never").startswith("error  ")
    assert "\x1b" not in run("check", "sick.pt", "--only", "safety")[1]


def test_forced_colour_does_not_reach_a_pipe_of_tab_separated_lines(spawn: Spawn, here: Path) -> None:
    done = spawn("check", "sick.pt", env={"FORCE_COLOR": "1"})
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (1, LINES, SUMMARY)


def test_a_bare_tensor_has_no_name(run: Run, here: Path) -> None:
    torch.save(torch.tensor([float("nan")]), "bare.pt")
    assert run("check", "bare.pt")[:2] == (1, "warning\thealth\tnan\t\t\tis NaN\n")
    assert terminal(1, 80, "check", "bare.pt", NO_COLOR="1").startswith("warning  health     .: is NaN\n")


def test_json(run: Run, here: Path) -> None:
    code, out, err = run("check", "sick.pt", "--only", "safety", "--json")
    assert (code, err) == (1, "sick.pt: 1 error, 1 note (4 tensors; safety)\n")
    refusal = "1 global: subprocess.getoutput"
    does = "runs a shell command"
    assert json.loads(out) == {
        "schema": 1,
        "file": "sick.pt",
        "findings": [
            {
                "level": "error",
                "group": "safety",
                "rule": "dangerous",
                "path": None,
                "what": f"the pickle names commands.getoutput, which {does}",
                "file": "",
            },
            {
                "level": "note",
                "group": "safety",
                "rule": "weights-only",
                "path": None,
                "what": f"torch.load(weights_only=True) refuses it: {refusal}",
                "file": "",
            },
        ],
        "safety": [
            {
                "part": "sick/data.pkl",
                "weights_only": False,
                "refusal": refusal,
                "globals": [{"name": "commands.getoutput", "does": does, "danger": "dangerous", "called": True}],
            }
        ],
        "tensors": 4,
        "files": 1,
    }


def test_json_of_nothing_wrong(run: Run, here: Path) -> None:
    part = {"part": "fine/data.pkl", "weights_only": True, "refusal": None, "globals": []}
    code, out, err = run("check", "fine.pt", "--json")
    assert (code, err) == (0, FINE)
    assert json.loads(out) == {
        "schema": 1, "file": "fine.pt", "findings": [], "safety": [part], "tensors": 2, "files": 1
    }  # fmt: skip
    assert json.loads(run("check", "fine.pt", "--json", "--only", "health")[1])["safety"] == []


def sarif(run: Run, *args: object) -> list[dict[str, Any]]:
    """Return the results of a document, which must be valid SARIF 2.1.0."""
    document = json.loads(run("check", *args, "--sarif")[1])
    assert set(document) == {"$schema", "version", "runs"} and document["version"] == "2.1.0"
    (one,) = document["runs"]
    driver = one["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("paramctl", __version__)
    rules = [rule["id"] for rule in driver["rules"]]
    assert len(set(rules)) == len(rules) and set(rules) == set(RULES)
    assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
    results: list[dict[str, Any]] = one["results"]
    for result in results:
        assert result["ruleId"] in rules and result["level"] in ("error", "warning", "note")
        assert result["message"]["text"] and len(result["locations"]) == 1
    return results


def test_sarif(run: Run, here: Path) -> None:
    where = {"physicalLocation": {"artifactLocation": {"uri": "sick.pt"}}}
    member = {"fullyQualifiedName": "fc.weight", "kind": "member"}
    assert sarif(run, "sick.pt")[:2] == [
        {
            "ruleId": "dangerous",
            "level": "error",
            "message": {"text": "the pickle names commands.getoutput, which runs a shell command"},
            "locations": [where],
            "properties": {"group": "safety"},
        },
        {
            "ruleId": "nan",
            "level": "warning",
            "message": {"text": "fc.weight: 1 of 6 values is NaN"},
            "locations": [{**where, "logicalLocations": [member]}],
            "properties": {"group": "health"},
        },
    ]
    assert sarif(run, "fine.pt") == []


def uris(results: list[dict[str, Any]]) -> list[str]:
    return [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results]


def test_sarif_names_files_as_a_uri_may(run: Run, here: Path) -> None:
    name = "a b:é%\udcff#?.pt"
    (here / name).write_bytes((here / "sick.pt").read_bytes())
    assert uris(sarif(run, name, "--only", "safety")) == ["a%20b%3A%C3%A9%25%ED%B3%BF%23%3F.pt"] * 2


def test_sarif_names_each_shard(run: Run, shards: Path) -> None:
    for name in (".", "model.safetensors.index.json"):
        assert uris(sarif(run, name)) == ["model.safetensors.index.json", "model-2.safetensors"]
    found = uris(sarif(run, shards))
    assert found == [f"{shards}/model.safetensors.index.json", f"{shards}/model-2.safetensors"]


def test_names_that_are_no_text(run: Run, here: Path) -> None:
    index = '{"weight_map": {"a\\u001b": "\\ud800.safetensors"}}'
    (here / "x.safetensors.index.json").write_text(index)
    what = "shard '\\ud800.safetensors' is no file name"
    assert run("check", ".")[:2] == (1, f"error\tintegrity\tshard-name\t\t\t{what}\n")
    assert [result["message"]["text"] for result in sarif(run, ".")] == [what]


def groups(run: Run, *args: object) -> tuple[set[str], str]:
    _, out, err = run("check", "sick.pt", *args)
    return {line.split("\t")[1] for line in out.splitlines()}, err.partition("; ")[2]


def test_only(run: Run, here: Path) -> None:
    assert groups(run) == ({"health", "safety"}, "integrity, health, safety)\n")
    assert groups(run, "--only", "health") == ({"health"}, "health)\n")
    assert groups(run, "--only", "safety") == ({"safety"}, "safety)\n")
    assert groups(run, "--only", "integrity") == (set(), "integrity)\n")
    assert groups(run, "--only", "safety", "--only", "health", "--only", "safety") == (
        {"health", "safety"}, "health, safety)\n"
    )  # fmt: skip


def test_a_group_that_is_none(run: Run, here: Path) -> None:
    message = "paramctl: there is no group 'hea\\x1blth'; name one of integrity, health, safety\n"
    assert run("check", "fine.pt", "--only", "hea\x1blth") == (2, "", message)


def test_two_documents_at_once(run: Run, here: Path) -> None:
    code, out, err = run("check", "fine.pt", "--json", "--sarif")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--json" in err and "--sarif" in err


def test_strict_counts_notes(run: Run, here: Path) -> None:
    torch.save({"norm.weight": torch.ones(2, 2)}, "note.pt")
    line = "note\thealth\tconstant\t\tnorm.weight\tall 4 weights are 1, the initial value of a scale\n"
    summary = "note.pt: nothing wrong, 1 note (1 tensor; integrity, health, safety)\n"
    assert run("check", "note.pt") == (0, line, summary)
    assert run("check", "note.pt", "--strict") == (1, line, summary)
    assert run("check", "fine.pt", "--strict")[0] == 0


def test_standard_input(run: Run, here: Path) -> None:
    summary = FINE.replace("fine.pt", "standard input")
    with stdin_pipe(Path("fine.pt").read_bytes()):
        assert run("check") == (0, "", summary)
    with stdin_pipe(Path("fine.pt").read_bytes()[:-1]):
        code, out, _ = run("check", "-")
        what = "is truncated or damaged: the zip directory at its end is missing"
        assert (code, out) == (1, f"error\tintegrity\tunreadable\t\t\t{what}\n")
    with Path("fine.pt").open("rb") as file, stdin_from(file.fileno()):
        assert run("check", "-") == (0, "", summary)
    with stdin_pipe(b""):
        line = "error\tintegrity\tunreadable\t\t\tis empty; check the command or the download that made it\n"
        assert run("check", "-")[:2] == (1, line)


def test_a_folder_with_an_index(run: Run, shards: Path) -> None:
    lines = (
        "error\tintegrity\tshard-name\t\t\tshard '../c' leads out of the folder of the index\n"
        "error\tintegrity\tshard-missing\tmodel-2.safetensors\t\tno such file, though the index names it\n"
    )
    summary = "model.safetensors.index.json: 2 errors (1 tensor; integrity, health, safety)\n"
    assert run("check", ".") == (1, lines, summary)
    assert run("check", "model.safetensors.index.json") == (1, lines, summary)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    Path("model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"b": torch.ones(2)}, "model-2.safetensors")
    summary = "model.safetensors.index.json: nothing wrong (2 tensors in 2 files; integrity, health, safety)\n"
    assert run("check", ".") == (0, "", summary)


def test_folders_without_an_index_and_with_two(run: Run, shards: Path) -> None:
    Path("empty").mkdir()
    message = "paramctl: empty: is a directory, not a checkpoint file; name a file in it\n"
    assert run("check", "empty") == (3, "", message)
    Path("pytorch_model.bin.index.json").write_text("{}")
    names = "model.safetensors.index.json, pytorch_model.bin.index.json"
    message = f"paramctl: .: is a directory with several indexes ({names}); name one of them\n"
    assert run("check", ".") == (2, "", message)


def test_what_cannot_be_checked(run: Run, here: Path) -> None:
    assert run("check", "x.pt") == (3, "", "paramctl: x.pt: no such file; check the path\n")
    os.mkfifo("pipe.pt")
    code, out, err = run("check", "pipe.pt")
    assert (code, out) == (3, "") and err.startswith("paramctl: pipe.pt: is a named pipe, not a checkpoint file; ")


def test_what_is_no_checkpoint(run: Run, here: Path) -> None:
    Path("page.pt").write_text("<!doctype html>")
    code, out, err = run("check", "page.pt", "--json")
    assert (code, [finding["rule"] for finding in json.loads(out)["findings"]]) == (1, ["unreadable"])
    assert err == "page.pt: 1 error (0 tensors; integrity, health, safety)\n"


def test_what_is_not_read_is_exit_code_3_unless_it_does_harm(run: Run, here: Path) -> None:
    line = "warning\tintegrity\tnot-read\t\t\tis a NumPy .npy file; this version does not read it\n"
    np.save("x.npy", np.ones(2))
    assert run("check", "x.npy") == (3, line, "x.npy: 1 warning (0 tensors; integrity, health, safety)\n")
    np.save("x.npy", np.array([Runs()], object))
    code, out, err = run("check", "x.npy")
    harm = "error\tsafety\tdangerous\t\t\tthe pickle names subprocess.getoutput, which runs a shell command\n"
    assert (code, out.startswith(harm), "unreadable" in out) == (1, True, False)
    assert err == "x.npy: 1 error, 1 warning, 2 notes (0 tensors; integrity, health, safety)\n"
    for group in ("integrity", "health"):
        assert run("check", "x.npy", "--only", group)[:2] == (3, line)
    assert run("check", "x.npy", "--only", "safety")[0] == 1


def test_a_folder_of_torch_distributed_that_is_damaged(run: Run, here: Path) -> None:
    Path("set").mkdir()
    Path("set/.metadata").write_bytes(b"")
    line = "error\tintegrity\tunreadable\t\t\tis empty; check the command or the download that made it\n"
    assert run("check", "set")[:2] == (1, line)
    Path("set/.metadata").write_bytes(pickle.dumps({"a": 1}))
    line = "error\tintegrity\tunreadable\t\t\tis no metadata of torch.distributed.checkpoint: it holds a dict\n"
    summary = "set/.metadata: 1 error (0 tensors; integrity, health)\n"
    assert run("check", "set", "--only", "integrity", "--only", "health") == (1, line, summary)
    assert run("check", "set", "-q")[0] == 1


def test_a_hostile_file_name(run: Run, here: Path) -> None:
    name = "\x1b[31m\u202efine.pt"
    Path("fine.pt").rename(name)
    assert run("check", name)[2] == FINE.replace("fine.pt", "\\x1b[31m\\u202efine.pt", 1)


def test_it_can_be_interrupted(here: Path) -> None:
    with Path("big.safetensors").open("wb") as file:  # a hole on the disk, but not to who reads it
        header = b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4_000_000_000)
    command = [sys.executable, "-m", "paramctl", "check", "big.safetensors"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings) as process:
        while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"paramctl: interrupted\n")
