"""Checkpoints that other projects ship: listed as torch lists them, edited, and nothing else changed.

`pytest -m real` fetches them (fetch.py), or takes the folder that PARAMCTL_REAL names. Nothing of a file is executed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from real.reference import Row, listing, load, raw, tensors

from paramctl.cli.app import main
from paramctl.formats import opening
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.values.arrays import read_values

pytestmark = pytest.mark.real

REAL = os.environ.get("PARAMCTL_REAL", "")
WHY_NOT = "no real checkpoint of this kind is there: they are fetched by 'pytest -m real'"
Run = Callable[..., tuple[int, str, str]]


def is_torch_zip(path: Path) -> bool:
    """Whether torch.save wrote it since 1.6, and it is not TorchScript."""
    if not zipfile.is_zipfile(path):
        return False
    names = [name.rpartition("/")[2] for name in zipfile.ZipFile(path).namelist()]
    return "data.pkl" in names and "constants.pkl" not in names


LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_torch_legacy(path: Path) -> bool:
    """Whether torch.save wrote it before 1.6."""
    with path.open("rb") as file:
        return file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC


FILES = sorted(p for p in Path(REAL).rglob("*") if p.is_file() and ".wheels" not in p.parts) if REAL else []
TORCH = [path for path in FILES if is_torch_zip(path) or is_torch_legacy(path)]
TARS = [path for path in FILES if path.suffix == ".tar" and tarfile.is_tarfile(path)]
SAFE = [path for path in FILES if path.suffix == ".safetensors"]
SCRIPTS = [path for path in FILES if path.suffix == ".jit"]  # see test_scripts.py
OTHERS = [path for path in FILES if path not in (*TORCH, *TARS, *SAFE, *SCRIPTS)]


def named(path: Path) -> str:
    return "/".join(path.relative_to(REAL).parts[::2][-3:])


def each(paths: list[Path]) -> pytest.MarkDecorator:
    """A test for each file, or one that says why there is none."""
    missing = pytest.param(None, marks=pytest.mark.skip(WHY_NOT), id="none")
    return pytest.mark.parametrize("path", [pytest.param(p, id=named(p)) for p in paths] or [missing])


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def held(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file by its path, as its own library loads it."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return dict(tensors(load(path)[0]))


def check_only(before: dict[str, torch.Tensor], out: Path, changed: set[str]) -> None:
    """Require that just those tensors differ."""
    after = held(out)
    assert list(after) == list(before) or out.suffix == ".safetensors"
    assert sorted(after) == sorted(before)
    assert {name for name in before if raw(before[name]) != raw(after[name])} <= changed


# --- looking -------------------------------------------------------------------------------------


def test_there_is_something_to_test() -> None:
    if not REAL:
        pytest.skip(WHY_NOT)
    found = [len(paths) for paths in (TORCH, TARS, SAFE, SCRIPTS, OTHERS)]
    with_repositories = any("+" in path.relative_to(REAL).parts[0] for path in FILES)
    assert found == ([40, 2, 5, 1, 25] if with_repositories else [24, 0, 2, 1, 19]), f"{REAL} is not what fetch.py makes"


@each(TORCH)
def test_a_torch_file_lists_as_torch_lists_it(run: Run, path: Path) -> None:
    assert told(run, path) == listing(load(path)[0])


@each(SAFE)
def test_a_safetensors_file_lists_as_safetensors_lists_it(run: Run, path: Path) -> None:
    code, out, err = run("ls", path, "--json")
    assert (code, err) == (0, "")
    found = {tensor["path"]: tensor for tensor in json.loads(out)["tensors"]}
    with safetensors.safe_open(path, "pt") as file:
        assert sorted(found) == sorted(file.keys())
        for name, tensor in found.items():
            values = file.get_tensor(name)
            assert tensor["dtype"] == str(values.dtype).removeprefix("torch.")
            assert tensor["shape"] == list(values.shape)
            assert (tensor["numel"], tensor["nbytes"]) == (values.numel(), values.numel() * values.element_size())
            assert tensor["tied_to"] is None


# Made by hand for another project, without a table of tensors: torch reads them in no version. Read off their bytes.
TAR_ROWS = {
    "tar_float32.tar": [Row("tensor", "float32", [4], 4, 16, None)],
    "tar_weight_bias.tar": [Row("weight", "float32", [2, 3], 6, 24, None), Row("bias", "float32", [2], 2, 8, None)],
}
TAR_VALUES: dict[str, dict[str, object]] = {
    "tar_float32.tar": {"tensor": [1, 2.5, -3.7, 0]},
    "tar_weight_bias.tar": {"weight": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], "bias": [0.01, 0.02]},
}


@each(TARS)
def test_a_tar_file_lists_as_its_bytes_say(run: Run, path: Path) -> None:
    assert told(run, path) == TAR_ROWS[path.name]
    for name, expected in TAR_VALUES[path.name].items():
        tensor = json.loads(run("show", path, name, "--json")[1])["tensors"][0]
        assert torch.tensor(tensor["values"]).equal(torch.tensor(expected))


def told(run: Run, path: Path) -> list[Row]:
    code, out, err = run("ls", path, "--json")
    assert (code, err) == (0, "")
    return [Row(*(tensor[name] for name in Row._fields)) for tensor in json.loads(out)["tensors"]]


@each(TARS)
def test_a_tar_file_is_edited(run: Run, path: Path, tmp_path: Path) -> None:
    """Values change where they lie, and convert; torch cannot say more of these files."""
    row = TAR_ROWS[path.name][0]
    before, out = path.read_bytes(), tmp_path / "out.pt"
    assert run("init", path, "--layer", row.path, "--scheme", "zeros", "-o", out)[0] == 0
    after = out.read_bytes()
    start = next(i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
    assert after[start + row.nbytes :] == before[start + row.nbytes :]
    assert told(run, out) == TAR_ROWS[path.name]
    assert run("convert", path, "-o", tmp_path / "out.safetensors")[0] == 0
    assert run("convert", path, "-o", tmp_path / "new.pt")[0] == 0
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    for name, expected in TAR_VALUES[path.name].items():
        assert found[name].equal(torch.tensor(expected)) and held(tmp_path / "new.pt")[name].equal(found[name])


@each(TARS)
def test_a_tar_file_keeps_every_other_byte(run: Run, path: Path, tmp_path: Path) -> None:
    """One element is four bytes; no two params are alike, so nothing can be tied and there is nothing to untie."""
    row = TAR_ROWS[path.name][0]
    before, out = path.read_bytes(), tmp_path / "out.tar"
    first = torch.tensor(TAR_VALUES[path.name][row.path]).reshape(-1)[0].item()
    where = f"[{','.join('0' for _ in row.shape)}]"
    assert run("set", path, f"{row.path}{where} = 42", "-o", out)[0] == 0
    assert out.read_bytes() == before.replace(struct.pack("<f", first), struct.pack("<f", 42), 1) != before
    assert run("untie", path, row.path, "-o", out, "-f")[0] == 0
    assert out.read_bytes() == before
    if len(TAR_ROWS[path.name]) > 1:
        code, printed, err = run("tie", path, "weight", "bias", "-o", tmp_path / "tied.tar")
        assert (code, printed) == (2, "")
        assert err == f"paramctl: {path}: cannot tie: weight is float32 2 × 3 and bias is float32 2\n"


@each([*TORCH, *TARS, *SAFE])
def test_its_tree_ends_with_the_totals(run: Run, path: Path) -> None:
    code, out, err = run("tree", path)
    assert (code, err) == (0, "")
    totals = json.loads(run("ls", path, "--json")[1])["totals"]
    assert out.splitlines()[-1].startswith(f"{totals['tensors']:,} tensor")


@each(OTHERS)
def test_what_cannot_be_read_yet_is_refused_in_one_line(run: Run, path: Path) -> None:
    code, out, err = run("tree", path)
    assert (code, out) == (3, "")
    assert err.startswith(f"paramctl: {path}: is ")
    assert err.count("\n") == 1


# --- changing ------------------------------------------------------------------------------------


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    """The file with a suffix of its format."""
    suffix = ".safetensors" if path in SAFE else ".pt"
    return Path(shutil.copy(path, tmp_path / f"copy{suffix}"))


def floats(checkpoint: Checkpoint) -> Iterator[tuple[int, Param]]:
    for i, param in enumerate(checkpoint.params):
        if param.is_plain and param.dtype.is_float and param.numel and not param.repeats_itself:
            yield i, param


def held_values(path: Path) -> dict[str, bytes]:
    """The bytes of every param, as paramctl reads them."""
    checkpoint = opening.open(str(path))
    return {param.path: read_values(checkpoint, param).tobytes() for param in checkpoint.params}


def with_tied(checkpoint: Checkpoint, index: int) -> set[str]:
    groups = [group for group in checkpoint.groups() if index in group]
    return {checkpoint.params[i].path for i in (groups[0] if groups else (index,))}


def loads_as_before(path: Path, out: Path) -> None:
    if path.suffix != ".safetensors":
        assert load(out)[1] == load(path)[1], "weights_only=True accepts both or neither"


@each([*TORCH, *SAFE])
def test_init_of_the_first_layer(run: Run, copy: Path) -> None:
    checkpoint = opening.open(str(copy))
    first = next((param for _, param in floats(checkpoint) if len(param.shape) > 1), None)
    if first is None:
        pytest.skip("it has no weights")
    layer = first.path.rpartition(".")[0] or first.path
    out = copy.with_name(f"out{copy.suffix}")
    code, report, err = run("init", copy, "--layer", layer, "--scheme", "normal", "--seed", "1", "-o", out, "--json")
    assert code == 0, err
    changed = json.loads(report)["changed"]
    paths = {path for change in changed for path in (change["path"], *change["also"])}
    assert first.path in paths
    check_only(held(copy), out, paths)
    loads_as_before(copy, out)


@each([*TORCH, *SAFE])
def test_set_one_element(run: Run, copy: Path) -> None:
    checkpoint = opening.open(str(copy))
    found = next(floats(checkpoint), None)
    if found is None:
        pytest.skip("it has no floats")
    index, param = found
    out = copy.with_name(f"out{copy.suffix}")
    where = f"[{','.join('0' for _ in param.shape)}]" if param.shape else ""
    code, _, err = run("set", copy, f"{param.path}{where} = 0.5", "-o", out)
    assert code == 0, err
    check_only(held(copy), out, with_tied(checkpoint, index))
    assert held(out)[param.path].reshape(-1)[0] == 0.5
    loads_as_before(copy, out)


@each([*TORCH, *TARS, *SAFE, *SCRIPTS])
def test_a_patch_makes_the_same_file(run: Run, path: Path, tmp_path: Path) -> None:
    found = next(floats(opening.open(str(path))), None)
    if found is None:
        pytest.skip("it has no floats")
    param = found[1]
    where = f"[{','.join('0' for _ in param.shape)}]" if param.shape else ""
    patched, out = Path(shutil.copy(path, tmp_path / f"patched{path.suffix}")), tmp_path / f"out{path.suffix}"
    assert run("set", path, f"{param.path}{where} = 0.5", "-o", out)[0] == 0
    code, _, err = run("set", patched, f"{param.path}{where} = 0.5", "-i", "--patch")
    if code:
        assert err.count("\n") == 1 and patched.read_bytes() == path.read_bytes()
        pytest.skip(err)
    assert held_values(patched) == held_values(out)


@each([*TORCH, *SAFE])
def test_tie_two_params_and_untie_them(run: Run, copy: Path) -> None:
    checkpoint = opening.open(str(copy))
    pairs = combinations([(i, p) for i, p in floats(checkpoint) if i not in checkpoint.tied_to], 2)
    same = ((a, b) for a, b in pairs if (a[1].shape, a[1].dtype) == (b[1].shape, b[1].dtype) and a[1].view != b[1].view)
    found = next(same, None)
    if found is None:
        pytest.skip("no two of its params are alike")
    (_, one), (index, other) = found
    tied, untied = copy.with_name(f"tied{copy.suffix}"), copy.with_name(f"untied{copy.suffix}")
    code, _, err = run("tie", copy, one.path, other.path, "-o", tied)
    assert code == 0, err
    assert any({one.path, other.path} <= {*group} for group in ties(run, tied))
    if copy.suffix != ".safetensors":
        check_only(held(copy), tied, with_tied(checkpoint, index))
        after = held(tied)
        assert after[one.path].data_ptr() == after[other.path].data_ptr()
        loads_as_before(copy, tied)
    code, _, err = run("untie", tied, other.path, "-o", untied)
    assert code == 0, err
    after = held(untied)
    assert raw(after[one.path]) == raw(after[other.path]) == raw(held(copy)[one.path])
    assert after[one.path].data_ptr() != after[other.path].data_ptr()
    check_only(held(copy), untied, {other.path})
    loads_as_before(copy, untied)


def ties(run: Run, path: Path) -> list[list[str]]:
    found: list[list[str]] = json.loads(run("ties", path, "--json")[1])["groups"]
    return found


@each(TORCH)
def test_convert_to_safetensors(run: Run, copy: Path) -> None:
    out = copy.with_suffix(".safetensors")
    code, _, err = run("convert", copy, "-o", out)
    before = held(copy)
    if code == 2:
        assert " cannot hold " in err and err.count("\n") == 1 and not out.exists()
        code, _, err = run("convert", copy, "-o", out, "--lossy")
    assert code == 0, err
    with safetensors.safe_open(out, "pt") as file:
        aliases = {name: kept for name, kept in (file.metadata() or {}).items() if name in before}
    after = held(out)
    after |= {name: after[kept] for name, kept in aliases.items()}
    assert sorted(after) == sorted(before)
    assert all(raw(after[name]) == raw(before[name]) and after[name].shape == before[name].shape for name in before)


@each(SAFE)
def test_convert_to_torch(run: Run, copy: Path) -> None:
    out = copy.with_suffix(".pt")
    code, _, err = run("convert", copy, "-o", out)
    assert code == 0, err
    check_only(held(copy), out, set())
    assert load(out)[1]
