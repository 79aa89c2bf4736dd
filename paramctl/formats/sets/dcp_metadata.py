"""The `.metadata` of torch.distributed.checkpoint: which tensors there are, in which chunks, and where those lie.

Reference: torch/distributed/checkpoint/metadata.py and filesystem.py. torch unpickles this file with no
restriction at all; here it is data like any other pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.formats.pickles.nodes import Call, Dict, Global, describe
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.pytorch.tensors import dtype_of, shape_of, without_size
from paramctl.model.budget import Budget
from paramctl.model.dtypes import DType
from paramctl.model.keys import path_of
from paramctl.model.shapes import Sizes, count, is_count, sizes

DEEPEST = 16  # keys that a name is joined from in any optimizer's state
MODULE = "torch.distributed."  # what all versions begin the names of these classes with

NAME = "dcp"  # of the format
INDEX = ".metadata"  # the file that names all others


class FileRange(NamedTuple):
    """A place in a file: `nbytes` bytes from `offset` on, changed by `transforms`, as compression does."""

    file: str
    offset: int
    nbytes: int
    transforms: tuple[str, ...] = ()


class Chunk(NamedTuple):
    """A box of a tensor: where it begins, its sizes, and the place of its values."""

    offsets: Sizes
    sizes: Sizes
    place: FileRange


class DcpTensor(NamedTuple):
    """A tensor, the chunks that make it up, and the places of chunks without values, of ranks that got none of it."""

    name: str
    dtype: DType
    shape: Sizes
    layout: str
    requires_grad: bool | None
    chunks: tuple[Chunk, ...]
    empty: tuple[FileRange, ...] = ()


class Blob(NamedTuple):
    """An object of its own, as torch.save wrote it."""

    name: str
    place: FileRange


class Metadata(NamedTuple):
    """Everything saved, in order, and for each name the keys that it was made of, where those are known."""

    items: tuple[DcpTensor | Blob, ...]
    keys: Mapping[str, tuple[object, ...]]


def read(pickle: Pickle) -> Metadata:
    """Return the content of a `.metadata`. Raises FormatError if it contradicts itself."""
    root = pickle.root
    fields = _fields(root, "Metadata")
    if fields is None:
        raise FormatError(f"is no metadata of torch.distributed.checkpoint: it holds {describe(root)}")
    described = fields.get("state_dict_metadata")
    if not isinstance(described, Dict):
        raise FormatError("names no tensors: it has no state_dict_metadata")
    budget = Budget(pickle.opcodes)
    places = _places(fields.get("storage_data"), budget)
    items = []
    seen: set[str] = set()
    for name, node in described.pairs:
        if not isinstance(name, str):
            raise FormatError(f"names something by {describe(name)}, not by a text")
        if name in seen:
            raise FormatError(f"names '{name}' twice")
        seen.add(name)
        items.append(_item(name, node, places, budget))
    return Metadata(tuple(items), dict(_keys(fields.get("planner_data"))))


def _fields(node: object, name: str) -> dict[str, Any] | None:
    """Return the attributes of an object of that class; None for anything else."""
    if type(node) is not Call or type(node.func) is not Global or node.func.name != name:
        return None
    if not node.func.module.startswith(MODULE):
        return None
    built = node.mutations
    state = built[0][1] if built and len(built) == 1 else node.state
    return {key: value for key, value in state.pairs if type(key) is str} if type(state) is Dict else {}


def _fields_of(node: object) -> int:
    """Return how many attributes an object has, which are all looked at each time it is met."""
    held = [value for verb, value in node.mutations or () if verb == "build"] if type(node) is Call else []
    return 1 + sum(len(state.pairs) for state in held if type(state) is Dict)


Places = Mapping[tuple[str, Sizes | None], FileRange]


def _places(node: object, budget: Budget) -> Places:
    """Return the place of each chunk, by the name of its tensor and its offsets; an object has no offsets."""
    if not isinstance(node, Dict):
        raise FormatError("does not say which files hold the values: it has no storage_data")
    found: dict[tuple[str, Sizes | None], FileRange] = {}
    for index, info in node.pairs:
        budget.spend(_fields_of(index) + _fields_of(info))
        fields = _fields(index, "MetadataIndex")
        name = fields.get("fqn") if fields else None
        if fields is None or not isinstance(name, str):
            raise FormatError("says where something lies, and not what: its MetadataIndex has no name")
        offset = fields.get("offset")
        key = name, None if offset is None else sizes(without_size(offset), name, "chunk offset")
        if key in found:
            raise FormatError(f"says twice where a chunk of '{name}' lies")
        found[key] = _place(name, info)
    return found


def _place(name: str, info: object) -> FileRange:
    fields = _fields(info, "_StorageInfo")
    if fields is None:
        raise FormatError(f"does not say where '{name}' lies: it has {describe(info)} for it")
    file = fields.get("relative_path")
    if not isinstance(file, str):
        raise FormatError(f"names no file for '{name}'")
    offset, nbytes = (
        count(fields.get(word), f"{word} of '{name}' is no count of bytes") for word in ("offset", "length")
    )
    return FileRange(file, offset, nbytes, tuple(_transforms(name, fields.get("transform_descriptors"))))


def _transforms(name: str, found: object) -> Iterator[str]:
    """Yield the transforms of the bytes of an entry before they were written."""
    if not isinstance(found, list | tuple | None):
        raise FormatError(f"'{name}' has transforms that are no list")
    for text in found or ():
        yield text if isinstance(text, str) else describe(text)


def _item(name: str, node: object, places: Places, budget: Budget) -> DcpTensor | Blob:
    budget.spend(_fields_of(node))
    tensor = _fields(node, "TensorStorageMetadata")
    if tensor is not None:
        return _tensor(name, tensor, places, budget)
    if _fields(node, "BytesStorageMetadata") is None:
        raise FormatError(f"describes '{name}' by {describe(node)}, which is neither a tensor nor an object")
    place = places.get((name, None))
    if place is None:
        raise FormatError(f"does not say where '{name}' lies")
    return Blob(name, place)


def _tensor(name: str, fields: dict[str, Any], places: Places, budget: Budget) -> DcpTensor:
    dtype, layout, requires_grad = _properties(name, fields.get("properties"))
    shape = shape_of(fields.get("size"), name)
    found = fields.get("chunks")
    if not isinstance(found, list):
        raise FormatError(f"tensor '{name}' has no list of chunks")
    chunks: list[Chunk] = []
    empty: list[FileRange] = []
    for node in found:
        budget.spend(_fields_of(node))
        offsets, extent = _box(name, node)
        if len(offsets) != len(shape) or len(extent) != len(shape):
            raise FormatError(f"tensor '{name}' of {len(shape)} dimensions has a chunk of {len(extent)}")
        place = places.get((name, offsets)) or (places.get((name, None)) if len(found) == 1 else None)
        if place is None:
            raise FormatError(f"does not say where the chunk of '{name}' at {offsets} lies")
        if 0 in extent:
            empty.append(place)
        else:
            chunks.append(Chunk(offsets, extent, place))
    return DcpTensor(name, dtype, shape, layout, requires_grad, tuple(chunks), tuple(empty))


def _box(name: str, node: object) -> tuple[Sizes, Sizes]:
    fields = _fields(node, "ChunkStorageMetadata")
    if fields is None:
        raise FormatError(f"tensor '{name}' has a chunk that is none: {describe(node)}")
    return (
        sizes(without_size(fields.get("offsets")), name, "chunk offset"),
        sizes(without_size(fields.get("sizes")), name, "chunk size"),
    )


def _properties(name: str, node: object) -> tuple[DType, str, bool | None]:
    """Return dtype, layout and requires_grad, which are a tuple in this order, or attributes."""
    if _fields(node, "TensorProperties") is None:
        raise FormatError(f"tensor '{name}' has no properties")
    assert isinstance(node, Call)
    state = node.state
    if isinstance(state, Dict):
        dtype, layout, requires_grad = (state.get(key) for key in ("dtype", "layout", "requires_grad"))
    elif isinstance(state, tuple) and len(state) >= 3:
        dtype, layout, requires_grad = state[:3]
    else:
        raise FormatError(f"tensor '{name}' has no properties")
    return dtype_of(dtype, name), _layout(layout), requires_grad if isinstance(requires_grad, bool) else None


def _layout(node: object) -> str:
    """Return `strided` for the call `_get_layout("torch.strided")`, or for the word itself."""
    word = node.args[0] if isinstance(node, Call) and isinstance(node.args, tuple) and node.args else node
    return word.removeprefix("torch.") if isinstance(word, str) else "strided"


def _keys(node: object) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield the keys that names were joined from, if they are plain."""
    for name, keys in node.pairs if isinstance(node, Dict) else ():
        if not isinstance(name, str) or not isinstance(keys, tuple) or len(keys) > DEEPEST:
            continue
        if all(isinstance(key, str) or is_count(key) for key in keys) and path_of(keys) == name:  # as torch joins them
            yield name, keys


def renaming(pickle: Pickle, names: Mapping[str, str]) -> dict[tuple[int, int], object]:
    """Return the replacements for `pickle_writer.write` that give the files of a `.metadata` other names."""
    fields = _fields(pickle.root, "Metadata") or {}
    storage_data = fields.get("storage_data")
    edits: dict[tuple[int, int], object] = {}
    for _, info in storage_data.pairs if isinstance(storage_data, Dict) else ():
        for i, (key, file) in enumerate(info.state.pairs):
            if key == "relative_path" and file in names:
                edits[id(info.state), i] = names[file]
    return edits
