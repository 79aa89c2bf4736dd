"""What torch.save writes since 1.6: a zip archive of one pickle and a record for each storage.

Reference: torch/serialization.py and caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paramctl.errors import FormatError, TwoReadings, Unsupported, some
from paramctl.files.content import Literal as LiteralSegment
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.containers import zip_layout, zip_pickles, zips
from paramctl.formats.containers.zip_layout import ZipPiece
from paramctl.formats.containers.zips import Archive
from paramctl.formats.pickles import reader, unread_files, writer
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import edits, new_state_dict
from paramctl.formats.pytorch.archives import (
    ALIGNMENT,
    ArchiveDocument,
    Storages,
    alignment_of,
    byteorder_of,
    check_version,
    folder_of,
    kind,
    pickle_limit,
    record_of,
)
from paramctl.formats.pytorch.edits import Editor
from paramctl.formats.pytorch.new_state_dict import saved_object
from paramctl.formats.pytorch.objects import keys_in, list_object
from paramctl.model.checkpoint import Checkpoint, Loss, Param, Storage
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torch-zip"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt")
WRITES: Writes = "any"
KEEPS_TIES = True
KEEPS_METADATA = False
KNOWN = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a zip archive begins here that is none of torch's other kinds."""
    return head.startswith(zips.MAGIC) and kind(source) == "torch.save"


def read(source: Source) -> Checkpoint:
    """List what torch.save wrote. Raises FormatError where the archive contradicts itself."""
    archive = zips.read(source)
    prefix = _prefix(archive)
    check_version(archive, prefix)
    record = record_of(archive, f"{prefix}data.pkl")
    pickle = reader.read(archive.read(record, pickle_limit(record)))
    storages = Storages(archive, f"{prefix}data/", byteorder_of(archive, prefix))
    listing = list_object(pickle, storages)
    storages.check_named(pickle)
    saved = tuple(entry for entry in listing.entries if isinstance(entry, Param))
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=listing.entries,
        saved=storages,
        modules=listing.modules,
        sources=(source,),
        keys=keys_in(pickle, storages),
        document=ArchiveDocument(storages, record, pickle, Editor(pickle, saved), alignment_of(archive, prefix)),
    )


def pickled_nbytes(source: Source) -> int:
    """Return how many bytes the pickle in an archive takes, inflated. Raises FormatError as `read` does."""
    archive = zips.read(source)
    return record_of(archive, f"{_prefix(archive)}data.pkl").nbytes


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a new state_dict would not hold; a checkpoint's own document holds everything."""
    if isinstance(checkpoint.document, ArchiveDocument):
        return []
    return new_state_dict.losses(checkpoint, checkpoint.keys)


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the places where the pickle holds tensors that no path names any more, such as in an optimizer object."""
    return edits.unlisted_tensors(checkpoint, ArchiveDocument)


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the archive's segments: its own records around those that changed, or a new state_dict."""
    if isinstance(checkpoint.document, ArchiveDocument):
        return checkpoint.document.layout(checkpoint)
    return _state_dict(checkpoint)


def verify(path: Path, meant: Checkpoint) -> None:
    """Nothing beyond reading it back: torch takes seconds to import and checks less than we do."""


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about the archive, every byte of it read: records, end of its pickle, unused storages."""
    assert isinstance(checkpoint.document, ArchiveDocument)
    yield from checkpoint.document.audit(checkpoint, on_progress)
    yield from _strays(checkpoint.document)


def _strays(document: ArchiveDocument) -> Iterator[Finding]:
    """Yield the records that torch refuses for where they lie, and those it never reads."""
    from paramctl.findings import Finding

    archive, prefix = document.storages.archive, document.record.name[: -len("data.pkl")]
    names = {name: name.removeprefix(prefix) for name in archive.records}
    outside = [name for name, inner in names.items() if not prefix or inner == name]
    if outside:
        listed = some(list(map(repr, outside)))
        what = f"records lie outside of one folder, and torch.load refuses the file for that: {listed}"
        yield Finding("warning", "integrity", "outside", None, what)
    unread = [
        name
        for name, inner in names.items()
        if name not in outside and zips.folded(inner) not in KNOWN and not zips.folded(inner).startswith("data/")
    ]
    if nbytes := sum(archive.records[name].nbytes for name in unread):
        listed = some([name for name in unread if archive.records[name].nbytes])
        what = f"torch never reads {nbytes:,} bytes of the archive (records {listed})"
        yield Finding("note", "integrity", "unused-record", None, what)


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles that loading this file would run, each with the name of its record; in an .npz, numpy's."""
    has_object = False
    for name, load in zip_pickles.code(source):
        has_object |= zips.folded(name).rpartition("/")[2] == "data.pkl"
        yield name, load
    if not has_object:
        yield from unread_files.in_archive(zips.read(source), pickle_limit)


def _prefix(archive: Archive) -> str:
    """Return the folder that all records lie in. Raises Unsupported for an archive of another kind."""
    prefix, names = folder_of(archive), archive.records
    if f"{prefix}constants.pkl" not in names and archive.find(f"{prefix}constants.pkl"):
        what = f"record {prefix}constants.pkl is in another case of letters"
        raise TwoReadings(f"{what}: torch.load takes the file for one of torch.save, torch.jit.load for TorchScript")
    if archive.find(f"{prefix}data.pkl"):
        return prefix
    if "model.weights.h5" in names:
        raise Unsupported("is a Keras archive, which this version does not read")
    if all(name.endswith(".npy") for name in names):
        raise Unsupported("is a NumPy .npz archive, which this version does not read")
    what = "is a zip archive, but torch.save did not write it: it has no data.pkl"
    inside = {name.removeprefix(prefix) for name in names}
    if {"version", "byteorder", ".data/version"} & inside or any(re.fullmatch(r"data/[0-9]+", name) for name in inside):
        raise FormatError(what)
    raise Unsupported(what)


def _state_dict(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield a new archive: an OrderedDict of the params, tied ones over one storage."""
    root, storages = saved_object(checkpoint)
    return zip_layout.layout(None, _archive_pieces(root, storages), ALIGNMENT)


def _archive_pieces(root: object, storages: list[Storage]) -> list[ZipPiece]:
    def helper(name: str, data: bytes) -> ZipPiece:
        return ZipPiece(f"archive/{name}", None, (LiteralSegment(data),))

    return [
        helper("data.pkl", writer.write(root, 2)),
        helper(".format_version", b"1"),
        helper(".storage_alignment", b"%d" % ALIGNMENT),
        helper("byteorder", b"little"),
        *(ZipPiece(f"archive/data/{i}", None, storage.content) for i, storage in enumerate(storages)),
        helper("version", b"3\n"),
    ]
