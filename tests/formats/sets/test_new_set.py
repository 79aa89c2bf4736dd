"""A set format that no verb has heard of: `check` and `convert` treat it as its own module says, and need no change."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import set_files
import torch
from helpers import listing
from safetensors.torch import load_file

from paramctl.check.check import Report, check
from paramctl.edit.convert import convert
from paramctl.errors import FormatError
from paramctl.files.content import Literal
from paramctl.files.set_names import Part
from paramctl.files.sources import Source, open_source
from paramctl.files.targets import NewFile
from paramctl.findings import Finding
from paramctl.formats import registry, safetensors, saving
from paramctl.formats.protocol import SetFormat
from paramctl.formats.set_index import SetIndex
from paramctl.model.checkpoint import Checkpoint, Loss

MARK = b"SHELF1\n"
TOLD = Finding("note", "integrity", "gap", None, "the format of the set said so", "a.safetensors")


class Shelf:
    """A set of safetensors files and an index, a line of its own before the JSON of transformers.

    `is_apart` tells whether its files can be read alone, and so whether it gives `check` an index.
    """

    NAME = "shelf"
    SUFFIXES: tuple[str, ...] = (".shelf",)
    WRITES = "any"
    KEEPS_TIES = False
    KEEPS_METADATA = False
    is_apart = True

    def recognises(self, head: bytes, source: Source) -> bool:
        return head.startswith(MARK)

    def index(self, source: Source) -> SetIndex | None:
        return self._index(source) if self.is_apart else None

    def _index(self, source: Source) -> SetIndex:
        said = json.loads(source.read(len(MARK), source.size - len(MARK)))
        size = said["metadata"].get("total_size")
        return SetIndex(Path(source.name).absolute().parent, said["weight_map"], size, {}, said)

    def members(self, source: Source) -> Iterable[str]:
        return self._index(source).shards

    def read(self, source: Source) -> Checkpoint:
        index = self._index(source)
        shards = [safetensors.read(open_source(str(index.folder / name))) for name in index.shards]
        if sum(len(shard.params) for shard in shards) != len(index.weight_map):
            raise FormatError("a shelf lacks a tensor")
        saved = {key: storage for shard in shards for key, storage in shard.saved.items()}
        entries = tuple(param for shard in shards for param in shard.params)
        sources = (source, *(shard.sources[0] for shard in shards))
        return Checkpoint(self.NAME, source.name, entries, saved, sources=sources)

    def losses(self, checkpoint: Checkpoint) -> list[Loss]:
        return safetensors.losses(replace(checkpoint, document=None))

    def layout_set(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
        parts, weight_map = [], {}
        for i, param in enumerate(checkpoint.params):
            one = replace(checkpoint, entries=(param,), format="safetensors", metadata={}, document=None)
            name = names.get(f"{i}.safetensors", f"{i}.safetensors")
            weight_map[param.path] = name
            parts.append(Part(name, tuple(safetensors.layout(one)), f"{i}.safetensors"))
        text = MARK + json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        return [*parts, Part("all.shelf", (Literal(text),), "all.shelf")]

    def unlisted_tensors(self, checkpoint: Checkpoint) -> list[str]:
        return []

    def verify(self, path: Path, meant: Checkpoint) -> None:
        pass

    def verify_part(self, path: Path, was: str, meant: Checkpoint) -> None:
        pass

    def audit(self, checkpoint: Checkpoint, on_progress: object = None) -> Iterator[Finding]:
        yield TOLD

    def apart(self, source: Source, on_progress: object = None) -> Iterator[Finding]:
        yield TOLD

    def code(self, source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
        yield "shelf", lambda: b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR."


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Enter the format in the table, as one line of the registry would."""
    made: Any = Shelf()
    form: SetFormat = made
    monkeypatch.setattr(registry, "SETS", (form, *registry.SETS))
    monkeypatch.setattr(registry, "_TRIED", (form, *registry._TRIED))
    monkeypatch.setitem(registry.BY_NAME, form.NAME, form)
    return made  # type: ignore[no-any-return]


def lose_a_tensor(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    index["weight_map"].pop(random.choice(list(index["weight_map"])))


def invent_a_tensor(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    index["weight_map"]["nowhere"] = random.choice(names)


def misplace_a_tensor(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    path = random.choice(list(index["weight_map"]))
    index["weight_map"][path] = random.choice([name for name in names if name != index["weight_map"][path]])


def lead_out(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    index["weight_map"]["outside"] = "../other.safetensors"


def lie_about_the_size(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    index["metadata"]["total_size"] += 4


def cut_a_shard(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    path = folder / random.choice(names)
    path.write_bytes(path.read_bytes()[:-3])


def remove_a_shard(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    (folder / random.choice(names)).unlink(missing_ok=True)


def add_a_shard(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    (folder / re.sub("-00001-", "-00009-", names[0])).write_bytes(b"")


def plant_nan(index: dict[str, Any], folder: Path, names: list[str]) -> None:
    path = folder / names[-1]
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f") if path.exists() else None


FAULTS = [lose_a_tensor, invent_a_tensor, misplace_a_tensor, lead_out, lie_about_the_size, cut_a_shard,
          remove_a_shard, add_a_shard, plant_nan]  # fmt: skip


def both_reports(folder: Path) -> tuple[Report, Report]:
    """Return what `check` finds by the index of transformers, and by the same index as a shelf."""
    known = folder / set_files.INDEX
    (folder / "all.shelf").write_bytes(MARK + known.read_bytes())
    return check(str(known)), check(str(folder / "all.shelf"))


@pytest.mark.parametrize("seed", range(36))
def test_its_index_is_checked_as_that_of_transformers(shelf: Shelf, tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    states = [{f"layer{i}.{j}": torch.randn(3, 2) for j in range(3)} for i in range(3)]
    folder = set_files.make(tmp_path / "set", states)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    index = json.loads((folder / set_files.INDEX).read_text())
    faults = random.sample(FAULTS, seed % 4)
    for fault in faults:
        fault(index, folder, names)
    set_files.write_index(folder, index)
    known, new = both_reports(folder)
    assert new.findings == known.findings
    assert (new.tensors, new.files) == (known.tensors, known.files)
    assert bool(new.findings) == bool(faults)


def test_a_set_whose_files_cannot_be_read_alone_audits_itself(shelf: Shelf, tmp_path: Path) -> None:
    folder = set_files.make(tmp_path / "set", [{"a": torch.randn(3, 2)}, {"b": torch.randn(3, 2)}])
    shelf.is_apart = False
    _, report = both_reports(folder)
    assert [one for one in report.findings if one.group == "integrity"] == [TOLD]
    assert [one.rule for one in report.findings if one.group == "safety"][:1] == ["dangerous"]
    assert (report.tensors, report.files) == (2, 3)


def test_a_set_that_cannot_be_read_says_so_and_what_its_files_are(shelf: Shelf, tmp_path: Path) -> None:
    folder = set_files.make(tmp_path / "set", [{"a": torch.randn(3, 2)}, {"b": torch.randn(3, 2)}])
    index = json.loads((folder / set_files.INDEX).read_text())
    index["weight_map"]["c"] = index["weight_map"]["a"]
    set_files.write_index(folder, index)
    shelf.is_apart = False
    _, report = both_reports(folder)
    rules = [(one.rule, one.what) for one in report.findings if one.group == "integrity"]
    assert rules == [("unreadable", "a shelf lacks a tensor"), (TOLD.rule, TOLD.what)]


def test_convert_makes_it_and_reads_it(shelf: Shelf, tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 2), "b": torch.arange(5), "c": torch.randn(1, 4).bfloat16()}
    state["tied"] = state["a"]
    torch.save(state, tmp_path / "net.pt")
    form = registry.named("shelf")
    edit = convert(listing(tmp_path / "net.pt"), form)
    assert edit.notes[0] == "4 tensors as shelf"
    assert "tied was tied" in edit.notes[1]
    saving.save(edit.checkpoint, NewFile(tmp_path / "set.d", False), form)
    assert len([*(tmp_path / "set.d").iterdir()]) == 5
    made = listing(tmp_path / "set.d" / "all.shelf")
    assert made.format == "shelf"
    back = convert(made, registry.named("safetensors"))
    saving.save(back.checkpoint, NewFile(tmp_path / "back.safetensors", False), registry.named("safetensors"))
    loaded = load_file(tmp_path / "back.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[path], tensor) for path, tensor in state.items())
