"""What torch's archives have in common, whatever they hold: helper records, storages, and which kind one is.

Reference: caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paramctl.errors import FormatError, TwoReadings, some
from paramctl.files.content import Literal as LiteralSegment
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.containers import zip_layout, zips
from paramctl.formats.containers.zip_layout import ZipPiece
from paramctl.formats.containers.zips import Archive, Record
from paramctl.formats.pickles import reader, writer
from paramctl.formats.pickles.nodes import Global, Persistent, PyString
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.pytorch.edits import Editor, Edits
from paramctl.formats.pytorch.tensor_places import Stored
from paramctl.model.checkpoint import Checkpoint, Storage
from paramctl.model.dtypes import BY_NAME, BY_STORAGE, DType
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

Kind = Literal["torch.save", "TorchScript", "TorchScript of 1.0", "torch.export"]

MAX_PICKLE = 256 << 20  # bytes of data.pkl, inflated
MAX_RATIO = 16  # inflated bytes of data.pkl for one in the file, so that work is bounded by the file's size; 5 is usual
SMALL_PICKLE = 256 << 10  # inflated bytes beyond that
MAX_HELPER = 64 << 10  # bytes of version, byteorder, …
VERSIONS = range(1, 11)  # of the archive; torch 2.13 reads 1 to 10 and writes 3
ALIGNMENT = 64  # bytes, unless the archive says otherwise
MAX_ALIGNMENT = 1 << 15  # the padding must fit an extra field, whose length has 16 bits
_MARKS = (b"constants.pkl", b"model.json", b"archive_format", b"serialized_exported_program.json")


def kind(source: Source) -> Kind:
    """Return which of torch's archives a zip file is; one that is none of them, or damaged, counts as torch.save's."""
    try:
        directory = zips.directory(source)
        lower = directory.lower()
        if not any(mark in lower for mark in _MARKS):  # a quick look: most are not worth a second one
            return "torch.save"
        archive = zips.read(source)
    except FormatError:
        return "torch.save"
    prefix = folder_of(archive) if archive.records else ""
    if f"{prefix}constants.pkl" in archive.records:
        return "TorchScript"
    if archive.find(f"{prefix}data.pkl"):
        return "torch.save"
    if archive.find(f"{prefix}archive_format") or "serialized_exported_program.json" in archive.records:
        return "torch.export"
    return "TorchScript of 1.0" if archive.find(f"{prefix}model.json") else "torch.save"


def folder_of(archive: Archive) -> str:
    """Return the folder that all records lie in, as torch finds it: the first one's. Raises FormatError without one."""
    first = next(iter(archive.records), None)
    if first is None:
        raise FormatError("is a zip archive without any records")
    return first[: first.index("/") + 1] if "/" in first else ""


def record_of(archive: Archive, name: str) -> Record:
    """Return the record that torch finds under a name. Raises FormatError if there is none."""
    record = archive.find(name)
    if record is None:
        raise FormatError(f"has no record {name}")
    return record


def pickle_limit(record: Record) -> int:
    return min(MAX_PICKLE, MAX_RATIO * record.packed + SMALL_PICKLE)


def helper(archive: Archive, name: str) -> bytes | None:
    record = archive.find(name)
    return None if record is None else archive.read(record, MAX_HELPER).strip()


def check_version(archive: Archive, prefix: str) -> None:
    text = helper(archive, f"{prefix}.data/version") or helper(archive, f"{prefix}version") or b"1"
    if not re.fullmatch(rb"[0-9]{1,9}", text) or int(text) not in VERSIONS:
        raise FormatError(
            f"says version {text[:20]!r}, and torch reads {VERSIONS[0]} to {VERSIONS[-1]} (record version)"
        )


def byteorder_of(archive: Archive, prefix: str) -> Literal["little", "big"]:
    text = helper(archive, f"{prefix}byteorder")
    if text in (None, b"little"):
        return "little"
    if text == b"big":
        return "big"
    raise FormatError(f"says byteorder {(text or b'')[:20]!r}, and torch knows little and big (record byteorder)")


def alignment_of(archive: Archive, prefix: str) -> int:
    text = helper(archive, f"{prefix}.storage_alignment") or b""
    asked = int(text) if re.fullmatch(rb"[0-9]{1,7}", text) else ALIGNMENT
    return asked if 0 < asked <= MAX_ALIGNMENT and asked & (asked - 1) == 0 else ALIGNMENT


class Storages(Mapping[str, Storage]):
    """The storages in a folder of an archive, each made when it is asked for: a listing asks for none."""

    words: Mapping[str, DType] = BY_STORAGE

    def __init__(self, archive: Archive, folder: str, byteorder: Literal["little", "big"]) -> None:
        self.archive = archive
        self.folder = folder
        self.byteorder = byteorder
        self.is_respelt = False  # whether some key is in another case of letters than the record it names

    def __getitem__(self, key: str) -> Storage:
        record = self.archive.find(self.folder + key)
        if record is None:
            raise KeyError(key)
        crc = record.crc32 if record.has_crc else None
        return Storage((self.archive.content(record),), record.nbytes, self.byteorder, crc)

    def __iter__(self) -> Iterator[str]:
        return (key for name in self.archive.records if (key := self.key_of(name)) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def key_of(self, name: str) -> str | None:
        """Return the key of the storage in the record of that name; None for a record outside the folder."""
        size = len(self.folder)
        inside = name.startswith(self.folder) or zips.folded(name[:size]) == zips.folded(self.folder)
        return name[size:] if inside else None

    def own_key(self, key: str) -> str:
        """Return a key as the archive spells it, which torch finds in any case of letters."""
        record = self.archive.find(self.folder + key)
        return record.name[len(self.folder) :] if record else key

    def check_named(self, pickle: Pickle) -> None:
        """Raise TwoReadings where a pickle names a storage with two dtypes, or spells its key in two ways.

        torch gives a storage the dtype of the id it meets first, and reads it anew for each spelling.
        """
        if sum("Storage" in word.name for word in pickle.globals) < 2 and not self.is_respelt:
            return
        named: dict[str, tuple[str, DType | None]] = {}
        for key, word in {found for node in pickle.persistent if (found := _key_and_word(node))}:
            dtype = self.words.get(word, BY_NAME["uint8"])
            first, other = named.setdefault(zips.folded(key), (key, dtype))
            if first != key:
                raise TwoReadings(f"storage {first!r} is named as {key!r} too")
            record = self.archive.find(self.folder + key)
            if other != dtype and record is not None and record.nbytes:
                raise TwoReadings(f"storage {key!r} is named with two dtypes, and torch takes the first for both")

    def open(self, key: str) -> Storage:
        return self[key]

    def find(self, pid: object) -> Stored:
        """Return the storage that a persistent id names. Raises FormatError unless the archive has exactly that."""
        found = pid.pid if isinstance(pid, Persistent) else None
        if not isinstance(found, tuple) or len(found) < 5 or text_of(found[0]) != "storage":
            raise FormatError("a tensor names no storage: its persistent id is not ('storage', …)")
        word, key, device, numel = found[1:5]
        if type(key) is not str:
            key = text_of(key)
        if not isinstance(word, Global):
            raise FormatError("a storage's class is not named by a global")
        dtype = self.words.get(word.name)
        if dtype is None and word.name not in ("UntypedStorage", "_UntypedStorage"):
            raise FormatError(f"storage {key!r} is of the unknown class {word.full}")
        record = self.archive.records.get(self.folder + key) if key is not None else None
        if record is None and key is not None and (record := self.archive.find(self.folder + key)):
            key, self.is_respelt = self.own_key(key), True
        if record is None or key is None:
            raise FormatError(f"storage {key!r} is not in the archive")
        bits = dtype.bits if dtype and dtype.bits > 8 else 8  # of elements smaller than a byte torch counts the bytes
        if type(numel) is not int or numel < 0 or (numel * bits + 7) // 8 != record.nbytes:
            raise FormatError(
                f"storage {key!r} claims {numel!r} elements of {bits} bits; its record has {record.nbytes:,} bytes"
            )
        return Stored(key, dtype, record.nbytes, text_of(device) or "cpu")


def _key_and_word(node: Persistent) -> tuple[str, str] | None:
    """Return the key and the class that the id of a storage says; None for what is none."""
    pid = node.pid
    if not isinstance(pid, tuple) or len(pid) < 5 or not isinstance(pid[1], Global):
        return None
    key = text_of(pid[2])
    return None if key is None else (key, pid[1].name)


def text_of(node: object) -> str | None:
    return node.text if isinstance(node, PyString) else node if isinstance(node, str) else None


@dataclass(frozen=True)
class ArchiveDocument:
    """The parts needed to write an archive back: storages, the pickle in `record` and its edits, and the alignment.

    `pickled` writes a pickle for those who read it.
    """

    storages: Storages
    record: Record
    pickle: Pickle
    editor: Editor
    alignment: int
    pickled: Callable[[Any, int, Edits], bytes] = writer.write

    def layout(self, checkpoint: Checkpoint) -> Iterator[Segment]:
        """Yield the archive with the storages that changed, and with a new pickle if its structure changed."""
        archive, folder = self.storages.archive, self.storages.folder
        edits = self.editor.edits(checkpoint)
        edited = dict(checkpoint.edited)
        gone: set[str | None] = set()
        pickle: bytes | None = None
        if edits:
            pickle = self.pickled(self.pickle.root, self.pickle.protocol, edits)
            before, after = self.keys_of(self.pickle), self.keys_of(reader.read(pickle))
            gone = before - after
            edited = {key: storage for key, storage in edited.items() if key in after}
        pieces: list[ZipPiece] = []
        last_storage = 0
        for record in sorted(archive.records.values(), key=lambda record: record.header):
            key = self.storages.key_of(record.name)
            if key in gone:
                continue
            if pickle is not None and record.name == self.record.name:
                pieces.append(ZipPiece(record.name, record, (LiteralSegment(pickle),)))
            elif key is not None and key in edited:
                pieces.append(changed_piece(record.name, record, edited.pop(key)))
            else:
                pieces.append(ZipPiece(record.name, record))
            if key is not None:
                last_storage = len(pieces)
        new = [changed_piece(f"{folder}{key}", None, storage) for key, storage in edited.items()]
        at = last_storage or len(pieces)
        return zip_layout.layout(archive, [*pieces[:at], *new, *pieces[at:]], self.alignment)

    def audit(self, checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
        """Yield the findings about the archive, every byte of it read."""
        from paramctl.findings import Finding
        from paramctl.formats.containers import zip_audit

        archive, folder = self.storages.archive, self.storages.folder
        yield from zip_audit.audit_for(checkpoint, archive, folder, on_progress)
        if self.record.nbytes > self.pickle.end:
            name = self.record.name.rpartition("/")[2]
            what = f"{self.record.nbytes - self.pickle.end:,} bytes follow the end of the pickle (record {name})"
            yield Finding("warning", "integrity", "trailing", None, what)
        used = self.keys_of(self.pickle)
        unused = [key for key in self.storages if key not in used]
        if nbytes := sum(record.nbytes for key in unused if (record := archive.find(folder + key))):
            names = some(unused)
            what = f"no tensor uses {nbytes:,} bytes of stored values (storages {names})"
            yield Finding("note", "integrity", "unused-storage", None, what)

    def keys_of(self, pickle: Pickle) -> set[str | None]:
        """Return the keys of all storages that a pickle names, as the archive spells them."""
        return {self.storages.own_key(key) for key in keys_of(pickle)}


def changed_piece(name: str, record: Record | None, storage: Storage) -> ZipPiece:
    """Return a changed storage as a record; an archive written without checksums keeps none."""
    without = record is not None and not record.has_crc and record.nbytes > 0
    return ZipPiece(name, record, storage.content, without)


def keys_of(pickle: Pickle) -> set[str]:
    """Return the keys of all storages that a pickle names."""
    found = (node.pid for node in pickle.persistent)
    return {key for pid in found if isinstance(pid, tuple) and len(pid) > 2 and (key := text_of(pid[2])) is not None}
