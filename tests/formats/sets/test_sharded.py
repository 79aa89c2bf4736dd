"""Sets of shards: listed where the index says, edited shard by shard, and read back by the rules of transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import refused, ties
from set_files import BIN_INDEX, INDEX, Tensors, make, write_index
from verb_files import same

import paramctl
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FileError, FormatError, UsageError
from paramctl.files.targets import InPlace, NewFile
from paramctl.formats import opening, registry, saving
from paramctl.formats.sets import shard_division, sharded
from paramctl.formats.sets.shard_division import SAFETENSORS, TORCH, Division, division_for, shard_size
from paramctl.model.checkpoint import Checkpoint
from paramctl.values.arrays import read_values


def tensor(value: float) -> torch.Tensor:
    return torch.full((2, 3), float(value))


def state() -> list[Tensors]:
    """What two shards hold; safetensors puts the layers of the second in another order, by their spelling."""
    return [
        {"embed.weight": tensor(0), "layers.0.weight": tensor(1), "layers.1.weight": tensor(2)},
        {"layers.2.weight": tensor(3), "layers.10.weight": tensor(4), "norm.weight": torch.ones(3)},
    ]


def index(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.index.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def loaded(folder: Path) -> Tensors:
    """What transformers loads: every file that the index names, whole; all names it lists must be there."""
    found: Tensors = {}
    weight_map = index(folder)["weight_map"]
    for name in sorted(set(weight_map.values())):
        if name.endswith(".safetensors"):
            with safetensors.safe_open(folder / name, "pt") as file:
                assert file.metadata()["format"] == "pt"
                shard = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        else:
            shard = torch.load(folder / name, weights_only=True)
        assert found.keys().isdisjoint(shard)
        assert all(weight_map.get(key) == name for key in shard)
        found |= shard
    assert weight_map.keys() <= found.keys()
    return found


def opened(folder: Path) -> Checkpoint:
    return opening.open(str(folder))


def values(checkpoint: Checkpoint) -> dict[str, float]:
    """The first value of each tensor."""
    return {p.path: float(read_values(checkpoint, p).reshape(-1)[0]) for p in checkpoint.params}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_place(checkpoint: Checkpoint, *, patch: bool = False) -> int:
    return saving.save(checkpoint, InPlace(checkpoint.sources[0], patch))


# --- listing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".old.bin"])
def test_a_set_lists_its_shards_one_after_the_other(tmp_path: Path, suffix: str) -> None:
    folder = make(tmp_path / "set", state(), suffix)
    checkpoint = opened(folder)
    assert checkpoint.format == "sharded"
    assert values(checkpoint) == {
        "embed.weight": 0, "layers.0.weight": 1, "layers.1.weight": 2,
        "layers.2.weight": 3, "layers.10.weight": 4, "norm.weight": 1,
    }  # fmt: skip
    assert list(values(checkpoint)) == [
        param.path for name in names(folder) if name.endswith(suffix) for param in opening.open(str(folder / name)).params
    ]
    assert [Path(source.name).name for source in checkpoint.sources] == [
        *(name for name in names(folder) if name.endswith("index.json")),
        *(name for name in names(folder) if not name.endswith("index.json")),
    ]


def test_shards_are_sorted_by_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in (10, 9):
        safetensors.torch.save_file({f"{i}": tensor(i)}, folder / f"x-{i}.safetensors")
    write_index(folder, {"weight_map": {"10": "x-10.safetensors", "9": "x-9.safetensors"}})
    assert list(values(opened(folder))) == ["9", "10"]


def test_shards_of_two_formats_whose_names_would_be_mistaken(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    safetensors.torch.save_file({"2.bin/0": tensor(1), "1.safetensors/a": tensor(2)}, folder / "1.safetensors")
    torch.save({"a": tensor(3), "b": tensor(4)}, folder / "2.bin")
    weight_map = {"2.bin/0": "1.safetensors", "1.safetensors/a": "1.safetensors", "a": "2.bin", "b": "2.bin"}
    write_index(folder, {"weight_map": weight_map})
    assert values(opened(folder)) == {"1.safetensors/a": 2, "2.bin/0": 1, "a": 3, "b": 4}
    in_place(set_values(opened(folder), "a = 5").checkpoint)
    in_place(set_values(opened(folder), "2.bin/0 = 6").checkpoint)
    assert values(opened(folder)) == {"1.safetensors/a": 2, "2.bin/0": 6, "a": 5, "b": 4}


def test_the_index_itself_and_one_of_any_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state())
    assert opening.open(str(folder / INDEX)).file == opened(folder).file == str(folder / INDEX)
    renamed = (folder / INDEX).rename(folder / "other.json")
    assert opening.open(str(renamed)).format == "sharded"
    assert refused(UsageError, opened, folder).startswith(f"{folder}: is a directory with several checkpoints (")


def test_links_into_a_model_cache_are_read_and_never_written(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state())
    (blobs := tmp_path / "blobs").mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../blobs/{i}")
    checkpoint = opened(folder)
    assert values(checkpoint)["layers.10.weight"] == 4
    what = f"{folder / INDEX}: is a link into a model cache ({blobs / '2'}), which other links share"
    assert refused(UsageError, in_place, checkpoint) == f"{what}; write a copy with -o FILE"


@pytest.mark.parametrize(
    "document, message",
    [
        ({"weight_map": {}}, "index names no tensors"),
        ({"weight_map": {"a": "../x"}}, "shard '../x' leads out of the folder of the index"),
        ({"weight_map": {"a": "c:x"}}, "shard 'c:x' leads out of the folder of the index"),
        ({"weight_map": {"a": INDEX}}, f"shard '{INDEX}' is an index itself"),
        ({"weight_map": {"a": 3}}, "index has no weight_map of names to files"),
        ([], "index has no weight_map of names to files"),
        ({"weight_map": {"a": "1", "b": "1"}}, "shard 1 lacks b, which the index says it holds"),
        ({"weight_map": {"a": "1", "c": "2"}}, "shard 2 holds d, which the index does not list"),
        ({"weight_map": {"a": "1", "c": "1"}}, "shard 1 lacks c, which the index says it holds"),
    ],
)
def test_an_index_that_is_not_so_is_refused(tmp_path: Path, document: object, message: str) -> None:
    safetensors.torch.save_file({"a": tensor(1)}, tmp_path / "1")
    safetensors.torch.save_file({"c": tensor(1), "d": tensor(1)}, tmp_path / "2")
    path = tmp_path / INDEX
    path.write_text(json.dumps(document))
    assert refused(FormatError, opening.open, str(path)) == f"{path}: {message}"


def test_a_name_twice_in_the_index(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    path.write_text('{"weight_map": {"a": "1", "a": "2"}}')
    assert refused(FormatError, opening.open, str(path)) == f"{path}: index names 'a' twice"


def test_an_error_names_the_shard(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state())
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    what = "is truncated: its tensors take 60 bytes, 59 are there"
    assert refused(FormatError, opened, folder) == f"{shard}: {what}"
    shard.unlink()
    assert refused(FileError, opened, folder) == f"{shard}: no such file; check the path"
    shard.write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    assert refused(FormatError, opened, folder).startswith(f"{shard}: ")


def test_an_alias_that_only_the_index_knows(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state(), metadata={"lm_head.weight": "embed.weight", "note": "by hand"})
    checkpoint = opened(folder)
    assert list(values(checkpoint))[-1] == "lm_head.weight"
    assert ties(checkpoint) == [["embed.weight", "lm_head.weight"]]
    in_place(set_values(checkpoint, "lm_head.weight = 8").checkpoint)
    assert names(folder) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]
    assert values(opened(folder))["embed.weight"] == 8
    in_place(untie(opened(folder), "lm_head.weight").checkpoint)
    assert ties(opened(folder)) == [] and index(folder)["metadata"] == {"note": "by hand", "total_size": 156 + 24 - 24 + 0}
    assert same(loaded(folder)["lm_head.weight"], tensor(8))


# --- edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".old.bin"])
def test_values_change_in_the_one_shard_that_holds_them(tmp_path: Path, suffix: str) -> None:
    folder = make(tmp_path / "set", state(), suffix)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    in_place(set_values(opened(folder), "layers.10.weight = 9").checkpoint)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [name for name in before if before[name] != after[name]] == [name for name in names(folder) if "-00002-of" in name]
    expected = {path: value for shard in state() for path, value in shard.items()} | {"layers.10.weight": tensor(9)}
    assert all(same(expected[path], value) for path, value in loaded(folder).items())
    in_place(set_values(opened(folder), "layers.10.weight = 7").checkpoint, patch=True)
    assert same(loaded(folder)["layers.10.weight"], tensor(7)) and names(folder) == sorted(before)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".old.bin"])
def test_a_copy_keeps_the_names_and_all_that_did_not_change(tmp_path: Path, suffix: str) -> None:
    folder, copy = make(tmp_path / "set", state(), suffix), tmp_path / "copy"
    saving.save(opened(folder), NewFile(copy))
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
    edited = init(opened(folder), ["layers"], ["normal"], seed=3).checkpoint
    saving.save(edited, NewFile(tmp_path / "one"))
    saving.save(edited, NewFile(tmp_path / "two"))
    assert [p.read_bytes() for p in sorted((tmp_path / "one").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "two").iterdir())
    ]
    assert names(tmp_path / "one") == names(folder)
    whole = tmp_path / "whole.safetensors"
    saving.save(convert(opened(folder), registry.named("safetensors")).checkpoint, NewFile(whole))
    alone = init(opening.open(str(whole)), ["layers"], ["normal"], seed=3).checkpoint
    assert values(alone) == values(edited)  # a draw does not depend on the shards


def calls_to_save(checkpoint: Checkpoint, target: Path) -> int:
    """How many calls of functions it takes to write a set anew."""
    calls = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(counted)
    try:
        saving.save(checkpoint, NewFile(target))
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_of_writing_grows_with_the_set_and_not_faster(tmp_path: Path) -> None:
    took = []
    for n in (12, 48):
        shards = [{f"{i}.{j}.weight": torch.ones(1) for j in range(12)} for i in range(n)]
        edited = init(opened(make(tmp_path / f"set {n}", shards)), ["re:.*"], ["constant:2"], seed=1).checkpoint
        took.append(calls_to_save(edited, tmp_path / f"new {n}"))
    assert took[1] < 4.4 * took[0]


def test_several_shards_change_under_new_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state())
    in_place(set_values(opened(folder), "layers.0.weight = 8", "norm.weight = 5").checkpoint)
    new = ["model-00001-of-00002-edit1.safetensors", "model-00002-of-00002-edit1.safetensors"]
    assert names(folder) == [*new, INDEX]
    assert index(folder)["metadata"] == {"total_size": 132}
    assert same(loaded(folder)["layers.0.weight"], tensor(8)) and same(loaded(folder)["norm.weight"], torch.full((3,), 5.0))
    saving.save(opened(folder), NewFile(tmp_path / "copy"))
    assert names(tmp_path / "copy") == [*(name.replace("-edit1", "") for name in new), INDEX]
    assert all(same(loaded(folder)[path], value) for path, value in loaded(tmp_path / "copy").items())


@pytest.mark.parametrize("metadata", [None, [], "none"])
def test_a_tie_where_the_index_has_no_metadata_to_say_it_in(tmp_path: Path, metadata: object) -> None:
    folder = make(tmp_path / "set", state())
    (folder / INDEX).write_text(json.dumps({**index(folder), "metadata": metadata}))
    in_place(set_values(opened(folder), "layers.0.weight = 8", "norm.weight = 5").checkpoint)
    assert index(folder)["metadata"] == metadata
    in_place(tie(opened(folder), "layers.0.weight", "layers.10.weight").checkpoint)
    assert ties(opened(folder)) == [["layers.0.weight", "layers.10.weight"]]
    assert index(folder)["metadata"] == {"layers.10.weight": "layers.0.weight"}


def test_ties_within_a_shard_are_its_own_and_across_shards_the_indexs(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state())
    edit = tie(opened(folder), "layers.0.weight", "layers.1.weight", "layers.10.weight")
    in_place(edit.checkpoint)
    group = ["layers.0.weight", "layers.1.weight", "layers.10.weight"]
    assert ties(opened(folder)) == [group]
    assert index(folder)["metadata"] == {"layers.10.weight": "layers.0.weight", "total_size": 84}
    assert sorted(loaded(folder)) == ["embed.weight", "layers.0.weight", "layers.2.weight", "norm.weight"]
    with safetensors.safe_open(folder / "model-00001-of-00002-edit1.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "layers.1.weight": "layers.0.weight"}
    in_place(untie(opened(folder), "layers.0.weight").checkpoint)
    assert ties(opened(folder)) == [group[1:]]
    in_place(untie(opened(folder), "layers.1.weight").checkpoint)
    assert ties(opened(folder)) == []
    assert index(folder)["metadata"] == {"total_size": 132}
    assert {path: float(value.reshape(-1)[0]) for path, value in loaded(folder).items()} == {
        **values(opened(make(tmp_path / "first", state()))), **dict.fromkeys(group, 1.0),
    }  # fmt: skip


def test_an_alias_of_the_index_is_the_tensor_that_the_index_means(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", [{"x": tensor(1)}, {"u": tensor(2)}], metadata={"y": "x"})
    safetensors.torch.save_file({"u": tensor(2)}, folder / "model-00002-of-00002.safetensors", {"format": "pt", "x": "u"})
    checkpoint = opened(folder)
    (alias,) = (param for param in checkpoint.params if param.path == "y")
    assert read_values(checkpoint, alias).flat[0] == 1


def test_a_tie_that_the_index_cannot_say(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", [{"a": tensor(1)}, {"total_size": tensor(2)}])
    what = "total_size cannot be tied to a tensor of another shard: the index has something else of that name"
    message = f"{what}; tie the others to it, or keep it untied"
    assert refused(UsageError, in_place, tie(opened(folder), "a", "total_size").checkpoint) == message
    in_place(tie(opened(folder), "total_size", "a").checkpoint)
    assert ties(opened(folder)) == [["total_size", "a"]]


def test_a_set_of_no_tensors(tmp_path: Path) -> None:
    torch.save({"steps": 3}, tmp_path / "x.pt")
    made = convert(opening.open(str(tmp_path / "x.pt")), sharded, lossy=True).checkpoint
    what = "there is no tensor, and a set of shards needs one"
    assert refused(UsageError, saving.save, made, NewFile(tmp_path / "set"), sharded) == what
    assert not (tmp_path / "set").exists()


def test_a_shard_of_which_nothing_is_left_goes(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", [{"a": tensor(1)}, {"b": tensor(2)}])
    in_place(tie(opened(folder), "a", "b").checkpoint)
    assert names(folder) == ["model-00001-of-00002.safetensors", INDEX]
    assert ties(opened(folder)) == [["a", "b"]]
    in_place(untie(opened(folder), "b").checkpoint)
    assert {path: float(value[0, 0]) for path, value in loaded(folder).items()} == {"a": 1, "b": 1}


def test_ties_of_torch_shards(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state(), ".bin")
    what = "layers.10.weight cannot be tied to a tensor of another shard: torch-zip has no such ties"
    message = refused(UsageError, tie, opened(folder), "layers.0.weight", "layers.10.weight")
    assert message == f"{what}; make it one file first, with 'paramctl convert'"
    in_place(tie(opened(folder), "layers.0.weight", "layers.1.weight").checkpoint)
    assert ties(opened(folder)) == [["layers.0.weight", "layers.1.weight"]]
    assert index(folder)["metadata"] == {"total_size": 108}
    found = loaded(folder)
    assert found["layers.0.weight"].data_ptr() == found["layers.1.weight"].data_ptr()
    in_place(untie(opened(folder), "layers.1.weight").checkpoint)
    assert ties(opened(folder)) == [] and index(folder)["metadata"] == {"total_size": 132}
    assert same(loaded(folder)["layers.1.weight"], tensor(1))


# --- to and from one file --------------------------------------------------------------------------


def whole(tmp_path: Path) -> tuple[Path, Tensors]:
    made = {path: value for shard in state() for path, value in shard.items()}
    made["head.weight"] = made["embed.weight"]
    torch.save(made, tmp_path / "net.pt")
    return tmp_path / "net.pt", made


def test_one_file_becomes_a_set(tmp_path: Path) -> None:
    path, made = whole(tmp_path)
    edit = convert(opening.open(str(path)), sharded, division=Division(SAFETENSORS, 50))
    assert edit.notes == ("7 tensors (6 unique) in 3 safetensors files and an index",)
    saving.save(edit.checkpoint, NewFile(tmp_path / "set"), sharded)
    assert index(tmp_path / "set") == {
        "metadata": {"total_parameters": 33, "total_size": 132},
        "weight_map": {
            "embed.weight": "model-00001-of-00003.safetensors",
            "layers.0.weight": "model-00001-of-00003.safetensors",
            "layers.1.weight": "model-00002-of-00003.safetensors",
            "layers.10.weight": "model-00003-of-00003.safetensors",
            "layers.2.weight": "model-00002-of-00003.safetensors",
            "norm.weight": "model-00003-of-00003.safetensors",
        },
    }
    text = (tmp_path / "set" / INDEX).read_text()
    assert text.startswith('{\n  "metadata": {\n    "total_parameters": 33,') and text.endswith("\n  }\n}\n")
    assert all(same(made[name], value) for name, value in loaded(tmp_path / "set").items())
    assert ties(opened(tmp_path / "set")) == [["embed.weight", "head.weight"]]


def test_one_file_becomes_a_set_of_torch_files(tmp_path: Path) -> None:
    path, made = whole(tmp_path)
    edit = convert(opening.open(str(path)), sharded, division=Division(TORCH, 1))
    saving.save(edit.checkpoint, NewFile(tmp_path / "set"), sharded)
    assert names(tmp_path / "set") == [*(f"pytorch_model-{i:05}-of-00006.bin" for i in range(1, 7)), BIN_INDEX]
    found = loaded(tmp_path / "set")
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert sorted(found) == sorted(made) and all(same(made[name], value) for name, value in found.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".old.bin"])
@pytest.mark.parametrize("form", ["safetensors", "torch-zip"])
def test_a_set_becomes_one_file(tmp_path: Path, suffix: str, form: str) -> None:
    folder, out = make(tmp_path / "set", state(), suffix), tmp_path / "out"
    saving.save(convert(opened(folder), registry.named(form)).checkpoint, NewFile(out), registry.named(form))
    found = safetensors.torch.load_file(out) if form == "safetensors" else torch.load(out, weights_only=True)
    before = loaded(folder)
    assert sorted(found) == sorted(before) and all(same(before[path], value) for path, value in found.items())
    assert values(opening.open(str(out))) == values(opened(folder))


def test_a_set_becomes_another(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", state(), metadata={"head.weight": "norm.weight"})
    saving.save(convert(opened(folder), sharded, division=Division()).checkpoint, NewFile(tmp_path / "one"), sharded)
    assert names(tmp_path / "one") == ["model-00001-of-00001.safetensors", INDEX]
    assert ties(opened(tmp_path / "one")) == [["norm.weight", "head.weight"]]
    assert values(opened(tmp_path / "one")) == values(opened(folder))


def test_what_shards_have_no_place_for(tmp_path: Path) -> None:
    torch.save({"a": tensor(1), "epoch": 3}, tmp_path / "x.pt")
    checkpoint = opening.open(str(tmp_path / "x.pt"))
    what = "sharded cannot hold epoch (scalar); accept the loss with --lossy, or take one part with --layer"
    with pytest.raises(UsageError) as caught:
        convert(checkpoint, sharded, division=Division())
    assert str(caught.value) == what
    edit = convert(checkpoint, sharded, division=Division(TORCH), lossy=True)
    assert edit.notes == ("1 tensor in 1 torch-zip file and an index", "left out epoch (scalar)")
    saving.save(edit.checkpoint, NewFile(tmp_path / "set"), sharded)
    assert list(loaded(tmp_path / "set")) == ["a"]


def test_sizes() -> None:
    given = ["5GB", "500MB", "1GiB", "1.5kB", "12", "3 TB", "7B"]
    assert [shard_size(text) for text in given] == [5 * 10**9, 5 * 10**8, 2**30, 1500, 12, 3 * 10**12, 7]
    for text in ("5Gb", "GB", "-1", "0", "1e9", "", "0.1B"):
        assert refused(UsageError, shard_size, text) == f"'{text}' is no size of a shard; say it like 5GB, 500MB or 1GiB"


def test_what_makes_a_set() -> None:
    assert division_for("x.pt", None, None) is None
    assert division_for("x", "safetensors", None) is None
    assert division_for("x/", None, None) == Division(SAFETENSORS, shard_division.LIMIT)
    assert division_for("x/", "torch-zip", "1kB") == Division(TORCH, 1000)
    assert division_for("x", None, "1MB") == division_for("x/model.safetensors.index.json", None, "1MB")
    assert division_for("x.bin.index.json", None, None) == Division(TORCH)
    assert division_for("x", "sharded", None) == Division()
    assert division_for("x", "dcp", None) is division_for("x/", "dcp", None) is division_for("x/.metadata", None, None) is None
    what = "there are no shards in dcp; name one of safetensors, torch-zip"
    assert refused(UsageError, division_for, "x", "dcp", "1GB") == what
    what = "x.pt: is one file, and shards are several; name a directory, or an index such as model.safetensors.index.json"
    assert refused(UsageError, division_for, "x.pt", None, "1GB") == what
    what = "x.bin.index.json: is the index of torch-zip shards, not of safetensors; say --to torch-zip"
    assert refused(UsageError, division_for, "x.bin.index.json", "safetensors", None) == what


def test_the_python_door(tmp_path: Path) -> None:
    model = paramctl.open(make(tmp_path / "set", state()))
    assert model.format == "sharded" and model["layers"]["10"]["weight"].numpy()[0, 0] == 4
    model.set("norm.weight = 3").save(tmp_path / "new")
    assert paramctl.open(tmp_path / "new")["norm.weight"].torch().tolist() == [3, 3, 3]
    model.save(tmp_path / "one.pt")
    again = paramctl.open(tmp_path / "one.pt")
    again.save(f"{tmp_path}/shards/", max_shard_size="50B")
    assert names(tmp_path / "shards") == [*(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)), INDEX]
    again.save(tmp_path / "bins" / BIN_INDEX)
    assert names(tmp_path / "bins") == ["pytorch_model-00001-of-00001.bin", BIN_INDEX]
