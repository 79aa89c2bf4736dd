"""Programs that torch.export.save wrote: a zip archive of raw tensors, and JSON that says what they are.

Listed are the weights (parameters and buffers) and then the constants (buffers that are not persistent, and
tensors lifted from the code), in the order in which torch.export.load finds them; sample inputs are no tensors
of the model. Until torch 2.7 weights and constants each were one file of torch.save inside the archive, and a
tensor of a subclass still is; such are read and edited as archives in the archive.

Reference: torch/export/pt2_archive/_package.py and torch/_export/serde/schema.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files.content import chunks
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.containers import zips
from paramctl.formats.containers.sections import Held, in_whole
from paramctl.formats.containers.zips import Archive, Record
from paramctl.formats.pickles import unread_files
from paramctl.formats.pickles.unread_files import PICKLE
from paramctl.formats.programs.export_tables import INSIDE, ExportDocument, Reader, section_of
from paramctl.formats.programs.export_writer import Writer
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import zip_file
from paramctl.formats.pytorch.archives import (
    alignment_of,
    byteorder_of,
    folder_of,
    kind,
    pickle_limit,
    record_of,
)
from paramctl.model.checkpoint import Checkpoint, Loss, Param, Storage
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torch-export"
SUFFIXES: tuple[str, ...] = (".pt2",)
WRITES: Writes = "own"
KEEPS_TIES = True
KEEPS_METADATA = False


def recognises(head: bytes, source: Source) -> bool:
    """Return whether torch.export.save wrote the file."""
    return head.startswith(zips.MAGIC) and kind(source) == "torch.export"


def read(source: Source) -> Checkpoint:
    """List an exported program. Raises FormatError where the archive contradicts itself."""
    archive = zips.read(source)
    reader = Reader(archive, folder_of(archive))
    entries = tuple(reader.run())
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=entries,
        saved=_Records(archive, reader.prefix, reader.inner, {e.storage for e in entries if isinstance(e, Param)}),
        sources=(source,),
        document=ExportDocument(
            archive, reader.prefix, reader.configs, reader.inner, alignment_of(archive, reader.prefix)
        ),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return none for a program that was read. Raises UsageError for anything else: it has no graph to write."""
    if not isinstance(checkpoint.document, ExportDocument):
        what = "an exported program holds a graph too, and cannot be made of tensors alone"
        raise UsageError(what, hint="convert to .pt, load_state_dict() that into the module, and export it")
    return []


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return no places: all tensors of the model are listed."""
    return []


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the archive's own records around those that changed. Raises Unsupported for a tie the file cannot say."""
    assert isinstance(checkpoint.document, ExportDocument), "losses() refused it"
    return Writer(checkpoint, checkpoint.document).run()


def verify(path: Path, meant: Checkpoint) -> None:
    """Do nothing beyond reading it back: torch takes seconds to import and checks less than we do."""


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about the archive and those inside it, every byte of them read."""
    from paramctl.formats.containers import zip_audit

    document = checkpoint.document
    assert isinstance(document, ExportDocument)
    yield from zip_audit.audit_for(checkpoint, document.archive, document.prefix, on_progress)
    for name, checkpoint_inside in document.inner.items():
        for finding in zip_file.audit(checkpoint_inside, on_progress):
            yield finding._replace(path=None, what=f"{finding.what} (record {name})")


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles in the archive: of archives inside it, sample inputs among them, and of opaque constants."""
    archive = zips.read(source)
    for name, record in archive.records.items():
        if "/opaque_obj_" in zips.folded(name):
            yield name, partial(archive.read, record, pickle_limit(record))
        elif (inside := _inside(archive, record)) is not None:
            yield from ((f"{name}: {part}", load) for part, load in _pickles(inside))


def _inside(archive: Archive, record: Record) -> Source | None:
    """Return a record that torch.load may be given, as a file: an archive, or one named like such a file; else None."""
    if (section := section_of(archive, record)) is not None:
        return section
    head = bytes(next(chunks((archive.content(record),)), b"")[: len(zips.MAGIC)])
    if not head.startswith((zips.MAGIC, PICKLE) if zips.folded(record.name).endswith(".pt") else zips.MAGIC):
        return None
    return Held(archive.source, archive.read(record, pickle_limit(record)))


def _pickles(inside: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles of a file in the archive; none if values only begin as an archive does."""
    try:
        if inside.read(0, len(zips.MAGIC)) == zips.MAGIC:
            yield from zip_file.code(inside)
        else:
            yield from unread_files.code(inside)
    except (FormatError, Unsupported):
        return


class _Records(Mapping[str, Storage]):
    """The storages of an archive by the names of their records, and those of archives inside it."""

    def __init__(
        self, archive: Archive, prefix: str, inner: Mapping[str, Checkpoint], used: Iterable[str | None]
    ) -> None:
        self._archive = archive
        self._prefix = prefix
        self._inner = inner
        self._byteorder: Literal["little", "big"] = byteorder_of(archive, prefix)
        self._keys = dict.fromkeys(key for key in used if key is not None)

    def __getitem__(self, key: str) -> Storage:
        record_name, bang, inside = key.rpartition(INSIDE)
        if bang and record_name in self._inner:
            storage = self._inner[record_name].saved[inside]
            return storage._replace(content=in_whole(storage.content))
        record = record_of(self._archive, self._prefix + key)
        crc = record.crc32 if record.has_crc else None
        return Storage((self._archive.content(record),), record.nbytes, self._byteorder, crc)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
