"""The chunks of torch.distributed.checkpoint: each is an archive of its own somewhere in a file, and together they
are the values of a tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import NamedTuple

from paramctl.errors import FileError, FormatError, Unsupported
from paramctl.files.content import clip
from paramctl.files.sources import Source
from paramctl.formats import safetensors
from paramctl.formats.containers import zips
from paramctl.formats.containers.sections import Section, in_whole
from paramctl.formats.pytorch import zip_file
from paramctl.formats.sets.chunk_grid import Box, BoxContent, concatenated, is_concatenation, woven
from paramctl.formats.sets.dcp_metadata import Chunk, DcpTensor, FileRange, Metadata
from paramctl.model.checkpoint import Checkpoint, Param, Storage
from paramctl.values.arrays import content_of


class Storages(Mapping[str, Storage]):
    """One storage for each tensor, made of its chunks when it is asked for: a listing asks for none."""

    def __init__(self, metadata: Metadata, archives: Archives) -> None:
        self._tensors = {item.name: item for item in metadata.items if isinstance(item, DcpTensor)}
        self._archives = archives
        self._last: tuple[str, Storage] | None = None

    def __getitem__(self, name: str) -> Storage:
        if self._last is None or self._last[0] != name:
            self._last = name, _storage(self._tensors[name], self._archives)
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _storage(tensor: DcpTensor, archives: Archives) -> Storage:
    """Return the values of a tensor. Raises FormatError if a chunk contradicts the metadata."""
    nbytes = tensor.dtype.nbytes(prod(tensor.shape))
    if not nbytes:
        return Storage((), 0)
    held = [_held(tensor, chunk, archives) for chunk in tensor.chunks]
    size = tensor.dtype.itemsize
    if is_concatenation(tensor.shape, [one.box for one in held]):
        content, crc32 = concatenated(held, size)
        return Storage(content, nbytes, crc32=crc32)
    return Storage(woven(tensor.shape, held, size), nbytes)


class Nested(NamedTuple):
    """The archive that holds a chunk, and the tensor in it."""

    checkpoint: Checkpoint
    param: Param

    @property
    def storage(self) -> Storage:
        return self.checkpoint.storages[str(self.param.storage)]

    @property
    def is_plain(self) -> bool:
        """True if its bytes are in the order that a chunk has: little-endian, in C order."""
        return self.param.is_contiguous and self.storage.byteorder == "little" and not self.param.flags

    @property
    def is_whole(self) -> bool:
        """True if the tensor takes all of its storage."""
        return self.param.nbytes == self.storage.nbytes


def _held(tensor: DcpTensor, chunk: Chunk, archives: Archives) -> BoxContent:
    nested = archives.opened(tensor, chunk)
    box, name = Box(chunk.offsets, chunk.sizes), f"chunk of '{tensor.name}' in {chunk.place.file}"
    if not nested.is_plain:
        return BoxContent(box, content_of(nested.checkpoint, nested.param), None, name)
    content = clip(nested.storage.content, nested.param.start, nested.param.nbytes)
    return BoxContent(box, in_whole(content), nested.storage.crc32 if nested.is_whole else None, name)


def section_of(name: str, place: FileRange, files: Mapping[str, Source]) -> Section:
    """Return the section of an archive. Raises Unsupported if it was changed after torch.save."""
    if place.transforms:
        what = f"'{name}' went through {', '.join(place.transforms)} when it was saved, which paramctl cannot undo"
        raise Unsupported(what, hint="load and save it with torch, without extensions")
    return Section(files[place.file], place.offset, place.nbytes)


def is_archive(section: Section) -> bool:
    """Return whether a part of a file is an archive of torch.save's, not a piece of a safetensors file."""
    return section.read(0, min(4, section.size)) == zips.MAGIC


class Archives:
    """The archives in the files of a set. What lies at a place of `shared` is read once, or its error raised again."""

    def __init__(self, files: Mapping[str, Source], shared: Collection[FileRange] = ()) -> None:
        self.files = files
        self._shared = shared
        self._kept: dict[FileRange, Checkpoint | FileError] = {}
        self._plain: tuple[FileRange, Mapping[str, Param], Checkpoint] | None = (
            None  # the safetensors archive read last
        )

    def section(self, name: str, place: FileRange) -> Section:
        """Return the part of a file at a place. Raises Unsupported where it was changed after torch.save."""
        return section_of(name, place, self.files)

    def is_archive(self, name: str, place: FileRange) -> bool:
        """Return whether torch.save's zip archive lies at a place. Raises Unsupported where nobody can tell."""
        return is_archive(self.section(name, place))

    def read(self, name: str, place: FileRange) -> Checkpoint:
        """Return what torch.save wrote at a place. Raises FormatError or Unsupported as `torch_zip.read` does."""
        found = self._kept.get(place)
        if found is None:
            try:
                found = zip_file.read(self.section(name, place))
            except (FormatError, Unsupported) as error:
                found = error
            if place in self._shared:
                self._kept[place] = found
        if isinstance(found, FileError):
            raise type(found)(found.what, hint=found.hint)
        return found

    def opened(self, tensor: DcpTensor, chunk: Chunk) -> Nested:
        """Return the archive of a chunk, and the tensor in it. Raises FormatError where it is another."""
        where = f"chunk of '{tensor.name}' in {chunk.place.file}"
        if not self.is_archive(tensor.name, chunk.place):
            return self._opened_plain(tensor, chunk, where)
        try:
            checkpoint = self.read(tensor.name, chunk.place)
        except (FormatError, Unsupported) as error:
            raise type(error)(f"{where}: {error.what}", hint=error.hint) from None
        entry = checkpoint.entries[0] if len(checkpoint.entries) == 1 else None
        param = entry if isinstance(entry, Param) and not entry.path else None
        return _matching(checkpoint, param, tensor, chunk, where)

    def _opened_plain(self, tensor: DcpTensor, chunk: Chunk, where: str) -> Nested:
        """Open a chunk in a file that is written as one safetensors archive, behind the objects in it."""
        source = self.files[chunk.place.file]
        start = chunk.place._replace(nbytes=source.size - chunk.place.offset)
        if self._plain is None or self._plain[0] != start:
            checkpoint = _plain(Section(source, start.offset, start.nbytes), where)
            self._plain = start, {param.path: param for param in checkpoint.params}, checkpoint
        _, params, checkpoint = self._plain
        return _matching(checkpoint, params.get(tensor.name), tensor, chunk, where)


def _plain(section: Section, where: str) -> Checkpoint:
    if section.read(0, min(9, section.size))[8:] != b"{":
        raise FormatError(f"{where} is no archive that torch.save or safetensors writes")
    try:
        return safetensors.read(section)
    except FormatError as error:
        raise FormatError(f"{where}: {error.what}") from None


def _matching(checkpoint: Checkpoint, param: Param | None, tensor: DcpTensor, chunk: Chunk, where: str) -> Nested:
    if param is None or not param.is_plain or (param.dtype, param.shape) != (tensor.dtype, chunk.sizes):
        raise FormatError(f"{where} is not the {tensor.dtype.name} tensor of {chunk.sizes} that the metadata says")
    return Nested(checkpoint, param)
