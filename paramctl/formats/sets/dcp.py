"""What torch.distributed.checkpoint writes: a folder of `.metadata` and files in which every chunk of a tensor,
and every object, is an archive of its own.

Reference: torch/distributed/checkpoint/filesystem.py. A listing reads `.metadata` alone, and asks the other
files for nothing but their size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from paramctl.errors import FileError, FormatError, Unsupported, UsageError
from paramctl.files.content import Content, Extent, chunks
from paramctl.files.content import Literal as LiteralSegment
from paramctl.files.content import read as read_content
from paramctl.files.segments import Segment, merge_extents
from paramctl.files.set_names import Part
from paramctl.files.sources import Source, open_source
from paramctl.formats.containers.sections import Section, in_whole, spliced
from paramctl.formats.pickles import reader, unread_files, writer
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import zip_file
from paramctl.formats.sets import dcp_metadata
from paramctl.formats.sets.chunk_grid import Box, made_once, taken, tile
from paramctl.formats.sets.dcp_chunks import Archives, Storages, is_archive
from paramctl.formats.sets.dcp_metadata import Blob, Chunk, Metadata, Place, Tensor
from paramctl.formats.sets.shard_index import why_unsafe
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Entry, Kind, Leaf, Loss, Param, View, contiguous
from paramctl.model.dtypes import PAIRS
from paramctl.model.keys import InTuple, Keys, Position, nested, path_of
from paramctl.progress import ProgressCallback, ignore
from paramctl.values.arrays import NewValues, content_of, with_values

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "dcp"
SUFFIXES: tuple[str, ...] = (".metadata",)
WRITES: Writes = "any"
KEEPS_TIES = False
INDEX = ".metadata"
MAX_METADATA = 256 << 20  # bytes
MARK = b"torch.distributed"  # in the name of the class that a `.metadata` begins with
READ = 512  # objects whose values are read to list them, and …
SMALL_OBJECT = 1 << 14  # … bytes of each of them, at most


class Document(NamedTuple):
    """The parts needed to write the set back: its index as it was read, the files beside it, and what was listed."""

    source: Source
    pickle: Pickle
    metadata: Metadata
    archives: Archives
    listed: tuple[tuple[str, View], ...]

    @property
    def files(self) -> Mapping[str, Source]:
        return self.archives.files


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a pickle of torch.distributed begins here; a file that is named as such gets the errors."""
    named = source.path is not None and Path(source.name).name == INDEX
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
        _param(item, kinds(item.name)) if isinstance(item, Tensor) else blobs.leaf(item) for item in metadata.items
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
        document=Document(source, pickle, metadata, archives, listed),
    )


def members(source: Source) -> Iterable[str]:
    """Return the files beside a `.metadata` that it names."""
    return _names(dcp_metadata.read(reader.read(_bytes(source))))


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a new set would not hold; a checkpoint's own document holds everything."""
    if isinstance(checkpoint.document, Document):
        return []
    return [Loss(entry, why) for entry in checkpoint.entries if (why := _no_place(entry, checkpoint.keys))]


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Nowhere: no tensor can be taken from a set."""
    return []


def verify(path: Path, meant: Checkpoint) -> None:
    """Nothing beyond reading it back: torch would unpickle it without any restriction."""


def verify_part(path: Path, was: str, meant: Checkpoint) -> None:
    """Read the archives that changed in a file that was written. Raises FormatError where they are not as meant."""
    document = meant.document
    if not isinstance(document, Document):
        return
    source = open_source(str(path))
    if source.size != document.files[was].size:
        raise FormatError(f"was written with {source.size:,} bytes, and {document.files[was].size:,} were meant")
    for tensor in document.metadata.items:
        if isinstance(tensor, Tensor) and tensor.name in meant.edited:
            for chunk in tensor.chunks:
                if chunk.place.file == was:
                    Archives({was: source}).opened(tensor, chunk)


def layout_set(checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
    """Return the files of a set: unchanged except for chunks whose values changed, or all of them new."""
    document = checkpoint.document
    if not isinstance(document, Document):
        return _new_set(checkpoint, names)
    _check_structure(checkpoint, document)
    changed = _changed(checkpoint, document)
    parts = [
        Part(names.get(name, name), tuple(_file(source, changed.get(name, {}), document, name)), name)
        for name, source in document.files.items()
    ]
    index = Path(document.source.name).name
    return [*parts, Part(names.get(index, index), (_index(document, names),), index)]


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about any archive of the set, every byte of them read, and bytes that belong to none."""
    document = checkpoint.document
    assert isinstance(document, Document)
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
    for name, place in _once(_places(metadata)):
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
    places = _by_file(metadata)
    for file, source in archives.files.items():
        gaps = 0 if file in plain else _gaps(places[file], source.size)
        if gaps:
            yield Finding("note", "integrity", "gap", None, f"{gaps:,} bytes belong to no tensor and no object", file)


def _once(places: Iterable[tuple[str, Place]]) -> Iterator[tuple[str, Place]]:
    """Yield each place with the first name of what lies there."""
    seen: set[Place] = set()
    for name, place in places:
        if place not in seen:
            seen.add(place)
            yield name, place


def _mismatches(metadata: Metadata, archives: Archives) -> Iterator[Finding]:
    """Chunks whose archive can be read, and is not that of the tensor the metadata says."""
    from paramctl.findings import Finding

    tensors = [item for item in metadata.items if isinstance(item, Tensor)]
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
    for name, place in _once(_places(metadata)):
        if place.file in files and place.offset < files[place.file].size:
            yield from _code_at(name, place, files[place.file])


def _code_at(name: str, place: Place, source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
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


def _places(metadata: Metadata) -> Iterator[tuple[str, Place]]:
    """Yield every archive of a set, with the name of the entry in it."""
    for item in metadata.items:
        if isinstance(item, Blob):
            yield item.name, item.place
        else:
            yield from ((item.name, place) for place in (*(chunk.place for chunk in item.chunks), *item.empty))


def _names(metadata: Metadata) -> list[str]:
    """Return the files that metadata names. Raises FormatError for one that is no plain name (R6)."""
    names = sorted({place.file for _, place in _places(metadata)})
    for name in names:
        if why := why_unsafe(name):
            raise FormatError(f"names the file {name!r}, which {why}")
        if name == INDEX:
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
    for name in sorted({place.file for _, place in _places(metadata)}):
        if why := why_unsafe(name) or ("is the index itself" if name == INDEX else ""):
            lost[name] = f"the name {why}"
            continue
        try:
            files[name] = _beside(folder / name)
        except FormatError as error:
            lost[name] = error.what
    return files, lost


def _shared(metadata: Metadata) -> set[Place]:
    """Return the places that several names or chunks share, whose bytes are kept once they are read."""
    times = Counter(place for _, place in _places(metadata))
    return {place for place, n in times.items() if n > 1}


def _beside(path: Path) -> Source:
    try:
        return open_source(str(path))
    except FileError as error:
        raise FormatError(f"names the file '{path.name}': {error.what}") from None


def _check(metadata: Metadata, files: Mapping[str, Source]) -> None:
    """Raise FormatError unless everything lies inside of its file, and chunks make up their tensors."""
    for name, place in _places(metadata):
        if place.offset + place.nbytes > files[place.file].size:
            raise FormatError(
                f"'{name}' takes bytes {place.offset:,} to {place.offset + place.nbytes:,} of {place.file},"
                f" which has {files[place.file].size:,}"
            )
    for item in metadata.items:
        if isinstance(item, Tensor):
            _check_chunks(item)


def _check_chunks(tensor: Tensor) -> None:
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


def _param(tensor: Tensor, kind: Kind) -> Param:
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


Changes = dict[Place, tuple[Segment, ...]]


def _check_structure(checkpoint: Checkpoint, document: Document) -> None:
    """Raise Unsupported unless only values changed: a set has no place for anything else."""
    now = tuple((param.path, param.view) for param in checkpoint.params)
    if now == document.listed and len(checkpoint.entries) == len(document.metadata.items):
        return
    if [path for path, _ in now] != [path for path, _ in document.listed]:
        what = "torch.distributed.checkpoint sets keep their names and their number of tensors"
        raise Unsupported(what, hint="make it one file with 'paramctl convert' first")
    path = next((path for (path, view), (_, before) in zip(now, document.listed, strict=True) if view != before), "")
    what = f"'{path}' cannot be tied or take another form: torch.distributed.checkpoint saves every tensor in full"
    raise Unsupported(what, hint="make it one file with 'paramctl convert' first")


def _changed(checkpoint: Checkpoint, document: Document) -> dict[str, Changes]:
    """Return, for each file, the new chunks of the tensors that changed."""
    found: dict[str, Changes] = {}
    for tensor in document.metadata.items:
        if not isinstance(tensor, Tensor) or tensor.name not in checkpoint.edited or not prod(tensor.shape):
            continue
        content = checkpoint.edited[tensor.name].content
        content = made_once(content) if len(tensor.chunks) > 1 else content
        for chunk in tensor.chunks:
            segments = _chunk(tensor, chunk, content, document.archives)
            if segments:
                found.setdefault(chunk.place.file, {})[chunk.place] = segments
    return found


def _chunk(tensor: Tensor, chunk: Chunk, content: tuple[Content, ...], archives: Archives) -> tuple[Segment, ...]:
    """Return the archive of a chunk with its new values; nothing if those are the old ones."""
    nested = archives.opened(tensor, chunk)
    if nested.checkpoint.format != zip_file.NAME:
        raise Unsupported(f"'{tensor.name}' is saved in the safetensors form of {NAME}, in which nothing is changed")
    values = taken(tensor.shape, content, Box(chunk.offsets, chunk.sizes), tensor.dtype.itemsize)
    if nested.is_plain and nested.is_whole:
        if [*merge_extents(values)] == [*merge_extents(in_whole(nested.storage.content))]:
            return ()
        storage = nested.storage._replace(content=values, crc32=None)
    else:
        make = partial(read_content, values, 0, nested.param.nbytes)
        storage = with_values(nested.storage, NewValues(nested.param, make, nested.param.nbytes))
    edited = nested.checkpoint.with_storages({str(nested.param.storage): storage})
    place = chunk.place
    segments = tuple(spliced(zip_file.layout(edited), f"{place.file}@{place.offset}"))
    if sum(segment.nbytes for segment in segments) != place.nbytes:
        what = f"the archive of '{tensor.name}' in {place.file} would change its size: torch did not write it"
        raise Unsupported(what, hint="make it one file with 'paramctl convert' first")
    return segments


def _file(source: Source, changes: Changes, document: Document, name: str) -> Iterator[Segment]:
    """Yield a file with the archives that changed; all else of it stays."""
    at = 0
    if changes:
        _check_apart(changes, document.metadata, name)
    for place, segments in sorted(changes.items()):
        yield Extent(source, at, place.offset - at)
        yield from segments
        at = place.offset + place.nbytes
    yield Extent(source, at, source.size - at)


def _check_apart(changes: Changes, metadata: Metadata, file: str) -> None:
    """Raise Unsupported where an archive that changes shares bytes with another."""
    held = sorted((place, name) for name, place in _places(metadata) if place.file == file)
    for (one, name), (other, following) in pairwise(held):
        if one.offset + one.nbytes > other.offset and not changes.keys().isdisjoint((one, other)):
            raise Unsupported(f"'{name}' and '{following}' lie over the same bytes of {file}")


def _by_file(metadata: Metadata) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for _, place in _places(metadata):
        found.setdefault(place.file, []).append(place)
    return found


def _gaps(places: Iterable[Place], size: int) -> int:
    """Bytes of a file that no archive takes."""
    at = gaps = 0
    for place in sorted(places):
        gaps += max(place.offset - at, 0)
        at = max(at, place.offset + place.nbytes)
    return gaps + size - at


def _index(document: Document, names: Mapping[str, str]) -> Segment:
    """`.metadata` as it is, or with other names for the files."""
    renamed = {name: new for name, new in names.items() if name in document.files and name != new}
    if not renamed:
        return Extent(document.source, 0, document.source.size)
    edits = dcp_metadata.renaming(document.pickle, renamed)
    return LiteralSegment(writer.write(document.pickle.root, document.pickle.protocol, edits))


def _no_place(entry: Entry, keys: Mapping[str, Keys]) -> str:
    """Why an entry cannot be written anew; empty if it can."""
    if isinstance(entry, Leaf):
        return "object" if entry.is_object else "empty dict" if entry.value == {} else ""
    if not entry.is_plain:
        return f"{entry.layout} tensor"
    if any(isinstance(key, InTuple) for key in keys.get(entry.path, ())):
        return "tensor in a tuple, which torch saves as one object"
    if entry.dtype.name.startswith(("float6_", "float4_")) and entry.dtype.name != PAIRS:
        return f"{entry.dtype.name}, which torch has no dtype for"
    return f"{entry.dtype.name} tensor" if entry.dtype.bits % 8 else ""


def _new_set(checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
    """Return the files that torch's own writer makes, with one tensor in memory at a time."""
    from paramctl.formats.sets.dcp_writer import Saved, save_distributed

    items: dict[str, Saved | object] = {}
    keys: list[Keys] = []
    for entry in checkpoint.entries:
        if entry.path in items:
            raise UsageError(f"two entries print as '{entry.path}', and {NAME} has one name for each")
        if isinstance(entry, Leaf):
            items[entry.path] = entry.value
        else:
            content = content_of(checkpoint, entry)
            items[entry.path] = Saved(entry.dtype, entry.shape, partial(chunks, content))
        found = checkpoint.keys.get(entry.path, ())
        keys.append(found if path_of(found) == entry.path else (entry.path,))
    whole = nested(zip(keys, items.values(), strict=True))
    sources = save_distributed(items, whole if isinstance(whole, dict) else items)
    ordered = sorted(sources, key=lambda name: name == INDEX)
    return [Part(names.get(name, name), (Extent(sources[name], 0, sources[name].size),), name) for name in ordered]
