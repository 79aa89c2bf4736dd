"""What torch.save writes since 1.6: a zip archive of one pickle and a record for each storage.

Reference: torch/serialization.py and caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paramctl.checkpoint import Checkpoint, Entry, Leaf, Loss, Param, Storage, View
from paramctl.dtypes import BY_STORAGE
from paramctl.errors import FormatError, Unsupported, UsageError, some
from paramctl.formats import pickle_writer, pickles, zips
from paramctl.formats.pickle_nodes import Call, Global, Persistent, PyString
from paramctl.formats.pickles import Pickle
from paramctl.formats.torch_edits import Editor
from paramctl.formats.torch_objects import list_object
from paramctl.formats.torch_tensors import Stored, storage_id, tensor_node
from paramctl.formats.zips import Archive, Piece, Record
from paramctl.segments import Literal as LiteralSegment
from paramctl.segments import Segment
from paramctl.sources import Source
from paramctl.values import contiguous_copy
from paramctl.watch import Watch, nobody

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torch-zip"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt")
MAX_PICKLE = 256 << 20  # bytes of data.pkl, inflated
MAX_RATIO = 64  # inflated bytes of data.pkl for one in the file, so that work is bounded by the file's size
MAX_HELPER = 64 << 10  # bytes of version, byteorder, …
KNOWN = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
VERSIONS = range(1, 11)  # of the archive; torch 2.13 reads 1 to 10 and writes 3
ALIGNMENT = 64  # bytes, unless the archive says otherwise
MAX_ALIGNMENT = 1 << 15  # the padding must fit an extra field, whose length has 16 bits


@dataclass(frozen=True)
class Document:
    """What is needed to write an archive back: its records, its pickle and what edits that, its alignment."""

    archive: Archive
    prefix: str
    pickle: Pickle
    editor: Editor
    alignment: int


def recognises(head: bytes, source: Source) -> bool:
    """Whether a zip archive begins here."""
    return head.startswith(zips.MAGIC)


def read(source: Source) -> Checkpoint:
    """List what torch.save wrote. Raises FormatError where the archive contradicts itself."""
    archive = zips.read(source)
    prefix = _prefix(archive)
    _check_version(archive, prefix)
    record = archive.records[f"{prefix}data.pkl"]
    pickle = pickles.read(archive.read(record, _pickle_limit(record)))
    storages = _Storages(archive, prefix, _byteorder(archive, prefix))
    listing = list_object(pickle, storages)
    saved = tuple(entry for entry in listing.entries if isinstance(entry, Param))
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=listing.entries,
        saved=storages,
        modules=listing.modules,
        sources=(source,),
        document=Document(archive, prefix, pickle, Editor(pickle, saved), _alignment(archive, prefix)),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """What a new state_dict would not hold; a checkpoint's own document holds everything."""
    if isinstance(checkpoint.document, Document):
        return []
    return [Loss(entry, why) for entry in checkpoint.entries if (why := _no_place(entry))]


def _no_place(entry: Entry) -> str:
    """Why an entry cannot be written anew; empty if it can."""
    if isinstance(entry, Leaf):
        return "object" if entry.is_object else "scalar"
    if not entry.is_plain:
        return f"{entry.layout} tensor"
    if entry.dtype.name.startswith("float6_"):
        return f"{entry.dtype.name}, which torch has no dtype for"
    if entry.dtype.name == "float4_e2m1fn" and (not entry.shape or entry.shape[-1] % 2):
        return "float4_e2m1fn with an odd last dimension, and torch has pairs"
    return ""


def left(checkpoint: Checkpoint) -> list[str]:
    """Where the pickle holds tensors that no path names any more, such as in an optimizer object."""
    return checkpoint.document.editor.left(checkpoint) if isinstance(checkpoint.document, Document) else []


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """The archive's segments: its own records around those that changed, or a new state_dict."""
    if isinstance(checkpoint.document, Document):
        return _edited(checkpoint, checkpoint.document)
    return _state_dict(checkpoint)


def verify(path: Path, meant: Checkpoint) -> None:
    """Nothing beyond reading it back: torch takes seconds to import and checks less than we do."""


def audit(checkpoint: Checkpoint, watch: Watch = nobody) -> Iterator[Finding]:
    """What is wrong with the archive, every byte of it read: records, the end of its pickle, storages nobody uses."""
    from paramctl.findings import Finding
    from paramctl.formats import zip_audit

    document = checkpoint.document
    assert isinstance(document, Document)
    archive, folder = document.archive, f"{document.prefix}data/"
    users: dict[str, str] = {}
    for param in checkpoint.params:
        for part in (param, *param.components):
            users.setdefault(f"{folder}{part.storage}", param.path)
    for name, finding in zip_audit.audit(archive, watch):
        yield finding._replace(path=users.get(name))
    record = archive.records[f"{document.prefix}data.pkl"]
    if record.nbytes > document.pickle.end:
        what = f"{record.nbytes - document.pickle.end:,} bytes follow the end of the pickle (record data.pkl)"
        yield Finding("warning", "integrity", "trailing", None, what)
    outside, unread, unused = _strays(document)
    if outside:
        names = some(list(map(repr, outside)))
        what = f"records lie outside of one folder, and torch.load refuses the file for that: {names}"
        yield Finding("warning", "integrity", "outside", None, what)
    for rule, found, what in (
        ("unused-record", unread, "torch never reads {0:,} bytes of the archive (records {1})"),
        ("unused-storage", unused, "no tensor uses {0:,} bytes of stored values (storages {1})"),
    ):
        if nbytes := sum(archive.records[name].nbytes for name in found):
            names = some([name.removeprefix(folder) for name in found])
            yield Finding("note", "integrity", rule, None, what.format(nbytes, names))


def _strays(document: Document) -> tuple[list[str], list[str], list[str]]:
    """Names of records outside of the archive's folder, of those that torch does not know, and of unused storages."""
    prefix, used = document.prefix, _keys(document.pickle)
    outside, unread, unused = [], [], []
    for name, record in document.archive.records.items():
        inner = name.removeprefix(prefix)
        if not prefix or inner == name:
            outside.append(name)
        elif inner.startswith("data/"):
            if inner.removeprefix("data/") not in used:
                unused.append(name)
        elif inner not in KNOWN and record.nbytes:
            unread.append(name)
    return outside, unread, unused


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The pickles that loading this file would run, each with the name of its record."""
    archive = zips.read(source)
    for name, record in archive.records.items():
        if name.endswith(".pkl"):
            yield name, partial(archive.read, record, _pickle_limit(record))


def _pickle_limit(record: Record) -> int:
    return min(MAX_PICKLE, MAX_RATIO * record.packed + MAX_HELPER)


def _prefix(archive: Archive) -> str:
    """The folder all records lie in, as torch finds it: that of the first."""
    first = next(iter(archive.records), None)
    if first is None:
        raise FormatError("is a zip archive without any records")
    prefix = first[: first.index("/") + 1] if "/" in first else ""
    names = archive.records
    if f"{prefix}constants.pkl" in names:
        raise Unsupported("is a TorchScript archive, which this version does not read")
    if f"{prefix}data.pkl" in names:
        return prefix
    if f"{prefix}archive_format" in names or "serialized_exported_program.json" in names:
        raise Unsupported("is a torch.export archive, which this version does not read")
    if "model.weights.h5" in names:
        raise Unsupported("is a Keras archive, which this version does not read")
    if all(name.endswith(".npy") for name in names):
        raise Unsupported("is a NumPy .npz archive, which this version does not read")
    what = "is a zip archive, but torch.save did not write it: it has no data.pkl"
    if any(name.startswith(f"{prefix}data/") for name in names):
        raise FormatError(what)
    raise Unsupported(what)


def _helper(archive: Archive, name: str) -> bytes | None:
    record = archive.records.get(name)
    return None if record is None else archive.read(record, MAX_HELPER).strip()


def _check_version(archive: Archive, prefix: str) -> None:
    text = _helper(archive, f"{prefix}version") or _helper(archive, f"{prefix}.data/version") or b"1"
    if not re.fullmatch(rb"[0-9]{1,9}", text) or int(text) not in VERSIONS:
        raise FormatError(
            f"says version {text[:20]!r}, and torch reads {VERSIONS[0]} to {VERSIONS[-1]} (record version)"
        )


def _byteorder(archive: Archive, prefix: str) -> Literal["little", "big"]:
    text = _helper(archive, f"{prefix}byteorder")
    if text in (None, b"little"):
        return "little"
    if text == b"big":
        return "big"
    raise FormatError(f"says byteorder {(text or b'')[:20]!r}, and torch knows little and big (record byteorder)")


def _alignment(archive: Archive, prefix: str) -> int:
    text = _helper(archive, f"{prefix}.storage_alignment") or b""
    asked = int(text) if re.fullmatch(rb"[0-9]{1,7}", text) else ALIGNMENT
    return asked if 0 < asked <= MAX_ALIGNMENT and asked & (asked - 1) == 0 else ALIGNMENT


class _Storages(Mapping[str, Storage]):
    """The storages of an archive, each made when it is asked for: a listing asks for none."""

    def __init__(self, archive: Archive, prefix: str, byteorder: Literal["little", "big"]) -> None:
        self.archive = archive
        self.folder = f"{prefix}data/"
        self.byteorder = byteorder

    def __getitem__(self, key: str) -> Storage:
        record = self.archive.records[self.folder + key]
        crc = record.crc32 if record.has_crc else None
        return Storage((self.archive.content(record),), record.nbytes, self.byteorder, crc)

    def __iter__(self) -> Iterator[str]:
        start = len(self.folder)
        return (name[start:] for name in self.archive.records if name.startswith(self.folder))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def open(self, key: str) -> Storage:
        return self[key]

    def find(self, pid: object) -> Stored:
        """The storage a persistent id names. Raises FormatError unless the archive has just that."""
        found = pid.pid if isinstance(pid, Persistent) else None
        if not isinstance(found, tuple) or len(found) < 5 or _text(found[0]) != "storage":
            raise FormatError("a tensor names no storage: its persistent id is not ('storage', …)")
        word, key, device, numel = found[1:5]
        if type(key) is not str:
            key = _text(key)
        if not isinstance(word, Global):
            raise FormatError("a storage's class is not named by a global")
        dtype = BY_STORAGE.get(word.name)
        if dtype is None and word.name not in ("UntypedStorage", "_UntypedStorage"):
            raise FormatError(f"storage {key!r} is of the unknown class {word.full}")
        record = self.archive.records.get(self.folder + key) if key is not None else None
        if record is None or key is None:
            raise FormatError(f"storage {key!r} is not in the archive")
        bits = max(dtype.bits, 8) if dtype else 8  # of elements smaller than a byte torch counts the bytes
        if type(numel) is not int or numel < 0 or (numel * bits + 7) // 8 != record.nbytes:
            raise FormatError(
                f"storage {key!r} claims {numel!r} elements of {bits} bits; its record has {record.nbytes:,} bytes"
            )
        return Stored(key, dtype, record.nbytes, _text(device) or "cpu")


def _text(node: object) -> str | None:
    return node.text if isinstance(node, PyString) else node if isinstance(node, str) else None


def _edited(checkpoint: Checkpoint, document: Document) -> Iterator[Segment]:
    """The archive with the storages that changed, and with a new pickle where its structure did."""
    archive, prefix = document.archive, document.prefix
    edits = document.editor.edits(checkpoint)
    edited = dict(checkpoint.edited)
    gone: set[str] = set()
    pickle: bytes | None = None
    if edits:
        pickle = pickle_writer.write(document.pickle.root, document.pickle.protocol, edits)
        before, after = _keys(document.pickle), _keys(pickles.read(pickle))
        gone = before - after
        edited = {key: storage for key, storage in edited.items() if key in after}
    pieces: list[Piece] = []
    last_storage = 0
    for record in sorted(archive.records.values(), key=lambda record: record.header):
        key = record.name.removeprefix(f"{prefix}data/")
        if key in gone and key != record.name:
            continue
        if pickle is not None and record.name == f"{prefix}data.pkl":
            pieces.append(Piece(record.name, record, (LiteralSegment(pickle),)))
        elif key != record.name and key in edited:
            pieces.append(_piece(record.name, record, edited.pop(key)))
        else:
            pieces.append(Piece(record.name, record))
        if key != record.name:
            last_storage = len(pieces)
    new = [_piece(f"{prefix}data/{key}", None, storage) for key, storage in edited.items()]
    at = last_storage or len(pieces)
    return zips.layout(archive, [*pieces[:at], *new, *pieces[at:]], document.alignment)


def _piece(name: str, record: Record | None, storage: Storage) -> Piece:
    """A changed storage; an archive written without checksums keeps none."""
    without = record is not None and not record.has_crc and record.nbytes > 0
    return Piece(name, record, storage.content, without)


def _keys(pickle: Pickle) -> set[str]:
    """The keys of all storages a pickle names."""
    found = (node.pid for node in pickle.persistent)
    return {key for pid in found if isinstance(pid, tuple) and len(pid) > 2 and (key := _text(pid[2])) is not None}


_ORDERED = Global("collections", "OrderedDict")


def _state_dict(checkpoint: Checkpoint) -> Iterator[Segment]:
    """A new archive: an OrderedDict of the params, tied ones over one storage."""
    root = Call(_ORDERED, (), None, "reduce")
    root.mutations = []
    written: dict[View, tuple[Param, Persistent]] = {}
    storages: list[Storage] = []
    for param in checkpoint.params:
        if param.view not in written or not param.numel:
            own, storage = contiguous_copy(checkpoint, _as_torch(param), str(len(storages)))
            written[param.view] = own, storage_id(str(own.storage), own.dtype, storage.nbytes, "cpu")
            storages.append(storage)
        root.mutations.append(("items", (param.path, tensor_node(*written[param.view]))))
    _check_unique(checkpoint)
    return zips.layout(None, _archive_pieces(root, storages), ALIGNMENT)


def _as_torch(param: Param) -> Param:
    """A param in a dtype torch has: pairs of 4-bit floats are one element."""
    if param.dtype.name == "float4_e2m1fn" and param.shape and param.shape[-1] % 2 == 0:
        from paramctl.checkpoint import contiguous
        from paramctl.dtypes import BY_NAME

        shape = (*param.shape[:-1], param.shape[-1] // 2)
        return param._replace(dtype=BY_NAME["float4_e2m1fn_x2"], shape=shape, strides=contiguous(shape))
    return param


def _check_unique(checkpoint: Checkpoint) -> None:
    paths = [param.path for param in checkpoint.params]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"two tensors print as '{twice}', and a state_dict has one name for each")


def _archive_pieces(root: Call, storages: list[Storage]) -> list[Piece]:
    def helper(name: str, data: bytes) -> Piece:
        return Piece(f"archive/{name}", None, (LiteralSegment(data),))

    return [
        helper("data.pkl", pickle_writer.write(root, 2)),
        helper(".format_version", b"1"),
        helper(".storage_alignment", b"%d" % ALIGNMENT),
        helper("byteorder", b"little"),
        *(Piece(f"archive/data/{i}", None, storage.content) for i, storage in enumerate(storages)),
        helper("version", b"3\n"),
    ]
