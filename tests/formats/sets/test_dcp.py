"""Sets of torch.distributed.checkpoint, as torch and two of its processes write them."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_but, changed_bytes, listing, raw, refused, save, source_of, tensors
from safetensors import torch as safetensors_torch
from set_files import make, saved
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie
from paramctl.errors import FileError, FormatError, Unsupported, UsageError
from paramctl.files import targets, temporary, undo_journal
from paramctl.files.sources import Source
from paramctl.formats import opening, registry, safetensors, saving
from paramctl.formats.pytorch import zip_file
from paramctl.formats.sets import dcp as distributed
from paramctl.formats.sets import dcp_safetensors
from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.values.arrays import read_index, read_values

MAKER = Path(__file__).parents[2] / "make_distributed.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saved, and the same by torch.save; nobody changes it."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([sys.executable, MAKER, folder], check=True)
    return folder


@pytest.fixture
def sharded(made: Path, tmp_path: Path) -> Path:
    """A copy of the set of two processes."""
    return shutil.copytree(made / "sharded", tmp_path / "sharded")


def whole(made: Path) -> Any:
    return torch.load(made / "whole.pt", weights_only=True)


def without_tensors(found: Any) -> Any:
    """The same dicts and lists with a mark for each tensor."""
    if isinstance(found, dict):
        return {key: without_tensors(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(map(without_tensors, found))
    return "a tensor" if isinstance(found, torch.Tensor) else found


def as_torch_loads(folder: Path) -> Any:
    """What torch makes of a set."""
    dcp_to_torch_save(folder, folder.with_suffix(".loaded"))
    return torch.load(folder.with_suffix(".loaded"), weights_only=True)


def bytes_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {param.path: read_values(checkpoint, param).tobytes() for param in checkpoint.params}


def in_place(checkpoint: Checkpoint, patch: bool = False) -> int:
    return saving.save(checkpoint, targets.InPlace(checkpoint.sources[0], patch))


# --- reading -------------------------------------------------------------------------------------


def test_a_set_of_two_processes_is_listed(made: Path) -> None:
    found = listing(made / "sharded")
    assert found.format == "dcp"
    assert [(p.path, p.kind, p.dtype.name, p.shape) for p in found.params] == [
        ("model.rows.weight", "tensor", "float32", (8, 6)),
        ("model.columns.weight", "tensor", "float32", (8, 6)),
        ("model.columns.half", "tensor", "bfloat16", (3, 4, 6)),
        ("model.uneven", "tensor", "float32", (3, 5)),
        ("model.one_row", "tensor", "int64", (1, 6)),
        ("optim.state.rows.weight.exp_avg", "optimizer", "float32", (8, 6)),
        ("model.everywhere", "tensor", "float64", (5,)),
        ("model.plain", "tensor", "float32", (2, 3)),
        ("model.turned", "tensor", "float32", (3, 4)),
        ("model.count", "tensor", "int64", ()),
        ("model.empty", "tensor", "float32", (0, 4)),
        ("optim.state.rows.weight.step", "optimizer", "float32", ()),
    ]
    assert [entry for entry in found.entries if isinstance(entry, Leaf)] == [
        Leaf("optim.param_groups.0.lr", 0.1),
        Leaf("optim.param_groups.0.betas", [0.9, 0.999]),
        Leaf("optim.param_groups.0.params", ["rows.weight"]),
        Leaf("step", 12),
        Leaf("name", "run"),
        Leaf("nothing", None),
    ]
    assert [Path(source.name).name for source in found.sources] == [".metadata", "__0_0.distcp", "__1_0.distcp"]


def test_values_are_put_together_from_rows_and_columns(made: Path) -> None:
    assert bytes_of(listing(made / "sharded")) == {path: raw(t) for path, t in tensors(whole(made)).items()}


def test_a_slice_is_that_of_the_whole(made: Path) -> None:
    found, held = listing(made / "sharded"), tensors(whole(made))
    for path in ("model.rows.weight", "model.columns.weight"):
        param = next(param for param in found.params if param.path == path)
        part = read_index(found, param, (slice(2, 6), slice(1, 5)))
        np.testing.assert_array_equal(part, held[path][2:6, 1:5].numpy())


@pytest.mark.parametrize("name", ["model.rows.weight", "model.columns.weight"])
def test_damage_to_one_chunk_is_seen(sharded: Path, name: str) -> None:
    found = listing(sharded)
    data = read_values(found, next(param for param in found.params if param.path == name))
    part = data[4:] if "rows" in name else np.ascontiguousarray(data[:, 3:])
    file = sharded / "__1_0.distcp"
    before = file.read_bytes()
    at = before.index(part.tobytes())
    file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    found = listing(sharded)
    param = next(param for param in found.params if param.path == name)
    what = {
        "model.rows.weight": "storage model.rows.weight is corrupt: its bytes do not match their CRC-32",
        "model.columns.weight": "chunk of 'model.columns.weight' in __1_0.distcp is corrupt:"
        " its bytes do not match their CRC-32",
    }
    assert refused(FormatError, read_values, found, param) == what[name]
    assert [(one.path, one.rule, one.file) for one in distributed.audit(found)] == [(name, "checksum", file.name)]


def test_a_sound_set_is_found_sound(made: Path) -> None:
    found = listing(made / "sharded")
    assert list(distributed.audit(found)) == []
    parts = [part for part, read in distributed.code(found.sources[0]) if read()]
    assert parts[:3] == [
        ".metadata",
        "__0_0.distcp: model.rows.weight: archive/data.pkl",
        "__1_0.distcp: model.rows.weight: archive/data.pkl",
    ]
    assert len(parts) == 1 + 12 + 6 + 6  # six tensors lie in two chunks, of which one is empty


def test_bytes_that_belong_to_nothing_are_told(sharded: Path) -> None:
    with (sharded / "__0_0.distcp").open("ab") as file:
        file.write(b"12345")
    assert [one.what for one in distributed.audit(listing(sharded))] == ["5 bytes belong to no tensor and no object"]


def test_the_form_that_is_one_safetensors_file_is_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0), "step": 4, "b": torch.ones(2, 3, dtype=torch.int32)}
    folder = saved(tmp_path / "set", state, serialization_format=SerializationFormat.SAFETENSORS)
    found = listing(folder)
    assert bytes_of(found) == {"a": raw(state["a"]), "b": raw(state["b"])}  # type: ignore[arg-type]
    assert list(distributed.audit(found)) == []
    changed = init(found, ["a"], ["zeros"]).checkpoint
    assert refused(Unsupported, in_place, changed) == (
        "'a' is saved in the safetensors form of dcp, in which nothing is changed"
    )


def test_one_file_of_a_set_says_what_it_is(sharded: Path) -> None:
    message = refused(FormatError, listing, sharded / "__0_0.distcp")
    assert message.endswith("; it is one file of a set of torch.distributed: name the folder it is in")


def test_many_objects_are_listed_without_looking_into_them(tmp_path: Path) -> None:
    n = distributed.READ
    folder = saved(tmp_path / "set", {f"{i:03}": i for i in range(n + 7)} | {"big": "x" * 20_000})
    entries = listing(folder).entries
    assert entries[n - 1 : n + 1] == (Leaf(f"{n - 1}", n - 1), Leaf(f"{n}", "1,261 bytes that torch.save wrote", True))
    first = saved(tmp_path / "other", {"big": "x" * 20_000})
    assert [(entry.path, isinstance(entry, Leaf) and entry.is_object) for entry in listing(first).entries] == [
        ("big", True)
    ]


def test_a_pipe_has_no_files_beside_it(made: Path, tmp_path: Path) -> None:
    data = (made / "sharded" / ".metadata").read_bytes()
    source = source_of(tmp_path, data)
    piped = Source(source.fileno(), "-", None)
    try:
        assert refused(FileError, distributed.read, piped) == (
            "is an index, and came without the files beside it; name the directory"
        )
    finally:
        piped._fd = -1


# --- what contradicts itself ----------------------------------------------------------------------


def described(chunks: list[tuple[tuple[int, ...], tuple[int, ...]]], size: tuple[int, ...] = (4,)) -> Any:
    """The metadata of one tensor `w`, whose chunks lie one behind the other in a file."""
    places = {
        dcp.MetadataIndex("w", offsets): _StorageInfo("__0_0.distcp", 1000 * i, 1000)
        for i, (offsets, _) in enumerate(chunks)
    }
    boxes = [dcp.ChunkStorageMetadata(torch.Size(at), torch.Size(n)) for at, n in chunks]
    tensor = dcp.TensorStorageMetadata(dcp.TensorProperties(torch.float32), torch.Size(size), boxes)
    return dcp.Metadata({"w": tensor}, {"w": ("w",)}, places)


def why_refused(folder: Path, described: object, size: int = 4000) -> str:
    """What a listing says of such a `.metadata` beside a file of zeros."""
    (folder / "__0_0.distcp").write_bytes(bytes(size))
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    return refused(FormatError, listing, folder).removeprefix(f"{folder}: ")


TILES = "tensor 'w' has chunks that overlap, or leave some of it out"


@pytest.mark.parametrize(
    ("chunks", "what"),
    [
        ([((0,), (2,))], TILES),
        ([((0,), (2,)), ((3,), (1,))], TILES),
        ([((0,), (3,)), ((2,), (2,))], TILES),
        ([((0,), (2,)), ((2,), (3,))], TILES),
        ([], TILES),
        ([((0, 0), (4, 1))], "tensor 'w' of 1 dimensions has a chunk of 2"),
    ],
)
def test_chunks_that_do_not_make_up_their_tensor(tmp_path: Path, chunks: Any, what: str) -> None:
    assert why_refused(tmp_path, described(chunks)) == what


def _with_place(place: object) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        for index in metadata.storage_data:
            metadata.storage_data[index] = place

    return change


def _with(name: str, value: object) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata, name, value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_with_place(_StorageInfo("../x", 0, 100)), "names the file '../x', which leads out of the folder of the index"),
        (_with_place(_StorageInfo("/x", 0, 100)), "names the file '/x', which leads out of the folder of the index"),
        (_with_place(_StorageInfo("x", 0, 100)), "names the file 'x': no such file"),
        (_with_place(_StorageInfo(".metadata", 0, 100)), "names itself as the file of a tensor"),
        (_with_place(_StorageInfo("__0_0.distcp", -1, 100)), "offset of 'w' is no count of bytes"),
        (_with_place(_StorageInfo("__0_0.distcp", 0, True)), "length of 'w' is no count of bytes"),
        (
            _with_place(_StorageInfo("__0_0.distcp", 3000, 1001)),
            "'w' takes bytes 3,000 to 4,001 of __0_0.distcp, which has 4,000",
        ),
        (
            _with_place(_StorageInfo("__0_0.distcp", 0, 15)),
            "tensor 'w' has a chunk of 16 bytes, and 15 are saved for it",
        ),
        (_with("storage_data", None), "does not say which files hold the values: it has no storage_data"),
        (_with("storage_data", {}), "does not say where the chunk of 'w' at (0,) lies"),
        (_with("state_dict_metadata", None), "names no tensors: it has no state_dict_metadata"),
        (
            _with("state_dict_metadata", {"w": 1}),
            "describes 'w' by a int, which is neither a tensor nor an object",
        ),
        (_with("state_dict_metadata", {"w": dcp.BytesStorageMetadata()}), "does not say where 'w' lies"),
    ],
)
def test_metadata_that_contradicts_itself(tmp_path: Path, change: Callable[[Any], None], what: str) -> None:
    metadata = described([((0,), (4,))])
    change(metadata)
    assert why_refused(tmp_path, metadata) == what


def test_metadata_of_something_else(tmp_path: Path) -> None:
    assert why_refused(tmp_path, {"a": 1}) == "is no metadata of torch.distributed.checkpoint: it holds a dict"


def test_a_chunk_that_is_no_archive(tmp_path: Path) -> None:
    why = "chunk of 'w' in __0_0.distcp is no archive that torch.save or safetensors writes"
    (tmp_path / "__0_0.distcp").write_bytes(bytes(1000))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(described([((0,), (4,))])))
    found = listing(tmp_path)
    assert refused(FormatError, read_values, found, found.params[0]) == why
    assert [one.what for one in distributed.audit(found)] == [why]


def test_a_chunk_of_another_tensor(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", {"a": torch.zeros(4), "b": torch.zeros(4, dtype=torch.int64)})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    first, second = metadata.storage_data
    held = metadata.storage_data
    held[first], held[second] = held[second], held[first]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    found = listing(folder)
    assert refused(FormatError, read_values, found, found.params[0]) == (
        "chunk of 'a' in __0_0.distcp is not the float32 tensor of (4,) that the metadata says"
    )


def test_compressed_chunks_are_listed_and_not_read(tmp_path: Path) -> None:
    metadata = described([((0,), (4,))])
    _with_place(_StorageInfo("__0_0.distcp", 0, 10, ["zstd"]))(metadata)
    (tmp_path / "__0_0.distcp").write_bytes(bytes(10))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    found = listing(tmp_path)
    why = "'w' went through zstd when it was saved, which paramctl cannot undo"
    assert refused(Unsupported, read_values, found, found.params[0]) == (
        f"{why}; load and save it with torch, without extensions"
    )
    assert [(one.level, one.what) for one in distributed.audit(found)] == [("note", why)]


# --- edits ---------------------------------------------------------------------------------------

LAYERS = ["model.rows", "model.columns", "model.turned"]
DRAWN = {"model.rows.weight", "model.columns.weight", "model.columns.half", "model.turned"}


def test_a_new_set_differs_in_what_was_drawn(made: Path, tmp_path: Path) -> None:
    out = save(init(listing(made / "sharded"), LAYERS, ["normal"], seed=3).checkpoint, tmp_path / "out")
    pair = init(listing(made / "whole.pt"), LAYERS, ["normal"], seed=3).checkpoint
    expected = bytes_of(listing(save(pair, tmp_path / "pair.pt")))
    assert bytes_of(listing(out)) == expected
    loaded = as_torch_loads(out)
    assert {path: raw(tensor) for path, tensor in tensors(loaded).items()} == expected
    assert (loaded["step"], loaded["name"], loaded["nothing"]) == (12, "run", None)
    for name in ("__0_0.distcp", "__1_0.distcp"):
        assert changed_bytes(out / name, made / "sharded" / name)
    assert (out / ".metadata").read_bytes() == (made / "sharded" / ".metadata").read_bytes()


def test_a_change_of_several_files_in_place(made: Path, sharded: Path) -> None:
    in_place(set_values(listing(sharded), "model.columns.weight[0,1] = 5", "model.rows.weight[7] = 2").checkpoint)
    assert sorted(path.name for path in sharded.iterdir()) == [
        ".metadata",
        "__0_0-edit1.distcp",
        "__1_0-edit1.distcp",
    ]
    expected = whole(made)
    expected["model"]["columns.weight"][0, 1] = 5
    expected["model"]["rows.weight"][7] = 2
    held = {path: raw(tensor) for path, tensor in tensors(expected).items()}
    assert {path: raw(tensor) for path, tensor in tensors(as_torch_loads(sharded)).items()} == held
    assert list(distributed.audit(listing(sharded))) == []


def test_a_patch_touches_the_values_and_their_sums(made: Path, sharded: Path) -> None:
    in_place(set_values(listing(sharded), "model.plain[0,1] = 5").checkpoint, patch=True)
    assert 0 < len(changed_bytes(sharded / "__1_0.distcp", made / "sharded" / "__1_0.distcp")) <= 4 + 4 + 4
    assert (sharded / "__0_0.distcp").read_bytes() == (made / "sharded" / "__0_0.distcp").read_bytes()
    assert list(distributed.audit(listing(sharded))) == []


def test_rows_of_one_process_change_one_file(made: Path, sharded: Path) -> None:
    in_place(set_values(listing(sharded), "model.rows.weight[7] = 2").checkpoint)
    assert (sharded / "__0_0.distcp").read_bytes() == (made / "sharded" / "__0_0.distcp").read_bytes()
    expected = whole(made)
    expected["model"]["rows.weight"][7] = 2
    assert_same_but(tensors(whole(made)), _by_path(listing(sharded), expected), {"model.rows.weight"})


def _by_path(found: Checkpoint, expected: Any) -> dict[str, torch.Tensor]:
    held = tensors(expected)
    assert bytes_of(found) == {path: raw(tensor) for path, tensor in held.items()}
    return held


def test_nothing_but_values_can_change(made: Path, tmp_path: Path) -> None:
    found = listing(made / "sharded")
    tied = tie(found, "model.rows.weight", "model.columns.weight").checkpoint
    assert refused(Unsupported, save, tied, tmp_path / "out") == (
        "'model.columns.weight' cannot be tied or take another form: torch.distributed.checkpoint saves every tensor"
        " in full; make it one file with 'paramctl convert' first"
    )
    params = {0: found.params[0]._replace(path="other")}
    assert refused(Unsupported, save, found.with_params(params), tmp_path / "out") == (
        "torch.distributed.checkpoint sets keep their names and their number of tensors;"
        " make it one file with 'paramctl convert' first"
    )
    assert not (tmp_path / "out").exists()


def test_archives_that_torch_did_not_write_keep_their_size(tmp_path: Path) -> None:
    import zipfile

    folder = saved(tmp_path / "set", {"w": torch.zeros(4)})
    file, metadata = folder / "__0_0.distcp", pickle.loads((folder / ".metadata").read_bytes())
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "new", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    (index,) = metadata.storage_data
    metadata.storage_data[index] = _StorageInfo(file.name, 0, (tmp_path / "new").stat().st_size)
    (tmp_path / "new").rename(file)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert refused(Unsupported, in_place, init(listing(folder), ["w"], ["ones"]).checkpoint) == (
        "the archive of 'w' in __0_0.distcp would change its size: torch did not write it;"
        " make it one file with 'paramctl convert' first"
    )


def test_two_names_for_the_same_bytes(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", {"a": torch.zeros(4), "b": torch.ones(4)})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    first, second = metadata.storage_data
    metadata.storage_data[second] = metadata.storage_data[first]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    changed = init(listing(folder), ["a"], ["ones"]).checkpoint
    assert refused(Unsupported, in_place, changed) == "'a' and 'b' lie over the same bytes of __0_0.distcp"


# --- from and to other formats -------------------------------------------------------------------


@pytest.mark.parametrize(("form", "suffix"), [(zip_file, "pt"), (safetensors, "safetensors")])
def test_a_set_becomes_one_file(made: Path, tmp_path: Path, form: Any, suffix: str) -> None:
    one = convert(listing(made / "sharded"), form, lossy=True).checkpoint
    assert bytes_of(listing(save(one, tmp_path / f"x.{suffix}"))) == bytes_of(listing(made / "sharded"))


def test_one_file_becomes_a_set(made: Path, tmp_path: Path) -> None:
    source = listing(made / "whole.pt")
    out = tmp_path / "out"
    saving.save(convert(source, distributed).checkpoint, targets.NewFile(out), distributed)
    assert sorted(path.name for path in out.iterdir()) == [".metadata", "__0_0.distcp"]
    loaded = as_torch_loads(out)
    held = {path: raw(tensor) for path, tensor in tensors(whole(made)).items()}
    assert {path: raw(tensor) for path, tensor in tensors(loaded).items()} == held
    assert (loaded["step"], loaded["name"], loaded["optim"]["param_groups"][0]["lr"]) == (12, "run", 0.1)
    back = tmp_path / "back.pt"
    kind = registry.named("torch-zip")
    saving.save(convert(listing(out), kind).checkpoint, targets.NewFile(back), kind)
    assert without_tensors(torch.load(back)) == without_tensors(whole(made))  # numbers of params are numbers again
    again = tmp_path / "again"
    saving.save(convert(source, distributed).checkpoint, targets.NewFile(again), distributed)
    assert [(again / name).read_bytes() == (out / name).read_bytes() for name in (".metadata", "__0_0.distcp")] == [
        True,
        True,
    ]


def test_a_training_run_goes_on_from_a_set_that_was_one_file(tmp_path: Path) -> None:
    def state(steps: int) -> dict[str, Any]:
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (1 + steps))
        for _ in range(steps):
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
        return {"model": model.state_dict(), "optim": optimizer.state_dict(), "seen": [[1, 2], (3, None)]}

    saved, template = state(2), state(1)
    torch.save({**saved, "kinds": {int}, "none": {}}, tmp_path / "x.pt")
    source, out = listing(tmp_path / "x.pt"), tmp_path / "out"
    assert refused(UsageError, convert, source, distributed).startswith(
        "dcp cannot hold kinds (object), none (empty dict); "
    )
    saving.save(convert(source, distributed, lossy=True).checkpoint, targets.NewFile(out), distributed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_load(template, checkpoint_id=out, no_dist=True)
    assert_same_but(saved, template, set())
    assert {**template["optim"], "state": 0} == {**saved["optim"], "state": 0} and template["seen"] == saved["seen"]
    assert {e.path: e.value for e in listing(out).entries if isinstance(e, Leaf)} == {
        e.path: e.value for e in source.entries if isinstance(e, Leaf) and not e.is_object and e.value != {}
    }


def test_ties_are_saved_in_full_and_that_is_said(tmp_path: Path) -> None:
    first, second = torch.arange(6.0).view(2, 3), torch.ones(2)
    torch.save({"a": first, "b": second, "c": first, "d": second, "row": first[1]}, tmp_path / "x.pt")
    edit = convert(listing(tmp_path / "x.pt"), distributed)
    assert edit.notes == (
        "5 tensors as dcp",
        "c, d were tied, and have bytes of their own now",
        "a, row overlapped, and have bytes of their own now",
    )
    out = tmp_path / "out"
    saving.save(edit.checkpoint, targets.NewFile(out), distributed)
    assert_same_but({"a": first, "b": second, "c": first, "d": second, "row": first[1]}, as_torch_loads(out), set())
    tied = set_values(listing(tmp_path / "x.pt"), "b = 5").checkpoint
    again = tmp_path / "again"
    saving.save(convert(tied, distributed).checkpoint, targets.NewFile(again), distributed)
    assert as_torch_loads(again)["d"].tolist() == [5.0, 5.0]


def test_damage_to_the_file_that_becomes_a_set(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data.replace(raw(torch.arange(6.0)), raw(torch.ones(6))))
    source = convert(listing(tmp_path / "x.pt"), distributed).checkpoint
    assert refused(FormatError, saving.save, source, targets.NewFile(tmp_path / "out"), distributed) == (
        "storage 0 is corrupt: its bytes do not match their CRC-32"
    )
    assert not (tmp_path / "out").exists()


def test_every_dtype_that_torch_can_save(tmp_path: Path) -> None:
    names = ("float16", "bfloat16", "float64", "complex64", "complex128", "bool", "uint8", "uint16", "float8_e4m3fn")
    state = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    torch.save(state, tmp_path / "x.pt")
    out = tmp_path / "out"
    saving.save(convert(listing(tmp_path / "x.pt"), distributed).checkpoint, targets.NewFile(out), distributed)
    assert_same_but(state, as_torch_loads(out), set())
    assert bytes_of(listing(out)) == {name: raw(tensor) for name, tensor in state.items()}


# --- safetensors shards of the same writer -------------------------------------------------------

FIRST = "shard-00001-model-00001-of-00001.safetensors"
SECOND = "shard-00002-model-00001-of-00001.safetensors"


def test_shards_without_an_index_are_put_together(made: Path) -> None:
    held = tensors(whole(made)["model"])
    for name in (FIRST, SECOND):
        found = listing(made / "hf" / name)
        assert found.format == "dcp-safetensors"
        assert bytes_of(found) == {path: raw(held[path]) for path in ("columns.weight", "rows.weight")}


def test_changed_shards_load_in_torch(made: Path, tmp_path: Path) -> None:
    changed = init(listing(made / "hf" / FIRST), ["columns.weight"], ["ones"]).checkpoint
    out = save(changed, tmp_path / "out")
    loaded = {"rows.weight": torch.zeros(8, 6), "columns.weight": torch.zeros(8, 6)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp_load(loaded, storage_reader=HuggingFaceStorageReader(str(out)), no_dist=True)
    held = tensors(whole(made)["model"])
    assert [*map(raw, loaded.values())] == [raw(held["rows.weight"]), raw(torch.ones(8, 6))]


def test_shards_change_in_place_one_at_a_time(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "hf", tmp_path / "hf")
    both = init(listing(folder / FIRST), ["columns.weight"], ["ones"]).checkpoint
    assert refused(Unsupported, in_place, both) == (
        "several files would change, and no index says which count; write a copy with -o DIR"
    )
    in_place(set_values(listing(folder / FIRST), "rows.weight[7] = 4").checkpoint)
    expected = tensors(whole(made)["model"])["rows.weight"].clone()
    expected[7] = 4
    assert bytes_of(listing(folder / FIRST))["rows.weight"] == raw(expected)


def test_shards_open_by_their_folder(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "hf", tmp_path / "hf")
    (folder / "config.json").write_text("{}")
    (folder / f".{FIRST}.tmp.safetensors").write_bytes(b"")
    assert listing(folder).format == "dcp-safetensors"
    assert bytes_of(listing(folder)) == bytes_of(listing(folder / FIRST))
    assert (opening.locate(str(folder)), opening.locate(f"{folder}/")) == (str(folder / FIRST),) * 2
    in_place(set_values(listing(folder), "rows.weight[7] = 4").checkpoint)
    assert read_values(listing(folder), listing(folder).params[1])[7].tolist() == [4.0] * 6
    save(listing(folder), tmp_path / "out")
    assert bytes_of(listing(tmp_path / "out")) == bytes_of(listing(folder))


@pytest.mark.parametrize("other", ["model.safetensors", "shard-1.safetensors", "plain"])
def test_a_folder_that_holds_something_else_is_none(made: Path, tmp_path: Path, other: str) -> None:
    folder = shutil.copytree(made / "hf", tmp_path / "hf")
    if other == "plain":
        safetensors_torch.save_file({"w": torch.ones(2)}, folder / FIRST)
    else:
        shutil.copy(folder / FIRST, folder / other)
    assert refused(UsageError, listing, folder).startswith(f"{folder}: is a directory with several checkpoints (")


def test_an_index_in_the_folder_of_shards_comes_first(made: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "set", [{"a": torch.ones(2)}])
    shutil.copy(made / "hf" / FIRST, folder)
    assert listing(folder).format == "sharded"


def test_an_interrupted_patch_of_any_shard_is_rolled_back(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "hf", tmp_path / "hf")
    path, before = folder / SECOND, (folder / SECOND).read_bytes()
    torn = before[:-8] + bytes(8)
    for name in (folder, folder / FIRST):
        runs = [undo_journal.ChangedRange(len(torn) - 8, 8, zlib.crc32(before[-8:]), zlib.crc32(torn[-8:]))]
        with path.open("rb") as file, temporary.file_beside(path) as (fd, hidden):
            undo_journal._write(fd, file.fileno(), path, runs)
            undo_journal._publish(hidden, temporary.journal_of(path))
        path.write_bytes(torn)
        listing(name)
        assert path.read_bytes() == before
        assert not temporary.journal_of(path).exists()


def test_a_shard_that_is_missing_shows(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "hf" / SECOND, tmp_path)
    assert refused(FormatError, listing, tmp_path / SECOND) == (
        f"{tmp_path / SECOND}: tensor 'columns.weight' has parts that overlap, or leave some of it out"
    )


def test_shards_are_not_made_anew(made: Path, tmp_path: Path) -> None:
    whole = listing(made / "whole.pt")
    expected = "dcp-safetensors files are not made anew; name another format, such as --to dcp"
    assert refused(UsageError, partial(convert, lossy=True), whole, dcp_safetensors) == expected
    assert refused(UsageError, saving.save, whole, targets.NewFile(tmp_path / "out"), dcp_safetensors) == expected
