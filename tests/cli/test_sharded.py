"""Sets of shards on the command line: a directory is a checkpoint like any other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from verb_files import loaded, mlp, same, saved

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    path = saved(tmp_path, mlp().state_dict(), "net.pt")
    code, out, err = run("convert", path, "-o", f"{tmp_path}/set/", "--max-shard-size", "200B")
    assert (code, out) == (0, "")
    assert err.splitlines()[0] == "note: 9 tensors in 2 safetensors files and an index"
    return tmp_path / "set"


def test_looking(run: Run, folder: Path) -> None:
    code, out, err = run("ls", folder)
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["0.weight\ttensor\tfloat32\t8x4\t32\t128\t", "0.bias\ttensor\tfloat32\t8\t8\t32\t"]
    code, out, _ = run("ls", folder, "--json")
    document = json.loads(out)
    assert (document["file"], document["format"]) == (f"{folder}/{INDEX}", "sharded")
    code, out, _ = run("tree", folder)
    assert out.splitlines()[-1] == "9 tensors, 91 values, 368 B"
    assert run("diff", folder, folder.with_name("net.pt"))[0] == 0
    assert run("ties", folder)[:2] == (0, "")
    code, out, err = run("check", folder, "--only", "integrity")
    assert (code, out, err) == (0, "", f"{folder}/{INDEX}: nothing wrong (9 tensors in 2 files; integrity)\n")
    assert len(run("stats", folder)[1].splitlines()) == 9


def test_changing(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run("set", folder, "0.bias = 5", "-i", "--patch")
    assert (code, out) == (0, "") and "in place" in err
    code, _, err = run("init", folder, "-l", "3", "--scheme", "zeros", "--seed", "1", "-o", tmp_path / "new")
    assert (code, err.splitlines()[-1]) == (0, f"wrote {written(tmp_path / 'new')} to {tmp_path / 'new'}")
    assert run("convert", tmp_path / "new", "-o", tmp_path / "new.pt")[0] == 0
    found, before = loaded(tmp_path / "new.pt"), mlp().state_dict()
    assert {name for name in before if not same(before[name], found[name])} == {"0.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_set_that_torch_distributed_loads(run: Run, tmp_path: Path, slash: str) -> None:
    path = saved(tmp_path, mlp().state_dict(), "net.pt")
    code, out, err = run("convert", path, "--to", "dcp", "-o", f"{tmp_path}/dcp{slash}")
    assert (code, out, err.splitlines()[0]) == (0, "", "note: 9 tensors as dcp")
    assert sorted(each.name for each in (tmp_path / "dcp").iterdir()) == [".metadata", "__0_0.distcp"]
    assert run("diff", tmp_path / "dcp", path) == (0, "", "same: 9 tensors\n")
    sizes = run("convert", path, "--to", "dcp", "-o", f"{tmp_path}/new/", "--max-shard-size", "1kB")
    assert sizes == (2, "", "paramctl: there are no shards in dcp; name one of safetensors, torch-zip\n")


def test_recover_takes_a_directory(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("recover", folder) == (0, "", f"{folder}: there is nothing to undo\n")
    (empty := tmp_path / "empty").mkdir()
    line = f"paramctl: {empty}: is a directory, not a checkpoint file; name a file in it\n"
    assert run("recover", empty) == (3, "", line)


def test_the_help_of_convert_names_sets(run: Run) -> None:
    shown = " ".join(run("convert", "--help")[1].replace("│", " ").split())
    assert "--to dcp makes what torch.distributed.checkpoint loads" in shown
    assert "The format to write: safetensors, torch-zip or dcp." in shown


def written(folder: Path) -> str:
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    return f"{nbytes / 1024:.1f} KiB"


def test_what_a_set_cannot_be(run: Run, folder: Path, tmp_path: Path) -> None:
    edit = ("init", folder, "-l", "3", "--scheme", "zeros")
    hint = "write it to a directory with -o DIR, or make it one file with 'paramctl convert'"
    what = f"paramctl: {folder}: is a set of several files, and a pipe takes one; {hint}\n"
    assert run(*edit, "-o", "-") == (2, "", what)
    what = "'.pt' is a suffix of torch-zip files, and this would be sharded; run 'paramctl convert' to make x.pt"
    assert run(*edit, "-o", "x.pt") == (2, "", f"paramctl: {folder}: {what}\n")
    hint = "name a new directory for -o, or remove this one first"
    assert run(*edit, "-o", folder) == (2, "", f"paramctl: {folder}: holds a set already ({INDEX}); {hint}\n")
    hint = "name a file for -o, or run 'paramctl convert' to make a set of shards"
    net = tmp_path / "net.pt"
    what = f"paramctl: {tmp_path}/x/: is a directory, and this would be one file; {hint}\n"
    assert run("init", net, "-l", "3", "-o", f"{tmp_path}/x/") == (2, "", what)
    assert run("convert", net, "-o", f"{tmp_path}/x/", "--max-shard-size", "5Gb") == (
        2, "", "paramctl: '5Gb' is no size of a shard; say it like 5GB, 500MB or 1GiB\n",
    )  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_a_dry_run_writes_nothing(run: Run, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for how in (["-i"], ["-o", f"{folder}2"], []):
        code, out, err = run("set", folder, "0.bias = 1", "3.bias = 1", "-n", *how)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1].startswith("nothing was written (dry run); would write ")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and not Path(f"{folder}2").exists()
