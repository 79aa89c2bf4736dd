"""Lay out a DCP set again: chunks whose values changed, and all else as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from math import prod
from typing import NamedTuple

from paramctl.errors import Unsupported
from paramctl.files.content import Content, Extent
from paramctl.files.content import Literal as LiteralSegment
from paramctl.files.content import read as read_content
from paramctl.files.segments import Segment, merge_extents
from paramctl.files.sources import Source
from paramctl.formats.containers.sections import in_whole, spliced
from paramctl.formats.pickles import writer
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.pytorch import zip_file
from paramctl.formats.sets import dcp_metadata
from paramctl.formats.sets.chunk_grid import Box, made_once, taken
from paramctl.formats.sets.dcp_chunks import Archives
from paramctl.formats.sets.dcp_metadata import NAME, Blob, Chunk, DcpTensor, FileRange, Metadata
from paramctl.model.checkpoint import Checkpoint, View
from paramctl.values.arrays import NewValues, with_values

Changes = dict[FileRange, tuple[Segment, ...]]


def check_structure(checkpoint: Checkpoint, document: DcpDocument) -> None:
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


def changed_chunks(checkpoint: Checkpoint, document: DcpDocument) -> dict[str, Changes]:
    """Return, for each file, the new chunks of the tensors that changed."""
    found: dict[str, Changes] = {}
    for tensor in document.metadata.items:
        if not isinstance(tensor, DcpTensor) or tensor.name not in checkpoint.edited or not prod(tensor.shape):
            continue
        content = checkpoint.edited[tensor.name].content
        content = made_once(content) if len(tensor.chunks) > 1 else content
        for chunk in tensor.chunks:
            segments = _chunk(tensor, chunk, content, document.archives)
            if segments:
                found.setdefault(chunk.place.file, {})[chunk.place] = segments
    return found


def _chunk(tensor: DcpTensor, chunk: Chunk, content: tuple[Content, ...], archives: Archives) -> tuple[Segment, ...]:
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


def file_segments(source: Source, changes: Changes, document: DcpDocument, name: str) -> Iterator[Segment]:
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
    held = sorted((place, name) for name, place in places_of(metadata) if place.file == file)
    for (one, name), (other, following) in pairwise(held):
        if one.offset + one.nbytes > other.offset and not changes.keys().isdisjoint((one, other)):
            raise Unsupported(f"'{name}' and '{following}' lie over the same bytes of {file}")


def by_file(metadata: Metadata) -> dict[str, list[FileRange]]:
    found: dict[str, list[FileRange]] = {}
    for _, place in places_of(metadata):
        found.setdefault(place.file, []).append(place)
    return found


def gaps_in(places: Iterable[FileRange], size: int) -> int:
    """Return how many bytes of a file belong to no archive."""
    at = gaps = 0
    for place in sorted(places):
        gaps += max(place.offset - at, 0)
        at = max(at, place.offset + place.nbytes)
    return gaps + size - at


def new_index(document: DcpDocument, names: Mapping[str, str]) -> Segment:
    """Return `.metadata` as it is, or with other names for the files."""
    renamed = {name: new for name, new in names.items() if name in document.files and name != new}
    if not renamed:
        return Extent(document.source, 0, document.source.size)
    edits = dcp_metadata.renaming(document.pickle, renamed)
    return LiteralSegment(writer.write(document.pickle.root, document.pickle.protocol, edits))


class DcpDocument(NamedTuple):
    """The parts needed to write the set back: its index as it was read, the files beside it, and what was listed."""

    source: Source
    pickle: Pickle
    metadata: Metadata
    archives: Archives
    listed: tuple[tuple[str, View], ...]

    @property
    def files(self) -> Mapping[str, Source]:
        return self.archives.files


def places_of(metadata: Metadata) -> Iterator[tuple[str, FileRange]]:
    """Yield every archive of a set, with the name of the entry in it."""
    for item in metadata.items:
        if isinstance(item, Blob):
            yield item.name, item.place
        else:
            yield from ((item.name, place) for place in (*(chunk.place for chunk in item.chunks), *item.empty))
