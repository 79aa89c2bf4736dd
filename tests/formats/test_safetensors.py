"""safetensors files: the library lists the same, opens what we write, and what it forbids is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from helpers import changed_bytes, file_of, listing, raw, refused, rows, save, source_in_memory, streamed, ties
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, UsageError
from paramctl.files import targets
from paramctl.formats import registry, saving
from paramctl.formats import safetensors as safetensors_format
from paramctl.model.checkpoint import Checkpoint, contiguous
from paramctl.model.dtypes import BY_SAFETENSORS
from paramctl.values.arrays import read_index, read_values


def written(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file of a hand-made header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return file_of(path.parent, (len(text) if length is None else length).to_bytes(8, "little") + text + data, path.name)


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def saved(path: Path, made: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    safetensors.torch.save_file(made, path, metadata)
    return path


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def opened(path: Path) -> dict[str, torch.Tensor]:
    """What the library finds in a file; it refuses one that breaks its rules."""
    return safetensors.torch.load_file(path)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        "0.weight": torch.randn(3, 4),
        "0.bias": torch.randn(3),
        "1.weight": torch.randn(3, 4),
        "1.bias": torch.randn(3),
        "half": torch.randn(5).half(),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }


# --- listing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", BY_SAFETENSORS)
def test_every_dtype(tmp_path: Path, word: str) -> None:
    dtype = BY_SAFETENSORS[word]
    nbytes = dtype.nbytes(8)
    data = bytes(i % 2 if word == "BOOL" else i * 7 % 256 for i in range(nbytes))
    path = written(tmp_path / "x.safetensors", {"w": entry(word, [2, 4], 0, nbytes)}, data)
    with safetensors.safe_open(path, "np") as file:
        assert file.keys() == ["w"] and file.get_slice("w").get_dtype() == word
    checkpoint = listing(path)
    assert rows(checkpoint) == [("w", dtype.name, (2, 4), (4, 1))]
    values = read_values(checkpoint, checkpoint.params[0])
    assert values.shape == (2, 4)
    if dtype.bits % 8 == 0:
        assert values.tobytes() == data
    edited = save(set_values(checkpoint, "w[1,3] = 1").checkpoint, tmp_path / "y.safetensors")
    with safetensors.safe_open(edited, "np") as file:
        assert file.keys() == ["w"]
    again = listing(edited)
    new = read_values(again, again.params[0])
    assert new[1, 3] == 1
    assert new.tobytes()[: 7 * new.itemsize] == values.tobytes()[: 7 * new.itemsize]
    assert len(changed_bytes(path, edited)) <= max(dtype.itemsize, 1 if dtype.bits == 4 else 2)


def test_values_smaller_than_a_byte(tmp_path: Path) -> None:
    """The first of two lies in the low half of a byte, as ml_dtypes and torch have it."""
    path = written(tmp_path / "x.safetensors", {"w": entry("F4", [2, 2], 0, 2)}, b"\x21\x43")
    checkpoint = listing(path)
    assert read_values(checkpoint, checkpoint.params[0]).astype(float).tolist() == [[0.5, 1.0], [1.5, 2.0]]
    codes = np.array([1, 2, 3, 4], np.uint8).view(ml_dtypes.float4_e2m1fn)
    assert codes.astype(float).tolist() == [0.5, 1.0, 1.5, 2.0]
    assert read_index(checkpoint, checkpoint.params[0], (1, 0)).astype(float) == 1.5


@pytest.mark.parametrize(("word", "size"), [("F4", 4), ("F6_E2M3", 8)])
def test_setting_one_of_several_values_in_a_byte(tmp_path: Path, word: str, size: int) -> None:
    nbytes = BY_SAFETENSORS[word].nbytes(size)
    path = written(tmp_path / "x.safetensors", {"w": entry(word, [size], 0, nbytes)}, bytes([0x11] * nbytes))
    checkpoint = listing(path)
    before = read_values(checkpoint, checkpoint.params[0]).astype(float)
    for i in range(size):
        again = listing(save(set_values(checkpoint, f"w[{i}] = 2").checkpoint, tmp_path / "y.safetensors"))
        after = read_values(again, again.params[0]).astype(float)
        assert after[i] == 2
        assert np.delete(after, i).tolist() == np.delete(before, i).tolist()


def test_torch_pairs_of_4_bit_values(tmp_path: Path) -> None:
    pairs = torch.arange(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(2, 3)
    checkpoint = listing(saved(tmp_path / "x.safetensors", {"w": pairs}))
    assert rows(checkpoint) == [("w", "float4_e2m1fn", (2, 6), (6, 1))]


def test_a_listing_is_what_the_library_lists(tmp_path: Path) -> None:
    made = state()
    path = saved(tmp_path / "x.safetensors", made, {"format": "pt", "author": "ü"})
    checkpoint = listing(path)
    assert {p.path: p.shape for p in checkpoint.params} == {name: tuple(t.shape) for name, t in made.items()}
    assert [p.path for p in checkpoint.params] == [name for name in header_of(path) if name != "__metadata__"]
    assert checkpoint.metadata == {"format": "pt", "author": "ü"}
    assert all(read_values(checkpoint, p).tobytes() == raw(made[p.path]) for p in checkpoint.params)
    assert all(p.strides == contiguous(p.shape) and p.kind == "tensor" for p in checkpoint.params)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{}", b""),
        (b"{}      ", b""),
        (b'{"__metadata__":{}}', b""),
        (b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"x"),
        (b'{"a":{"dtype":"U8","shape":[0,5],"data_offsets":[0,0]}}', b""),
        (b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"xy"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"xyzab"),
        (b'{"a":{"shape":[1],"dtype":"U8","data_offsets":[0,1]},"e":{"dtype":"I8","shape":[0],"data_offsets":[1,1]}}', b"x"),
    ],
    ids=["empty", "padded", "no metadata", "scalar", "no values", "other order", "unaligned", "empty at the end"],
)  # fmt: skip
def test_what_the_library_accepts(tmp_path: Path, header: bytes, data: bytes) -> None:
    path = written(tmp_path / "x.safetensors", header, data)
    with safetensors.safe_open(path, "np") as file:
        keys = set(file.keys())
    checkpoint = listing(path)
    assert {p.path for p in checkpoint.params} == keys
    assert save(checkpoint, tmp_path / "y.safetensors").read_bytes() == path.read_bytes()


def test_aliases_are_ties(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_model(model, str(path), {"note": "x", "format": "1.weight"})
    checkpoint = listing(path)
    assert [p.path for p in checkpoint.params] == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert ties(checkpoint) == [["0.weight", "1.weight"]]
    assert checkpoint.metadata["note"] == "x"


# --- edits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["0.weight", "half", "count"])
def test_new_values_change_no_other_byte(tmp_path: Path, path: str) -> None:
    source = saved(tmp_path / "x.safetensors", state(), {"format": "pt"})
    edited = save(set_values(listing(source), f"{path} = 3").checkpoint, tmp_path / "y.safetensors")
    begin, end = header_of(source)[path]["data_offsets"]
    start = 8 + int.from_bytes(source.read_bytes()[:8], "little")
    assert changed_bytes(source, edited) <= {*range(start + begin, start + end)}
    after = opened(edited)
    assert (after[path] == 3).all()
    assert {name for name, tensor in state().items() if raw(tensor) != raw(after[name])} == {path}


def test_a_tie_is_an_alias_and_is_parted_again(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.safetensors", state(), {"format": "pt"})
    tied = save(tie(listing(source), "0", "1").checkpoint, tmp_path / "y.safetensors")
    assert header_of(tied)["__metadata__"] == {"format": "pt", "1.bias": "0.bias", "1.weight": "0.weight"}
    assert set(opened(tied)) == {"0.weight", "0.bias", "half", "count", "empty"}
    checkpoint = listing(tied)
    assert ties(checkpoint) == [["0.bias", "1.bias"], ["0.weight", "1.weight"]]
    assert [p.path for p in checkpoint.params if "." in p.path] == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert tied.stat().st_size < source.stat().st_size
    parted = save(untie(checkpoint, "1").checkpoint, tmp_path / "z.safetensors")
    assert header_of(parted)["__metadata__"] == {"format": "pt"}
    after = opened(parted)
    assert set(after) == set(state())
    assert torch.equal(after["1.weight"], state()["0.weight"])
    assert raw(after["half"]) == raw(state()["half"])


def test_values_of_a_tie_are_new_for_both(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.safetensors", state(), {"format": "pt"})
    tied = tie(listing(source), "0", "1").checkpoint
    again = listing(save(init(tied, ["1"], ["constant:4"], bias="constant:5").checkpoint, tmp_path / "y.safetensors"))
    values = {p.path: read_values(again, p) for p in again.params}
    assert (values["0.weight"] == 4).all() and (values["1.weight"] == 4).all() and (values["1.bias"] == 5).all()


def test_the_kept_name_may_be_the_later_one(tmp_path: Path) -> None:
    edit = tie(listing(saved(tmp_path / "x.safetensors", state())), "1.weight", "0.weight")
    path = save(edit.checkpoint, tmp_path / "y.safetensors")
    again = listing(path)
    assert ties(again) == [["0.weight", "1.weight"]]
    values = {p.path: read_values(again, p).tobytes() for p in again.params}
    assert values["0.weight"] == values["1.weight"] == raw(state()["1.weight"])
    opened(path)


def test_a_name_that_means_something_else_is_no_alias(tmp_path: Path) -> None:
    made = {"format": torch.ones(2), "a": torch.zeros(2)}
    checkpoint = listing(saved(tmp_path / "x.safetensors", made))
    edited = tie(checkpoint, "a", "format").checkpoint
    assert refused(UsageError, save, edited, tmp_path / "y.safetensors") == (
        "'format' cannot be tied: __metadata__ uses that name for something else;"
        " tie the others to it, or keep it untied"
    )
    assert not (tmp_path / "y.safetensors").exists()


def test_data_keeps_its_order(tmp_path: Path) -> None:
    header = {"z": entry("U8", [1], 2, 3), "a": entry("U8", [1], 0, 1), "m": entry("U8", [1], 1, 2)}
    checkpoint = listing(written(tmp_path / "x.safetensors", header, b"amz"))
    path = save(tie(checkpoint, "z", "m").checkpoint, tmp_path / "y.safetensors")
    assert list(header_of(path)) == ["__metadata__", "z", "a"]
    assert path.read_bytes().endswith(b"az")


def test_streams_are_the_file(tmp_path: Path) -> None:
    checkpoint = untie(tie(listing(saved(tmp_path / "x.safetensors", state())), "0", "1").checkpoint, "0").checkpoint
    path = save(checkpoint, tmp_path / "y.safetensors")
    assert streamed(checkpoint) == path.read_bytes()
    assert torch.equal(opened(path)["1.weight"], state()["0.weight"])


def test_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    """The library itself leaves 0600."""
    checkpoint = listing(saved(tmp_path / "x.safetensors", state()))
    plain = file_of(tmp_path, b"", "plain")
    assert save(checkpoint, tmp_path / "y.safetensors").stat().st_mode == plain.stat().st_mode


# --- hostile files -------------------------------------------------------------------------------

U8 = entry("U8", [1], 0, 1)
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "four bytes": (lambda p: file_of(p.parent, b"abcd", p.name), "is truncated: 4 bytes, and the header's length alone takes 8"),
    "header too long": (
        lambda p: written(p, b"{}", length=100_000_001),
        "claims a header of 100,000,001 bytes, over the format's limit of 100,000,000",
    ),
    "header cut": (lambda p: written(p, b"{}", length=10), "is truncated: its header takes 10 bytes, 2 are there"),
    "not UTF-8": (lambda p: written(p, b'{"\xff":1}'), "header is not UTF-8 (byte 10)"),
    "not JSON": (lambda p: written(p, b"{x"), "header is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    "list": (lambda p: written(p, b"[]"), "header is not a JSON object"),
    "NaN": (lambda p: written(p, b'{"a":NaN}'), "header is not JSON: NaN is not JSON"),
    "deep": (lambda p: written(p, b'{"a":' + b"[" * 100_000), "header is nested too deep"),
    "duplicate": (
        lambda p: written(p, b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "header names 'a' twice",
    ),
    "duplicate field": (lambda p: written(p, b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"), "header names 'dtype' twice"),
    "number": (lambda p: written(p, {"a": 5}), "tensor 'a' is not described by an object"),
    "no dtype": (lambda p: written(p, {"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x"), "tensor 'a' has no dtype"),
    "no shape": (lambda p: written(p, {"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"x"), "tensor 'a' has no shape"),
    "no offsets": (lambda p: written(p, {"a": {"dtype": "U8", "shape": [1]}}, b"x"), "tensor 'a' has no data_offsets"),
    "bad dtype": (lambda p: written(p, {"a": entry("F7", [1], 0, 1)}, b"x"), "tensor 'a' has the unknown dtype 'F7'"),
    "list as dtype": (lambda p: written(p, {"a": {**U8, "dtype": ["U8"]}}, b"x"), "tensor 'a' has the unknown dtype ['U8']"),
    "dtype and shape run together": (
        lambda p: written(p, {"a": entry("U16", [1], 0, 2), "b": {"dtype": "U1", "shape": "6[1]", "data_offsets": [2, 4]}}, b"xxyy"),
        "tensor 'b' has the unknown dtype 'U1'",
    ),
    "negative shape": (lambda p: written(p, {"a": entry("U8", [-1], 0, 1)}, b"x"), "tensor 'a' has a shape that is not a list of sizes"),
    "shape of floats": (lambda p: written(p, {"a": entry("U8", [1.0], 0, 1)}, b"x"), "tensor 'a' has a shape that is not a list of sizes"),
    "shape of bools": (lambda p: written(p, {"a": entry("U8", [True], 0, 1)}, b"x"), "tensor 'a' has a shape that is not a list of sizes"),
    "shape is a text": (lambda p: written(p, {"a": {**U8, "shape": "1"}}, b"x"), "tensor 'a' has a shape that is not a list of sizes"),
    "overflow": (lambda p: written(p, {"a": entry("U8", [2**62, 4], 0, 0)}), "tensor 'a' has a shape too large for any file"),
    "overflow to nothing": (lambda p: written(p, {"a": entry("U8", [2**62, 4, 0], 0, 0)}), "tensor 'a' has a shape too large for any file"),
    "half a byte": (lambda p: written(p, {"a": entry("F4", [3], 0, 2)}, b"xy"), "tensor 'a' does not fill its last byte: 3 elements of 4 bits"),
    "offsets backwards": (lambda p: written(p, {"a": entry("U8", [1], 1, 0)}, b"x"), "tensor 'a' has data_offsets that are not a begin and an end"),
    "negative offset": (lambda p: written(p, {"a": entry("U8", [1], -1, 0)}, b"x"), "tensor 'a' has data_offsets that are not a begin and an end"),
    "three offsets": (lambda p: written(p, {"a": {**U8, "data_offsets": [0, 1, 2]}}, b"x"), "tensor 'a' has data_offsets that are not a begin and an end"),
    "huge offset": (lambda p: written(p, {"a": entry("U8", [1], 2**64, 2**64 + 1)}, b"x"), "tensor 'a' has data_offsets that are not a begin and an end"),
    "size differs": (lambda p: written(p, {"a": entry("F32", [2], 0, 4)}, b"xxxx"), "tensor 'a' takes 8 bytes by its shape, 4 by its offsets"),
    "hole": (
        lambda p: written(p, {"a": U8, "b": entry("U8", [1], 2, 3)}, b"xyz"),
        "tensor 'b' begins at byte 2 of the data and leaves a hole before it",
    ),
    "hole at the start": (
        lambda p: written(p, {"b": entry("U8", [1], 1, 2)}, b"xy"),
        "tensor 'b' begins at byte 1 of the data and leaves a hole before it",
    ),
    "overlap": (
        lambda p: written(p, {"a": entry("U16", [1], 0, 2), "b": entry("U16", [1], 1, 3)}, b"xyz"),
        "tensor 'b' begins at byte 1 of the data and overlaps the one before it",
    ),
    "same bytes twice": (
        lambda p: written(p, {"a": U8, "b": U8}, b"x"),
        "tensor 'b' begins at byte 0 of the data and overlaps the one before it",
    ),
    "truncated": (lambda p: written(p, {"a": entry("U8", [9], 0, 9)}, b"x"), "is truncated: its tensors take 9 bytes, 1 are there"),
    "trailing": (lambda p: written(p, {"a": U8}, b"xyz"), "has 2 bytes after its last tensor that nothing describes"),
    "metadata is a list": (lambda p: written(p, {"__metadata__": []}), "__metadata__ is not an object"),
    "metadata of numbers": (lambda p: written(p, {"__metadata__": {"a": 1}}), "__metadata__ holds 'a', whose value is not a string"),
    "lone surrogate": (
        lambda p: written(p, b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "tensor name '\\ud800' is not valid Unicode",
    ),
    "lone surrogate in metadata": (
        lambda p: written(p, b'{"__metadata__":{"a":"\\ud800"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "__metadata__ holds 'a', whose value is not valid Unicode",
    ),
    "lone surrogate as a key of metadata": (
        lambda p: written(p, b'{"__metadata__":{"\\ud800":"a"}}'),
        "__metadata__ holds '\\ud800', whose value is not valid Unicode",
    ),
}  # fmt: skip
STRICTER = ("duplicate", "duplicate field")  # than the library, which its own documents ask for


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE[case]
    path = make(tmp_path / "x.safetensors")
    assert refused(FormatError, listing, path) == f"{path}: {message}"
    if case not in STRICTER:
        with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "np"):
            pass


HEADERS = [
    {"__metadata__": {"b": "a", "format": "pt"}, "a": entry("U8", [2], 0, 2), "c": entry("F16", [1, 1], 2, 4)},
    {"x": entry("I16", [], 0, 2), "y": entry("F4", [4], 2, 4), "z": entry("BOOL", [0], 4, 4)},
]


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_what_is_read_the_library_reads_too(data: st.DataObject) -> None:
    text = bytearray(json.dumps(data.draw(st.sampled_from(HEADERS))).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        new = st.binary(max_size=1) | st.sampled_from([b"0", b"1", b"2", b"-", b".", b"e", b'"', b",", b"[", b"]", b"{", b"}", b" "])
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(new)
    made = len(text).to_bytes(8, "little") + bytes(text) + bytes(4)
    try:
        checkpoint = safetensors_format.read(source_in_memory(made))
    except FormatError as error:
        assert "\n" not in str(error)
        return
    found = {name: (info["dtype"], info["shape"]) for name, info in safetensors.deserialize(made)}  # type: ignore[no-untyped-call]
    own = [p for p in checkpoint.params if p.path == p.storage]
    assert {p.path: (p.dtype.safetensors, list(p.shape)) for p in own} == found
    assert streamed(checkpoint) == made


def test_a_huge_number_is_no_traceback(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", b'{"a":' + b"9" * 5000 + b"}")
    assert refused(FormatError, listing, path).startswith(f"{path}: header is not JSON: Exceeds the limit")


def test_a_minus_zero_is_refused_as_the_library_does(tmp_path: Path) -> None:
    text = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}'
    path = written(tmp_path / "x.safetensors", text, b"x")
    assert refused(FormatError, listing, path) == f"{path}: header is not JSON: -0 is no size"
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2).expand(3, 2), "c": torch.ones(2, dtype=torch.complex128)}, tmp_path / "x.pt")
    checkpoint = listing(tmp_path / "x.pt")
    target = tmp_path / "y.safetensors"

    def write(made: Checkpoint) -> None:
        saving.save(made, targets.NewFile(target), registry.named("safetensors"))

    assert refused(UsageError, write, checkpoint) == (
        "safetensors cannot hold w (repeats a few values over its shape: stride 0);"
        " 'paramctl convert --lossy' leaves it out"
    )
    torch.save({"c": torch.ones(2, dtype=torch.complex128)}, tmp_path / "x.pt")
    message = (
        "safetensors cannot hold c (complex128, which safetensors has no word for);"
        " 'paramctl convert --lossy' leaves it out"
    )
    assert refused(UsageError, write, listing(tmp_path / "x.pt")) == message
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, tmp_path / "x.pt")
    message = "two tensors print as 'a.b', and safetensors has one name for each"
    assert refused(UsageError, write, listing(tmp_path / "x.pt")) == message
    torch.save({"__metadata__": torch.ones(1)}, tmp_path / "x.pt")
    message = "a tensor is called __metadata__, which safetensors keeps for itself"
    assert refused(UsageError, write, listing(tmp_path / "x.pt")) == message
    assert not target.exists()


def test_four_bit_values_that_torch_cannot_pair(tmp_path: Path) -> None:
    checkpoint = listing(written(tmp_path / "x.safetensors", {"w": entry("F4", [2, 3], 0, 3)}, b"xyz"))

    def write() -> None:
        saving.save(checkpoint, targets.NewFile(tmp_path / "y.pt"), registry.named("torch-zip"))

    assert refused(UsageError, write) == (
        "torch-zip cannot hold w (float4_e2m1fn with an odd last dimension, and torch has pairs);"
        " 'paramctl convert --lossy' leaves it out"
    )
    assert not (tmp_path / "y.pt").exists()
