"""What torch.save wrote before 1.6, and writes still if asked to: five pickles, then the storages.

The pickles hold a magic number, a version, what machine wrote them, the object, and the keys of the
storages in the order in which they follow: the number of elements of each, then its values, little-endian
whatever the machine. Reference: `_legacy_save` and `_legacy_load` in torch/serialization.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paramctl.errors import FormatError
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Segment
from paramctl.files.sources import Source, Window
from paramctl.formats.pickles import embedded, reader, writer
from paramctl.formats.pickles.nodes import Dict, Persistent, class_of
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import edits, new_state_dict
from paramctl.formats.pytorch.edits import Editor
from paramctl.formats.pytorch.new_state_dict import saved_object
from paramctl.formats.pytorch.objects import keys_in, list_object
from paramctl.formats.pytorch.old_storages import (
    PREFIX,
    Named,
    StoragePart,
    Storages,
    StorageSpan,
    contradiction,
    extent_at,
    key_text,
    part_of,
    size,
    storage_named,
    with_changes,
)
from paramctl.formats.pytorch.tensor_nodes import storage_id
from paramctl.formats.pytorch.tensor_places import Stored
from paramctl.model.checkpoint import Checkpoint, Loss, Param
from paramctl.model.dtypes import DType
from paramctl.model.shapes import int_text
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torch-legacy"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt")
WRITES: Writes = "any"
KEEPS_TIES = True
KEEPS_METADATA = False
MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
PICKLES = 5
PROTOCOL = 2  # of the pickles in a new file
SIZES = {"short": 2, "int": 4, "long": 4}  # bytes of C types, as torch writes them on every machine


@dataclass(frozen=True)
class LegacyDocument:
    """The parts needed to write a file back: its object and its edits, the pickle of its keys, and the places of both.

    `before` is everything in front of the object, `after` what follows the last storage.
    """

    before: Extent
    object: Pickle
    keys: Pickle
    editor: Editor
    after: Extent


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a pickle of the magic number begins here, in any protocol."""
    if head[:1] not in (b"\x80", b"L"):
        return False
    try:
        return bool(reader.read(head).root == MAGIC)
    except FormatError:
        return False


def read(source: Source) -> Checkpoint:
    """List what torch.save wrote. Raises FormatError where the file contradicts itself."""
    found, starts = [], [0]
    for number in range(PICKLES):
        found.append(_pickle(source, starts[-1], number))
        starts.append(starts[-1] + found[-1].end)
    _, version, _, saved, keys = found
    if version.root != VERSION:
        raise FormatError(f"says version {_short(version.root)} of torch's old format, and torch knows {VERSION}")
    storages, end = _storages(source, saved, keys, starts[-1])
    listing = list_object(saved, storages)
    params = tuple(entry for entry in listing.entries if isinstance(entry, Param))
    before, after = Extent(source, 0, starts[3]), Extent(source, end, source.size - end)
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=listing.entries,
        saved=storages,
        modules=listing.modules,
        sources=(source,),
        keys=keys_in(saved, storages),
        document=LegacyDocument(before, saved, keys, Editor(saved, params, _storage_id), after),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a new state_dict would not hold; a checkpoint's own document holds everything."""
    if isinstance(checkpoint.document, LegacyDocument):
        return []
    return new_state_dict.losses(checkpoint, checkpoint.keys, without_class="unknown to torch's old format")


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the places where the pickle holds tensors that no path names any more, such as in an optimizer object."""
    return edits.unlisted_tensors(checkpoint, LegacyDocument)


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the file's segments: its own around what changed, or a new state_dict."""
    if isinstance(checkpoint.document, LegacyDocument):
        return _edited(checkpoint, checkpoint.document)
    return _state_dict(checkpoint)


def verify(path: Path, meant: Checkpoint) -> None:
    """Nothing beyond reading it back: torch takes seconds to import and checks less than we do."""


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield what reading does not refuse: bytes behind the last storage. The format has no checksums."""
    from paramctl.findings import Finding

    document = checkpoint.document
    assert isinstance(document, LegacyDocument)
    if document.after.nbytes:
        what = f"{document.after.nbytes:,} bytes follow the last storage (byte {document.after.offset:,})"
        yield Finding("warning", "integrity", "trailing", None, what)


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles that loading this file would run: all five, or those before the first that is damaged."""
    start = 0
    for number in range(PICKLES):
        yield from embedded.code(source, start, source.size, f"pickle {number + 1}")
        try:
            start += _pickle(source, start, number).end
        except FormatError:
            return


def _pickle(source: Source, start: int, number: int) -> Pickle:
    if start >= source.size:
        raise FormatError(f"ends at byte {start:,}, behind {number} of the {PICKLES} pickles it should begin with")
    return embedded.read(source, start, source.size)


def _short(node: object) -> str:
    if isinstance(node, int):
        return int_text(node)
    return repr(node)[:20] if isinstance(node, str) else f"{type(node).__name__!r}"


def _storages(source: Source, saved: Pickle, keys: Pickle, start: int) -> tuple[Storages, int]:
    """Return the storages behind the pickles, and their end. Raises FormatError unless keys, ids and sizes agree."""
    named, parts = _named(saved.persistent)
    spots: dict[str, StorageSpan] = {}
    window = Window(source)
    for key in _keys(keys):
        storage = named.get(key)
        if storage is None:
            raise FormatError(f"storage {key!r} is in the list of keys, and no tensor names it")
        if key in spots:
            raise FormatError(f"storage {key!r} is twice in the list of keys")
        (numel,) = struct.unpack("<q", window.read(*_within(source, start, key)))
        if numel != storage.numel:
            raise FormatError(contradiction(storage, size(storage.dtype, max(numel, 0))))
        values = extent_at(source, start + PREFIX, storage.nbytes, source.size, key)
        spots[key] = StorageSpan(start, values, storage.dtype, storage.device)
        start = values.offset + values.nbytes
    for key in named:
        if key not in spots:
            raise FormatError(f"storage {key!r} is not in the file: the list of keys does not name it")
    return Storages(spots, parts), start


def _within(source: Source, start: int, key: str) -> tuple[int, int]:
    if start + PREFIX > source.size:
        raise FormatError(f"ends at byte {source.size:,}, before storage {key!r}")
    return start, PREFIX


def _named(nodes: Iterable[Persistent]) -> tuple[dict[str, Named], dict[str, tuple[str, StoragePart]]]:
    """Return what the object's ids say of each storage, and of each part of one. All ids of one key must agree."""
    named: dict[str, Named] = {}
    parts: dict[str, tuple[str, StoragePart]] = {}
    for node in nodes:
        if class_of(node) is not None:
            continue
        found = storage_named(node)
        first = named.setdefault(found.key, found)
        if not _agree(first, found):
            raise FormatError(f"storage {found.key!r} is named with two dtypes or sizes")
        if found.part is not None:
            part_of(found.part, Stored(found.key, found.dtype, found.nbytes, found.device))
            if parts.setdefault(found.part.key, (found.key, found.part)) != (found.key, found.part):
                raise FormatError(f"storage {found.part.key!r} is named as two different parts of others")
    for key in parts:
        if key in named:
            raise FormatError(f"storage {key!r} is named as one of its own and as a part of another")
    return named, parts


def _agree(one: Named, other: Named) -> bool:
    """Return whether two ids may be of one storage: torch takes the dtype of the first, unless the storage is empty."""
    same = one.dtype is None or other.dtype is None or one.dtype == other.dtype or not one.numel
    return same and one.nbytes == other.nbytes


def _keys(pickle: Pickle) -> list[str]:
    if not isinstance(pickle.root, list | tuple):
        raise FormatError(f"names its storages in no list (pickle {PICKLES})")
    return [key_text(node) for node in pickle.root]


def _storage_id(key: str, dtype: DType, nbytes: int, device: str) -> Persistent:
    """Return the pickled id of a storage; its last item says that the storage is no part of another."""
    return Persistent((*storage_id(key, dtype, nbytes, device).pid, None))


def _edited(checkpoint: Checkpoint, document: LegacyDocument) -> Iterator[Segment]:
    """Yield the file with the storages that changed, and new pickles of object and keys if its structure changed."""
    saved, edited = checkpoint.saved, checkpoint.edited
    assert isinstance(saved, Storages)
    edits = document.editor.edits(checkpoint)
    source = document.before.source
    if not edits:
        spots = ((key, spot.values) for key, spot in saved.spots.items() if key in edited)
        yield from with_changes(Extent(source, 0, source.size), ((at, edited[key].content) for key, at in spots))
        return
    data = writer.write(document.object.root, document.object.protocol, edits)
    named, _ = _named(reader.read(data).persistent)
    yield from (document.before, Literal(data))
    keys = {key: node for node in document.keys.root if (key := key_text(node)) in named}
    new = [key for key in named if key not in keys]
    if new or len(keys) < len(document.keys.root):
        yield Literal(writer.write([*keys.values(), *new], document.keys.protocol))
    else:
        yield Extent(source, document.before.nbytes + document.object.end, document.keys.end)
    for key in (*keys, *new):
        if key in saved.spots:
            yield Extent(source, saved.spots[key].start, PREFIX)
        else:
            yield Literal(struct.pack("<q", named[key].numel))
        yield from checkpoint.storages[key].content
    yield document.after


def _state_dict(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield a new file of an OrderedDict of the params, tied ones over one storage."""
    root, storages = saved_object(checkpoint, _storage_id)
    data = writer.write(root, PROTOCOL)
    named, _ = _named(reader.read(data).persistent)
    keys = sorted(named)  # as torch sorts them: as texts
    yield Literal(b"".join((*_preamble(), data, writer.write(keys, PROTOCOL))))
    for key in keys:
        yield Literal(struct.pack("<q", named[key].numel))
        yield from storages[int(key)].content


def _preamble() -> Iterator[bytes]:
    """Yield the three pickles in front of the object."""
    for root in (MAGIC, VERSION, system()):
        yield writer.write(root, PROTOCOL)


def system() -> Dict:
    """Return torch's notes on the machine that writes, which no reader uses."""
    sizes, made = Dict(), Dict()
    sizes.pairs = list(SIZES.items())
    made.pairs = [("protocol_version", VERSION), ("little_endian", True), ("type_sizes", sizes)]
    return made
