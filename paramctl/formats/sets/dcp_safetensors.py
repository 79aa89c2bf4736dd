"""What torch's HuggingFaceStorageWriter makes when every process saves for itself: safetensors files without an index,
each with parts of the tensors, and a note of where each part begins.

Reference: torch/distributed/checkpoint/hf_storage.py. Any of the files stands for all that lie beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from paramctl.errors import FileError, FormatError, Unsupported, UsageError
from paramctl.files.set_names import WITHOUT_INDEX, Part
from paramctl.files.sources import Source, open_source
from paramctl.formats import safetensors
from paramctl.formats.containers import strict_json
from paramctl.formats.protocol import Writes
from paramctl.formats.sets.chunk_grid import (
    Box,
    BoxContent,
    concatenated,
    is_concatenation,
    made_once,
    taken,
    tile,
    woven,
)
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Loss, Param, Storage, View, contiguous
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "dcp-safetensors"
SUFFIXES: tuple[str, ...] = ()  # their names end as those of other safetensors files do
WRITES: Writes = "own"
KEEPS_TIES = False
KEEPS_METADATA = False
INFO = "DCP_SHARDING_INFO"


class TensorPiece(NamedTuple):
    """The piece of a tensor that one file has."""

    file: str
    box: Box


class DcpShardsDocument(NamedTuple):
    """The parts needed to write the files back: each as it was read, the pieces of each tensor, and what was listed."""

    files: Mapping[str, Checkpoint]
    pieces: Mapping[str, tuple[TensorPiece, ...]]
    listed: tuple[tuple[str, View], ...]


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a safetensors file says that it holds parts of tensors, and has a name of such a file."""
    is_called_so = WITHOUT_INDEX.fullmatch(Path(source.name).name) is not None
    return source.path is not None and INFO.encode() in head and is_called_so


def read(source: Source) -> Checkpoint:
    """List all files beside the one that is named. Raises FormatError where they contradict one another."""
    this, others = _own_name(source), _beside(source)
    files = {name: _listed(source, None if name == this else name) for name in sorted({this, *others})}
    found: dict[str, list[tuple[Param, TensorPiece]]] = {}
    for file, checkpoint in files.items():
        offsets = _offsets(checkpoint, file)
        for param in checkpoint.params:
            found.setdefault(param.path, []).append((param, TensorPiece(file, _box(param, offsets, file))))
    params = tuple(_whole(path, parts) for path, parts in found.items())
    pieces = {path: tuple(piece for _, piece in parts) for path, parts in found.items()}
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=params,
        saved=_Storages(files, {param.path: param for param in params}, pieces),
        sources=(source, *(one.sources[0] for one in files.values() if one.sources[0] is not source)),
        document=DcpShardsDocument(files, pieces, tuple((param.path, param.view) for param in params)),
    )


def members(source: Source) -> Iterable[str]:
    """Return the files that lie beside the one that is named."""
    return _beside(source)


def index(source: Source) -> None:
    """Return None: the files hold parts of tensors, which are checked as one."""


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return none for a set that was read. Raises UsageError for anything else: a new set is not written."""
    if not isinstance(checkpoint.document, DcpShardsDocument):
        raise UsageError(f"{NAME} files are not made anew", hint="name another format, such as --to dcp")
    return []


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return no places: a file of this format holds nothing but its params."""
    return []


def verify(path: Path, meant: Checkpoint) -> None:
    """Open a file that was just written with the library itself."""
    safetensors.verify(path, meant)


def verify_part(path: Path, was: str, meant: Checkpoint) -> None:
    """Open a file that was just written with the library itself."""
    safetensors.verify(path, meant)


def layout_set(checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
    """Return the files, unchanged except for values that changed. Raises Unsupported for any other change."""
    document = checkpoint.document
    assert isinstance(document, DcpShardsDocument), "losses() refused it"
    if names:
        raise Unsupported("several files would change, and no index says which count", hint="write a copy with -o DIR")
    if tuple((param.path, param.view) for param in checkpoint.params) != document.listed:
        what = f"{NAME} files keep their names, and every tensor its own bytes"
        raise Unsupported(what, hint="make it one file with 'paramctl convert' first")
    changed = _changed(checkpoint, document)
    this = _own_name(checkpoint.sources[0])
    return [
        Part(name, tuple(safetensors.layout(one.with_storages(changed.get(name, {})))), name)
        for name, one in sorted(document.files.items(), key=lambda item: item[0] == this)
    ]


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about any of the files."""
    from paramctl.findings import Finding

    document = checkpoint.document
    assert isinstance(document, DcpShardsDocument)
    for name, one in document.files.items():
        yield from (finding._replace(file=name) for finding in safetensors.audit(one, on_progress))
    what = "no file says how many there are, or how large a tensor is: one that is missing shows only by a gap"
    yield Finding("note", "integrity", "no-index", None, what)


def apart(source: Source, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about each file that can be read, and why others cannot."""
    from paramctl.findings import unreadable

    this = _own_name(source)
    for name in sorted({this, *_beside(source)}):
        try:
            one = _listed(source, None if name == this else name)
        except FileError as error:
            yield unreadable(error.what, name)
            continue
        yield from (finding._replace(file=name) for finding in safetensors.audit(one, on_progress))


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield no pickles: loading these files runs nothing."""
    yield from ()


def _own_name(source: Source) -> str:
    """Return the final name of a file: while it is written its name is longer."""
    found = WITHOUT_INDEX.search(Path(source.name).name)
    return found[0] if found else Path(source.name).name


def _beside(source: Source) -> list[str]:
    """Return the other files of a set, in the order of their numbers."""
    if source.path is None:
        raise FileError("is one of several files, and came without the others", hint="name one in their directory")
    names = (path.name for path in Path(source.name).absolute().parent.iterdir())
    return sorted(name for name in names if WITHOUT_INDEX.fullmatch(name) and name != _own_name(source))


def _listed(source: Source, name: str | None) -> Checkpoint:
    """Return the listing of one of the files; the one that is open already is not opened again."""
    if name is None:
        return safetensors.read(source)
    try:
        return safetensors.read(open_source(str(Path(source.name).absolute().parent / name)))
    except FormatError as error:
        raise FormatError(f"{name}: {error.what}", hint=error.hint) from None


def _offsets(checkpoint: Checkpoint, file: str) -> Mapping[str, object]:
    """Return the start of each part, as a file's metadata notes it."""
    found = strict_json.parse(checkpoint.metadata.get(INFO, "null"), f"{INFO} of {file}")
    if not isinstance(found, dict):
        raise FormatError(f"{file} does not say which parts of its tensors it holds ({INFO})")
    return found


def _box(param: Param, offsets: Mapping[str, object], file: str) -> Box:
    note = offsets.get(param.path)
    found = note.get("saved_offsets") if isinstance(note, dict) else None
    if not isinstance(found, list) or not all(map(shapes.is_count, found)):
        raise FormatError(f"{file} does not say where its part of '{param.path}' begins")
    if len(found) != len(param.shape):
        raise FormatError(f"{file} has {len(param.shape)} dimensions of '{param.path}', and says {len(found)} offsets")
    return Box(tuple(found), param.shape)


def _whole(path: str, parts: Sequence[tuple[Param, TensorPiece]]) -> Param:
    """Return the tensor that parts make up."""
    first = parts[0][0]
    if any(len(param.shape) != len(first.shape) or param.dtype != first.dtype for param, _ in parts):
        raise FormatError(f"tensor '{path}' has parts of different dtypes or ranks")
    ends = zip(*(map(sum, zip(*piece.box, strict=True)) for _, piece in parts), strict=True)
    shape = shapes.shape([max(along) for along in ends], path)
    boxes = [piece.box for _, piece in parts if 0 not in piece.box.sizes]
    if prod(shape) and not tile(shape, boxes):
        raise FormatError(f"tensor '{path}' has parts that overlap, or leave some of it out")
    if first.dtype.bits % 8:
        raise Unsupported(f"tensor '{path}' ({first.dtype.name}) has packed elements, and lies in parts")
    return Param(path, "tensor", first.dtype, shape, contiguous(shape), path)


class _Storages(Mapping[str, Storage]):
    """One storage for each tensor, put together when it is asked for."""

    def __init__(
        self, files: Mapping[str, Checkpoint], params: Mapping[str, Param], pieces: Mapping[str, Sequence[TensorPiece]]
    ) -> None:
        self._files = files
        self._params = params
        self._pieces = pieces

    def __getitem__(self, path: str) -> Storage:
        param = self._params[path]
        held = [
            BoxContent(
                piece.box, self._files[piece.file].storages[path].content, None, f"part of '{path}' in {piece.file}"
            )
            for piece in self._pieces[path]
            if 0 not in piece.box.sizes
        ]
        if is_concatenation(param.shape, [one.box for one in held]):
            return Storage(concatenated(held, param.dtype.itemsize)[0], param.nbytes)
        return Storage(woven(param.shape, held, param.dtype.itemsize), param.nbytes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)


def _changed(checkpoint: Checkpoint, document: DcpShardsDocument) -> dict[str, dict[str, Storage]]:
    """Return, for each file, its parts of the tensors that changed."""
    found: dict[str, dict[str, Storage]] = {}
    for param in checkpoint.params:
        if param.path not in checkpoint.edited:
            continue
        pieces = document.pieces[param.path]
        content = checkpoint.edited[param.path].content
        content = made_once(content) if len(pieces) > 1 else content
        for piece in pieces:
            if 0 not in piece.box.sizes:
                values = taken(param.shape, content, piece.box, param.dtype.itemsize)
                nbytes = prod(piece.box.sizes) * param.dtype.itemsize
                found.setdefault(piece.file, {})[param.path] = Storage(values, nbytes)
    return found
