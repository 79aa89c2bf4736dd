"""What torch.distributed.checkpoint writes: a folder of `.metadata` and files in which every chunk of a tensor,
and every object, is an archive of its own.

Reference: torch/distributed/checkpoint/filesystem.py. A listing reads `.metadata` alone, and asks the other
files for nothing but their size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from paramctl.errors import FileError, FormatError, Unsupported
from paramctl.files.set_names import Part
from paramctl.files.sources import Source, open_source
from paramctl.formats.containers.sections import Section
from paramctl.formats.pickles import reader, unread_files
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import zip_file
from paramctl.formats.set_index import why_unsafe
from paramctl.formats.sets import dcp_metadata
from paramctl.formats.sets.chunk_grid import Box, tile
from paramctl.formats.sets.dcp_changes import (
    DcpDocument,
    by_file,
    changed_chunks,
    check_structure,
    file_segments,
    gaps_in,
    new_index,
    places_of,
)
from paramctl.formats.sets.dcp_chunks import Archives, Storages, is_archive
from paramctl.formats.sets.dcp_metadata import Blob, DcpTensor, FileRange, Metadata
from paramctl.formats.sets.dcp_writer import new_set, no_place
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Kind, Leaf, Loss, Param, contiguous
from paramctl.model.keys import Keys, Position
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = dcp_metadata.NAME
SUFFIXES: tuple[str, ...] = (".metadata",)
WRITES: Writes = "any"
KEEPS_TIES = False
KEEPS_METADATA = False
MAX_METADATA = 256 << 20  # bytes
MARK = b"torch.distributed"  # in the name of the class that a `.metadata` begins with
READ = 512  # objects whose values are read to list them, and …
SMALL_OBJECT = 1 << 14  # … bytes of each of them, at most


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a pickle of torch.distributed begins here; a file that is named as such gets the errors."""
    named = source.path is not None and Path(source.name).name == dcp_metadata.INDEX
    return head.startswith(b"\x80") and (named or MARK in head[:128])


def read(source: Source) -> Checkpoint:
    """List a set by its `.metadata`. Raises FormatError where that contradicts itself or the files beside it."""
    pickle = reader.read(_bytes(source))
    metadata = dcp_metadata.read(pickle)
    files = _files(source, metadata)
    _check(metadata, files)
    kinds = _kinds(metadata)
    archives = Archives(files, _shared(metadata))
    storages = Storages(metadata, archives)
    blobs = _Blobs(archives)
    entries = tuple(
        _param(item, kinds(item.name)) if isinstance(item, DcpTensor) else blobs.leaf(item) for item in metadata.items
    )
    listed = tuple((entry.path, entry.view) for entry in entries if isinstance(entry, Param))
    keys = {name: _as_saved(found, kinds(name)) for name, found in metadata.keys.items()}
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=entries,
        saved=storages,
        sources=(source, *files.values()),
        keys=keys,
        document=DcpDocument(source, pickle, metadata, archives, listed),
    )


def members(source: Source) -> Iterable[str]:
    """Return the files beside a `.metadata` that it names."""
    return _names(dcp_metadata.read(reader.read(_bytes(source))))


def index(source: Source) -> None:
    """Return None: no file of the set can be read alone."""


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a new set would not hold; a checkpoint's own document holds everything."""
    if isinstance(checkpoint.document, DcpDocument):
        return []
    return [Loss(entry, why) for entry in checkpoint.entries if (why := no_place(entry, checkpoint.keys))]


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return no places: no tensor can be taken from a set."""
    return []


def verify(path: Path, meant: Checkpoint) -> None:
    """Do nothing beyond reading it back: torch would unpickle it without any restriction."""


def verify_part(path: Path, was: str, meant: Checkpoint) -> None:
    """Read the archives that changed in a file that was written. Raises FormatError where they are not as meant."""
    document = meant.document
    if not isinstance(document, DcpDocument):
        return
    source = open_source(str(path))
    if source.size != document.files[was].size:
        raise FormatError(f"was written with {source.size:,} bytes, and {document.files[was].size:,} were meant")
    for tensor in document.metadata.items:
        if isinstance(tensor, DcpTensor) and tensor.name in meant.edited:
            for chunk in tensor.chunks:
                if chunk.place.file == was:
                    Archives({was: source}).opened(tensor, chunk)


def layout_set(checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
    """Return the files of a set: unchanged except for chunks whose values changed, or all of them new."""
    document = checkpoint.document
    if not isinstance(document, DcpDocument):
        return new_set(checkpoint, names)
    check_structure(checkpoint, document)
    changed = changed_chunks(checkpoint, document)
    parts = [
        Part(names.get(name, name), tuple(file_segments(source, changed.get(name, {}), document, name)), name)
        for name, source in document.files.items()
    ]
    index = Path(document.source.name).name
    return [*parts, Part(names.get(index, index), (new_index(document, names),), index)]


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about any archive of the set, every byte of them read, and bytes that belong to none."""
    document = checkpoint.document
    assert isinstance(document, DcpDocument)
    yield from _audited(document.metadata, document.archives, on_progress)


def apart(source: Source, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about each file that can be read, and why others cannot."""
    from paramctl.findings import unreadable

    metadata = dcp_metadata.read(reader.read(_bytes(source)))
    files, lost = _some_files(source, metadata)
    yield from (unreadable(what, name) for name, what in lost.items())
    yield from _audited(metadata, Archives(files, _shared(metadata)), on_progress)


def _audited(metadata: Metadata, archives: Archives, on_progress: ProgressCallback) -> Iterator[Finding]:
    """Yield the findings about the archives in files that are there; each is read once, whoever names it."""
    from paramctl.findings import Finding

    plain: set[str] = set()  # files that are one safetensors archive
    for name, place in _once(places_of(metadata)):
        if place.file not in archives.files:
            continue
        try:
            if archives.is_archive(name, place):
                found = zip_file.audit(archives.read(name, place), on_progress)
                yield from (one._replace(path=name, file=place.file) for one in found)
            else:
                plain.add(place.file)
        except Unsupported as error:
            yield Finding("note", "integrity", "unread", name, error.what, place.file)
        except FormatError as error:
            yield Finding("error", "integrity", "record", name, error.what, place.file)
    yield from _mismatches(metadata, archives)
    places = by_file(metadata)
    for file, source in archives.files.items():
        gaps = 0 if file in plain else gaps_in(places[file], source.size)
        if gaps:
            yield Finding("note", "integrity", "gap", None, f"{gaps:,} bytes belong to no tensor and no object", file)


def _once(places: Iterable[tuple[str, FileRange]]) -> Iterator[tuple[str, FileRange]]:
    """Yield each place with the first name of what lies there."""
    seen: set[FileRange] = set()
    for name, place in places:
        if place not in seen:
            seen.add(place)
            yield name, place


def _mismatches(metadata: Metadata, archives: Archives) -> Iterator[Finding]:
    """Report chunks whose archive can be read, and is not that of the tensor which the metadata names."""
    from paramctl.findings import Finding

    tensors = [item for item in metadata.items if isinstance(item, DcpTensor)]
    for tensor in tensors:
        for chunk in tensor.chunks:
            if chunk.place.file not in archives.files:
                continue
            try:
                archives.opened(tensor, chunk)
            except Unsupported:
                continue
            except FormatError as error:
                yield Finding("error", "integrity", "record", tensor.name, error.what, chunk.place.file)


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles that loading the set would run: `.metadata` itself, and one in each archive."""
    yield Path(source.name).name, partial(_bytes, source)
    metadata = dcp_metadata.read(reader.read(_bytes(source)))
    files, _ = _some_files(source, metadata)
    for name, place in _once(places_of(metadata)):
        if place.file in files and place.offset < files[place.file].size:
            yield from _code_at(name, place, files[place.file])


def _code_at(name: str, place: FileRange, source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles in one archive: torch.load gets it as a stream, and takes what is no zip for its old format."""
    section = Section(source, place.offset, min(place.nbytes, source.size - place.offset))
    try:
        pickled = zip_file.code(section) if is_archive(section) else unread_files.code(section)
        if is_archive(section) or unread_files.are_surely_in(section):
            yield from ((f"{place.file}: {name}: {part}", load) for part, load in pickled)
    except (FormatError, Unsupported):
        return  # the audit says what is wrong with it, and the others are judged all the same


def _bytes(source: Source) -> bytes:
    if source.size > MAX_METADATA:
        raise FormatError(f"is metadata of {source.size:,} bytes, over the limit of {MAX_METADATA:,}")
    return source.read(0, source.size)


def _names(metadata: Metadata) -> list[str]:
    """Return the files that metadata names. Raises FormatError for one that is no plain name (R6)."""
    names = sorted({place.file for _, place in places_of(metadata)})
    for name in names:
        if why := why_unsafe(name):
            raise FormatError(f"names the file {name!r}, which {why}")
        if name == dcp_metadata.INDEX:
            raise FormatError("names itself as the file of a tensor")
    return names


def _files(source: Source, metadata: Metadata) -> dict[str, Source]:
    names = _names(metadata)
    if source.path is None and names:
        raise FileError("is an index, and came without the files beside it", hint="name the directory")
    folder = Path(source.name).absolute().parent
    return {name: _beside(folder / name) for name in names}


def _some_files(source: Source, metadata: Metadata) -> tuple[dict[str, Source], dict[str, str]]:
    """Return the files that can be opened, and why others cannot."""
    files: dict[str, Source] = {}
    lost: dict[str, str] = {}
    folder = Path(source.name).absolute().parent
    for name in sorted({place.file for _, place in places_of(metadata)}):
        if why := why_unsafe(name) or ("is the index itself" if name == dcp_metadata.INDEX else ""):
            lost[name] = f"the name {why}"
            continue
        try:
            files[name] = _beside(folder / name)
        except FormatError as error:
            lost[name] = error.what
    return files, lost


def _shared(metadata: Metadata) -> set[FileRange]:
    """Return the places that several names or chunks share, whose bytes are kept once they are read."""
    times = Counter(place for _, place in places_of(metadata))
    return {place for place, n in times.items() if n > 1}


def _beside(path: Path) -> Source:
    try:
        return open_source(str(path))
    except FileError as error:
        raise FormatError(f"names the file '{path.name}': {error.what}") from None


def _check(metadata: Metadata, files: Mapping[str, Source]) -> None:
    """Raise FormatError unless everything lies inside of its file, and chunks make up their tensors."""
    for name, place in places_of(metadata):
        if place.offset + place.nbytes > files[place.file].size:
            raise FormatError(
                f"'{name}' takes bytes {place.offset:,} to {place.offset + place.nbytes:,} of {place.file},"
                f" which has {files[place.file].size:,}"
            )
    for item in metadata.items:
        if isinstance(item, DcpTensor):
            _check_chunks(item)


def _check_chunks(tensor: DcpTensor) -> None:
    for chunk in tensor.chunks:
        nbytes = tensor.dtype.nbytes(prod(chunk.sizes))
        if nbytes > chunk.place.nbytes and not chunk.place.transforms:
            raise FormatError(
                f"tensor '{tensor.name}' has a chunk of {nbytes:,} bytes, and {chunk.place.nbytes:,} are saved for it"
            )
    if prod(tensor.shape) and not tile(tensor.shape, [Box(chunk.offsets, chunk.sizes) for chunk in tensor.chunks]):
        raise FormatError(f"tensor '{tensor.name}' has chunks that overlap, or leave some of it out")


def _kinds(metadata: Metadata) -> Callable[[str], Kind]:
    """Return a function from a name to its kind: names below `state` and `param_groups` are an optimizer's."""
    found: dict[tuple[object, ...], set[object]] = {}
    for keys in metadata.keys.values():
        for i, key in enumerate(keys):
            if key in ("state", "param_groups"):
                found.setdefault(keys[:i], set()).add(key)
    optimizers = {above for above, names in found.items() if len(names) == 2}

    def kind(name: str) -> Kind:
        keys = metadata.keys.get(name, ())
        inside = optimizers and any(keys[:i] in optimizers for i in range(len(keys)))
        return "optimizer" if inside else "tensor"

    return kind


def _as_saved(keys: Iterable[object], kind: Kind) -> Keys:
    """Return the keys that torch notes, as they were: it notes a position in a list as a number, all else as text.

    The params that an optimizer remembers something of have numbers.
    """
    found: list[str | int] = []
    for key in keys:
        numbered = kind == "optimizer" and found[-1:] == ["state"] and isinstance(key, str)
        number = shapes.number(str(key)) if numbered else None
        found.append(Position(key) if isinstance(key, int) else str(key) if number is None else number)
    return tuple(found)


def _param(tensor: DcpTensor, kind: Kind) -> Param:
    strided = tensor.layout == "strided"
    storage = tensor.name if strided else None
    return Param(
        tensor.name, kind, tensor.dtype, tensor.shape, contiguous(tensor.shape), storage,
        requires_grad=tensor.requires_grad, layout=tensor.layout,
    )  # fmt: skip


class _Blobs:
    """Objects as entries; of the first few small ones the values are read."""

    def __init__(self, archives: Archives) -> None:
        self._archives = archives
        self._left = READ

    def leaf(self, blob: Blob) -> Leaf:
        text = Leaf(blob.name, f"{blob.place.nbytes:,} bytes that torch.save wrote", True)
        if self._left == 0 or blob.place.nbytes > SMALL_OBJECT:
            return text
        self._left -= 1
        try:
            if zip_file.pickled_nbytes(self._archives.section(blob.name, blob.place)) > SMALL_OBJECT:
                return text
            entries = self._archives.read(blob.name, blob.place).entries
        except (FormatError, Unsupported):  # `check` tells of it, and a listing needs it for nothing
            return text
        found = entries[0] if len(entries) == 1 and not entries[0].path else None
        return found._replace(path=blob.name) if isinstance(found, Leaf) else text
