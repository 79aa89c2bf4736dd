"""What every format promises, whichever it is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import listing, rows, save, stdin_from, stdin_pipe, streamed, ties
from old_torch import save_script, save_tar
from torch import nn

from paramctl.check.check import check
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, ParamctlError, Unsupported, UsageError
from paramctl.files import targets
from paramctl.findings import GROUPS, Group
from paramctl.formats import opening, saving
from paramctl.formats.protocol import AnyFormat, Format
from paramctl.formats.registry import FORMATS, SETS
from paramctl.model.checkpoint import Checkpoint
from paramctl.values.arrays import read_values


def state() -> dict[str, torch.Tensor]:
    """A small model: layers alike, half precision, integers, a scalar, and something empty."""
    torch.manual_seed(4)
    return {
        "0.weight": torch.randn(4, 3),
        "0.bias": torch.randn(4),
        "1.weight": torch.randn(4, 3),
        "1.bias": torch.randn(4),
        "head.weight": torch.randn(2, 4).bfloat16(),
        "steps": torch.tensor(12),
        "table": torch.arange(6).reshape(2, 3).short(),
        "empty": torch.empty(0, 2),
    }


def write_torch(path: Path) -> None:
    torch.save(state(), path)


def write_safetensors(path: Path) -> None:
    safetensors.torch.save_file(state(), path, {"format": "pt"})


def write_torch_legacy(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def write_torch_tar(path: Path) -> None:
    save_tar(state(), path)


class Held(nn.Module):
    """A module that holds what `state` does, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in state().items():
            layer, _, last = name.rpartition(".")
            if layer and not hasattr(self, layer):
                self.add_module(layer, nn.Module())
            self.get_submodule(layer).register_buffer(last, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_torchscript(path: Path) -> None:
    jit: Any = torch.jit
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        jit.save(jit.script(Held()), path)


def write_torch_export(path: Path) -> None:
    torch.export.save(torch.export.export(Held(), (torch.ones(1),)), path)


def write_torchscript_json(path: Path) -> None:
    module = Held()
    module.get_submodule("head").register_buffer("weight", state()["head.weight"].half())  # bfloat16 came later
    save_script(module, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "torch-zip": write_torch,
    "torchscript": write_torchscript,
    "torchscript-json": write_torchscript_json,
    "torch-export": write_torch_export,
    "torch-legacy": write_torch_legacy,
    "torch-tar": write_torch_tar,
    "safetensors": write_safetensors,
}


WRITTEN = [form for form in FORMATS if form.WRITES != "nothing"]
MADE_ANEW = [form for form in FORMATS if form.WRITES == "any"]
NOT_MADE_ANEW = [form for form in (*FORMATS, *SETS) if form.WRITES != "any"]


def name_of(form: AnyFormat) -> str:
    return form.NAME


def test_every_format_is_tested() -> None:
    assert set(WRITERS) == {form.NAME for form in FORMATS}


@pytest.fixture(params=FORMATS, ids=name_of)
def form(request: pytest.FixtureRequest) -> Format:
    """Each format; with `writable`, each that is written."""
    found: Format = request.param
    return found


writable = pytest.mark.parametrize("form", WRITTEN, ids=name_of, indirect=True)


@pytest.fixture
def path(form: Format, tmp_path: Path) -> Path:
    """A file as the format's own library writes it."""
    found = tmp_path / f"x{form.SUFFIXES[0]}"
    WRITERS[form.NAME](found)
    return found


@pytest.fixture
def target(path: Path) -> Path:
    return path.with_stem("y")


def values(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {p.path: read_values(checkpoint, p).tobytes() for p in checkpoint.params}


def told(checkpoint: Checkpoint) -> object:
    """All of a checkpoint that another may have as well."""
    return rows(checkpoint), values(checkpoint), ties(checkpoint), checkpoint.metadata


def test_a_file_is_known_by_its_bytes(form: Format, path: Path) -> None:
    renamed = path.rename(path.with_suffix(".bytes"))
    checkpoint = listing(renamed)
    assert checkpoint.format == form.NAME
    assert sorted(p.path for p in checkpoint.params) == sorted(state())
    assert checkpoint.file == str(renamed)


@writable
def test_a_save_without_a_change_is_a_copy(path: Path, target: Path) -> None:
    checkpoint = listing(path)
    save(checkpoint, target)
    assert target.read_bytes() == path.read_bytes()
    assert told(listing(target)) == told(checkpoint)


@writable
def test_one_seed_gives_one_file(path: Path, target: Path) -> None:
    once = save(init(listing(path), ["0", "head"], ["normal"], seed=9).checkpoint, target).read_bytes()
    again = save(init(listing(path), ["0", "head"], ["normal"], seed=9).checkpoint, target).read_bytes()
    other = save(init(listing(path), ["0", "head"], ["normal"], seed=10).checkpoint, target).read_bytes()
    assert once == again != other


@writable
def test_a_drawing_done_again_changes_nothing(path: Path, target: Path) -> None:
    once = save(init(listing(path), ["0"], ["normal"], seed=9).checkpoint, target).read_bytes()
    again = save(init(listing(target), ["0"], ["normal"], seed=9).checkpoint, target.with_stem("z")).read_bytes()
    assert once == again


@writable
@pytest.mark.parametrize("layers", [["0"], ["0.weight"], ["1.bias", "head"]])
def test_drawing_touches_only_what_was_named(path: Path, target: Path, layers: list[str]) -> None:
    before = listing(path)
    edit = init(before, layers, ["constant:0.75"], bias="constant:0.75")
    after = listing(save(edit.checkpoint, target))
    assert rows(after) == rows(before)
    named = {p for p in values(before) if any(p == layer or p.startswith(f"{layer}.") for layer in layers)}
    assert {p for p, data in values(before).items() if values(after)[p] != data} == named
    assert values(before) == values(listing(path))


@writable
def test_ties_come_and_go(path: Path, target: Path) -> None:
    before = listing(path)
    once = save(tie(before, "0", "1").checkpoint, target).read_bytes()
    tied = listing(target)
    assert sorted(map(sorted, ties(tied))) == [["0.bias", "1.bias"], ["0.weight", "1.weight"]]
    assert values(tied)["1.weight"] == values(before)["0.weight"]
    again = target.with_stem("z")
    assert save(tie(tied, "0", "1").checkpoint, again).read_bytes() == once
    assert save(tie(tie(before, "0", "1").checkpoint, "0", "1").checkpoint, again).read_bytes() == once
    parted = listing(save(untie(tied, "1").checkpoint, again))
    assert sorted(rows(parted)) == sorted(rows(before))
    assert ties(parted) == []
    expected = values(before)
    assert values(parted) == {**expected, "1.weight": expected["0.weight"], "1.bias": expected["0.bias"]}


@writable
def test_untying_and_tying_again_gives_back_the_listing(path: Path, target: Path) -> None:
    tied = listing(save(tie(listing(path), "0", "1").checkpoint, target))
    parted = listing(save(untie(tied, "1").checkpoint, target.with_stem("z")))
    again = listing(save(tie(parted, "0", "1").checkpoint, target.with_stem("w")))
    assert told(again) == told(tied)


@writable
def test_what_was_never_written_lists_the_same(path: Path, target: Path) -> None:
    """An edited checkpoint in memory and the file it makes are the same checkpoint."""
    edited = set_values(tie(listing(path), "0", "1").checkpoint, "1.weight[2,1] = 5", "table *= 3").checkpoint
    written = listing(save(edited, target))
    assert sorted(rows(written)) == sorted(rows(edited))
    assert values(written) == values(edited)
    assert sorted(map(sorted, ties(written))) == sorted(map(sorted, ties(edited)))


@writable
def test_a_pipe_gets_the_bytes_of_the_file(path: Path, target: Path) -> None:
    unchanged = listing(path)
    drawn = init(unchanged, ["0"], ["normal"], seed=1).checkpoint
    for checkpoint in (unchanged, drawn, tie(drawn, "0", "1").checkpoint, untie(tie(drawn, "0", "1").checkpoint, "0", "1").checkpoint):
        assert streamed(checkpoint) == save(checkpoint, target).read_bytes()


def test_standard_input_is_a_file_like_any_other(path: Path) -> None:
    expected = told(listing(path))
    for checkpoint in from_stdin(path):
        assert told(checkpoint) == expected
        assert checkpoint.file == "-"


@writable
def test_standard_input_is_edited_like_any_other_file(path: Path, target: Path) -> None:
    expected = save(set_values(listing(path), "0.bias = 1").checkpoint, target).read_bytes()
    for checkpoint in from_stdin(path):
        assert save(set_values(checkpoint, "0.bias = 1").checkpoint, target).read_bytes() == expected


def from_stdin(path: Path) -> tuple[Checkpoint, Checkpoint]:
    """The checkpoint as a pipe brings it, and as `< path` does."""
    with stdin_pipe(path.read_bytes()):
        piped = opening.open("-")
    fd = os.open(path, os.O_RDONLY)
    with stdin_from(fd):
        given = opening.open("-")
    os.close(fd)
    return piped, given


@pytest.mark.parametrize("other", MADE_ANEW, ids=lambda form: f"by way of {form.NAME}")
def test_conversion_there_and_back(form: Format, path: Path, tmp_path: Path, other: Format) -> None:
    before = listing(path)
    back = (form,) if form in MADE_ANEW else ()
    for checkpoint in there_and_back(before, tmp_path, other, *back):
        assert (rows(checkpoint), values(checkpoint), ties(checkpoint)) == (rows(before), values(before), [])
    tied = tie(before, "0", "1").checkpoint
    for checkpoint in there_and_back(tied, tmp_path, other, *back):
        assert (sorted(rows(checkpoint)), values(checkpoint)) == (sorted(rows(tied)), values(tied))
        assert ties(checkpoint) == ties(tied)


def there_and_back(checkpoint: Checkpoint, folder: Path, *through: Format) -> Iterator[Checkpoint]:
    """The checkpoint in one format after the other, each time read from its file."""
    for form in through:
        path = folder / f"{form.NAME}{form.SUFFIXES[0]}"
        saving.save(convert(checkpoint, form).checkpoint, targets.NewFile(path, True), form)
        checkpoint = listing(path)
        assert checkpoint.format == form.NAME
        yield checkpoint


@pytest.mark.parametrize("lossy", [False, True], ids=["", "lossy"])
@pytest.mark.parametrize("other", NOT_MADE_ANEW, ids=name_of)
def test_what_is_not_made_anew_is_refused_in_one_line(tmp_path: Path, other: AnyFormat, lossy: bool) -> None:
    """Whatever the checkpoint, and whether or not losses are accepted."""
    write_torch(tmp_path / "x.pt")
    for checkpoint in (listing(tmp_path / "x.pt"), tie(listing(tmp_path / "x.pt"), "0", "1").checkpoint):
        with pytest.raises(UsageError) as error:
            convert(checkpoint, other, lossy=lossy)
        assert "\n" not in str(error.value) and error.value.hint


@pytest.mark.parametrize("form", [form for form in FORMATS if form.WRITES == "nothing"], ids=name_of, indirect=True)
def test_what_is_only_read_is_never_written(form: Format, path: Path, target: Path) -> None:
    before, data = listing(path), path.read_bytes()
    for edit in (set_values(before, "0.bias = 1"), init(before, ["0"], ["zeros"]), tie(before, "0", "1")):
        for place in (targets.NewFile(target, True), targets.InPlace(before.sources[0])):
            for write in (saving.save, saving.plan):
                with pytest.raises(UsageError, match=f"paramctl reads {form.NAME} and does not write it"):
                    write(edit.checkpoint, place)
    assert path.read_bytes() == data
    assert not target.exists()


@pytest.mark.parametrize("group", GROUPS)
def test_a_sound_file_has_no_errors(path: Path, group: Group) -> None:
    found = [finding for finding in check(str(path), [group]).findings if finding.level != "note"]
    assert found == []


@writable
def test_in_place(path: Path) -> None:
    checkpoint = listing(path)
    saving.save(init(checkpoint, ["0"], ["zeros"]).checkpoint, targets.InPlace(checkpoint.sources[0]))
    after = listing(path)
    assert not any(values(after)["0.weight"]) and rows(after) == rows(checkpoint)


def test_a_cut_file_is_refused(form: Format, path: Path) -> None:
    """In one line, wherever it is cut; a name or a size alone never makes it a checkpoint."""
    data = path.read_bytes()
    for end in {0, 1, 7, 8, 9, 30, 100, len(data) // 2, len(data) - 30, len(data) - 1}:
        path.write_bytes(data[:end])
        try:
            listing(path)
        except (FormatError, Unsupported) as error:  # the first bytes of a pickle may be of one of any kind
            assert "\n" not in str(error) and str(error).startswith(f"{path}: ")
        else:
            raise AssertionError(f"{end} of {len(data)} bytes were read")


def test_any_flipped_byte_is_read_or_refused(form: Format, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), max(len(data) // 300, 1)):
        data[at] ^= 0x55
        path.write_bytes(data)
        data[at] ^= 0x55
        try:
            checkpoint = listing(path)
            values(checkpoint)
        except ParamctlError as error:
            assert "\n" not in str(error)
