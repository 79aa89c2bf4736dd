"""What torch.save wrote before 0.1.10: a tar archive of the object, its tensors and their storages.

The object's pickle names tensors by number, one table says where each lies in which storage, and another
holds the storages. Reference: `legacy_load` in torch/serialization.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count as counting
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramctl.errors import FormatError, TwoReadings, Unsupported, some
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.containers import tars
from paramctl.formats.containers.tar_header import BLOCK
from paramctl.formats.containers.tars import RECORD, Member, padded
from paramctl.formats.pickles import embedded, unread_files, writer
from paramctl.formats.pickles.machine import Handler, Machine
from paramctl.formats.pickles.nodes import Call, Persistent, class_of, slots
from paramctl.formats.pickles.opcodes import HANDLERS
from paramctl.formats.pickles.reader import Pickle, carried_out
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import edits, legacy_file, new_state_dict
from paramctl.formats.pytorch import tar_tables as tables
from paramctl.formats.pytorch.edits import Editor, Edits
from paramctl.formats.pytorch.legacy_file import system
from paramctl.formats.pytorch.new_state_dict import state_dict
from paramctl.formats.pytorch.objects import keys_in, list_object
from paramctl.formats.pytorch.old_storages import with_changes
from paramctl.formats.pytorch.tar_tables import NUMBERED, Numbered, Row, Table, named_by, reference
from paramctl.formats.pytorch.tensor_nodes import storage_id
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Loss, Param
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torch-tar"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt")
WRITES: Writes = "any"
KEEPS_TIES = True
KEEPS_METADATA = False
SYSTEM, OBJECT, TENSORS, STORAGES = MEMBERS = ("sys_info", "pickle", "tensors", "storages")
PROTOCOL = 2  # of the pickles in a new file


@dataclass(frozen=True)
class TarDocument:
    """The parts needed to write an archive back; `ends` is where the content of each member ends."""

    members: tuple[Member, ...]
    object: Pickle
    editor: Editor
    storages: Table
    rows: tuple[Row, ...]
    ends: Mapping[str, int]


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a tar archive begins here: torch reads whatever tarfile does, and finds its members by name."""
    return tars.recognises(head)


def read(source: Source) -> Checkpoint:
    """List what torch.save wrote. Raises FormatError where the archive contradicts itself."""
    if legacy_file.recognises(source.read(0, BLOCK), source):
        what = "is a tar archive, and a file of torch's old format begins at the same byte"
        raise TwoReadings(f"{what}: torch reads the one from a file and the other from a stream")
    members = tuple(tars.read(source))
    content = _contents(members)
    table = tables.storages(content[STORAGES])
    ends = {STORAGES: table.end}
    rows: list[Row] = []
    if TENSORS in content:
        rows, ends[TENSORS] = tables.rows(content[TENSORS])
    pickle = _object(content[OBJECT], table, rows)
    ends[OBJECT] = content[OBJECT].offset + pickle.end
    storages = Numbered(table.spots, table.parts)
    listing = list_object(pickle, storages)
    params = tuple(entry for entry in listing.entries if isinstance(entry, Param))
    editor = Editor(pickle, params, named_by if TENSORS in content else storage_id)
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=listing.entries,
        saved=storages,
        modules=listing.modules,
        sources=(source,),
        keys=keys_in(pickle, storages),
        document=TarDocument(members, pickle, editor, table, tuple(rows), ends),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a new state_dict would not hold; a checkpoint's own document holds everything."""
    if isinstance(checkpoint.document, TarDocument):
        return []
    return new_state_dict.losses(checkpoint, (), without_class="which has no storage class")


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the places where the pickle holds tensors that no path names any more, such as in an optimizer object."""
    return edits.unlisted_tensors(checkpoint, TarDocument)


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the archive's segments: its own around what changed, or a new state_dict."""
    if isinstance(checkpoint.document, TarDocument):
        return _edited(checkpoint, checkpoint.document)
    return _state_dict(checkpoint)


def verify(path: Path, meant: Checkpoint) -> None:
    """Nothing beyond reading it back: torch takes seconds to import and checks less than we do."""


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield what reading does not refuse: bytes without a meaning, and storages that nothing uses."""
    from paramctl.findings import Finding

    document = checkpoint.document
    assert isinstance(document, TarDocument)
    for name, content in _contents(document.members).items():
        end = content.offset + content.nbytes
        if nbytes := end - document.ends.get(name, end):
            what = f"{nbytes:,} bytes follow the end of what torch reads (member {name})"
            yield Finding("warning", "integrity", "trailing", None, what)
    used = _used(checkpoint, document)
    unused = {key: spot.values.nbytes for key, spot in document.storages.spots.items() if key not in used}
    if nbytes := sum(unused.values()):
        what = f"no tensor uses {nbytes:,} bytes of stored values (storages {some(list(unused))})"
        yield Finding("note", "integrity", "unused-storage", None, what)


def _used(checkpoint: Checkpoint, document: TarDocument) -> set[str | None]:
    """Return the storages that tensors lie in, wholly or in parts, and those that the object names itself."""
    storages = Numbered(document.storages.spots, document.storages.parts)
    numbers = {str(row.number) for row in document.rows}
    ids = [row.node.args[0] for row in document.rows]
    ids += (node for node in document.object.persistent if class_of(node) is None and reference(node) not in numbers)
    listed = {part.storage for param in checkpoint.params for part in (param, *param.components)}
    return {storages.find(pid).key for pid in ids} | listed


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles that loading this file would run, with the names of their members, up to a damaged one."""
    for member in tars.members(source):
        name, content = member.name, member.content
        if not content.nbytes:
            continue
        starts = [content.offset]
        if name in (TENSORS, STORAGES):
            starts = list(tables.pickles_in(content, of_storages=name == STORAGES))
        elif name not in MEMBERS and source.read(content.offset, 1) != unread_files.PICKLE:
            continue  # a link of one of those names may lead to any other member
        for number, start in enumerate(starts, 1):
            part = f"{name}, pickle {number}" if len(starts) > 1 else name
            yield from embedded.code(source, start, content.offset + content.nbytes, part)


def _contents(members: Iterable[Member]) -> dict[str, Extent]:
    """Return the members that torch reads. Raises FormatError if one is missing, there twice, or no file."""
    found: dict[str, Extent] = {}
    for member in members:
        if member.name not in MEMBERS:
            continue
        if member.name in found:
            raise TwoReadings(f"member {member.name!r} is twice in the tar archive")
        if not member.is_regular:
            raise FormatError(f"member {member.name!r} is no regular file")
        found[member.name] = member.content
    if not found:
        raise Unsupported("is a tar archive, and none that torch wrote", hint="unpack it, and name a file in it")
    for name in (OBJECT, STORAGES):
        if name not in found:
            raise FormatError(f"is a tar archive without the member {name!r} that torch writes")
    return found


class _Machine(Machine):
    """Reads the object, with the tensors it names in place of their numbers."""

    __slots__ = ("nodes",)

    nodes: Mapping[str, Call]


def _binpersid(machine: Machine) -> None:
    _plain_binpersid(machine)
    _numbered(machine)


def _persid(machine: Machine) -> None:
    _plain_persid(machine)
    _numbered(machine)


def _numbered(machine: Machine) -> None:
    assert isinstance(machine, _Machine)
    node = machine.nodes.get(reference(machine.stack[-1]) or "")
    if node is not None:
        machine.stack[-1] = node


_plain_binpersid, _plain_persid = HANDLERS[ord("Q")], HANDLERS[ord("P")]
_HANDLERS: list[Handler] = list(HANDLERS)
_HANDLERS[ord("Q")], _HANDLERS[ord("P")] = _binpersid, _persid


def _object(content: Extent, table: Table, rows: Iterable[Row]) -> Pickle:
    """Return the object, with each tensor that it names by number as the node of its row."""
    if content.nbytes > embedded.MAX_PICKLE:
        raise FormatError(f"has a pickle of {content.nbytes:,} bytes, over the limit of {embedded.MAX_PICKLE:,}")
    machine = _Machine(content.source.read(content.offset, content.nbytes), 0, content.offset)
    machine.nodes = {str(row.number): row.node for row in rows}
    for key in (*table.spots, *table.parts):
        if key in machine.nodes:
            raise FormatError(f"{key!r} is the number of a tensor and of a storage")
    return carried_out(machine, _HANDLERS)


def _edited(checkpoint: Checkpoint, document: TarDocument) -> Iterator[Segment]:
    """Yield the archive with the storages that changed, and with new tables if its structure changed."""
    edited, spots = checkpoint.edited, document.storages.spots
    source = checkpoint.sources[0]
    edits = document.editor.edits(checkpoint)
    if edits:
        yield from _restructured(checkpoint, document, edits)
        return
    changes = ((spot.values, edited[key].content) for key, spot in spots.items() if key in edited)
    yield from with_changes(Extent(source, 0, source.size), changes)


def _restructured(checkpoint: Checkpoint, document: TarDocument, edits: Edits) -> Iterator[Segment]:
    """Yield the archive with a new object and new tables; members that torch does not read stay as they are."""
    new = _Renumbered(checkpoint, document, edits)
    made: dict[str, list[Segment]] = {OBJECT: [Literal(new.pickle)], STORAGES: list(new.storages())}
    if TENSORS in document.ends:
        made[TENSORS] = list(new.tensors())
    source = checkpoint.sources[0]
    written = 0
    for member in document.members:
        if member.name in made:
            block = source.read(member.block, BLOCK)
            segments = list(_member(member.name, made[member.name], block))
        else:
            segments = [Extent(source, member.start, member.end - member.start)]
        written += sum(segment.nbytes for segment in segments)
        yield from segments
    yield _ending(written)


def _member(name: str, content: list[Segment], block: bytes = b"") -> Iterator[Segment]:
    nbytes = sum(segment.nbytes for segment in content)
    yield Literal(tars.header(name, nbytes, block))
    yield from content
    yield Literal(bytes(padded(nbytes) - nbytes))


def _ending(written: int) -> Segment:
    """Return two empty blocks, and as many more as fill the last record."""
    return Literal(bytes(padded(written + 2 * BLOCK, RECORD) - written))


class _Renumbered:
    """An edited object with numbers in place of its tensors, and the tables that say what they mean."""

    def __init__(self, checkpoint: Checkpoint, document: TarDocument, edits: Edits) -> None:
        self.checkpoint = checkpoint
        self.document = document
        self.edits = edits
        numbers = [row.number for row in document.rows]
        held = (*checkpoint.storages, *document.storages.parts)
        keys = [n for key in held if (n := shapes.number(key)) is not None]
        self.fresh = counting(max((*numbers, *keys), default=0) + 1)
        self.known = {id(row.node): row.number for row in document.rows}
        self.dtypes = {param.storage: param.dtype for param in checkpoint.params}
        self.new: dict[int, tuple[int, Call]] = {}  # by the id of a node: its number
        self.ids: dict[int, Persistent] = {}
        self.keys: dict[str, int] = {}
        self.used: set[int] = set()
        root = document.object.root
        replaced = self.replaced(root)
        root = self.number(root) if _is_numbered(root) else root
        self.pickle = writer.write(root, document.object.protocol, replaced)

    def replaced(self, root: Any) -> dict[tuple[int, int], Any]:
        """Return the edits, with a number for every tensor that is left."""
        replaced = dict(self.edits)
        todo, seen = [root], set[int]()
        while todo:
            node = todo.pop()
            if id(node) in seen or _is_numbered(node):
                continue
            seen.add(id(node))
            for position, held in slots(node):
                held = self.edits.get((id(node), position), held)
                if _is_numbered(held):
                    replaced[id(node), position] = self.number(held)
                elif not isinstance(held, str | int | float | None):
                    todo.append(held)
        return replaced

    def number(self, node: Call) -> Persistent:
        """Return the id of a tensor; it is new if the tensor is new."""
        if id(node) not in self.ids:
            number = self.known.get(id(node))
            if number is None:
                number = next(self.fresh)
                self.new[id(node)] = number, node
            self.used.add(number)
            self.ids[id(node)] = Persistent(str(number))
        return self.ids[id(node)]

    def kept(self) -> list[Row]:
        """Return the rows that stay: all except those whose tensors the object does not name any more."""
        before = {reference(node) for node in self.document.object.persistent}
        return [row for row in self.document.rows if row.number in self.used or str(row.number) not in before]

    def key(self, key: str) -> int | str:
        """Return the number of a storage; a new one's may be that of a tensor, and then the storage gets another."""
        if key in self.document.storages.spots:
            number = shapes.number(key)
            return key if number is None else number
        if key not in self.keys:
            self.keys[key] = next(self.fresh)
        return self.keys[key]

    def tensors(self) -> Iterator[Segment]:
        """Yield the table of tensors."""
        kept = self.kept()
        yield Literal(tables.table_start(len(kept) + len(self.new)))
        yield from (row.entry for row in kept)
        for number, node in self.new.values():
            key = str(reference(node.args[0]))
            yield Literal(tables.row(number, self.key(key), self.dtypes[key], node))

    def storages(self) -> Iterator[Segment]:
        """Yield the table of storages, without those that only removed tensors lay in."""
        storages, spots = self.checkpoint.storages, self.document.storages.spots
        gone = self.gone()
        new = [key for key in self.checkpoint.edited if key not in spots and key in self.dtypes]
        yield Literal(tables.table_start(len(spots) - len(gone) + len(new)))
        for key, spot in spots.items():
            if key not in gone:
                yield Extent(spot.values.source, spot.start, spot.values.offset - spot.start)
                yield from storages[key].content
        for key in new:
            name = self.key(key) if TENSORS in self.document.ends else key
            yield Literal(tables.storage_start(name, self.dtypes[key], storages[key].nbytes))
            yield from storages[key].content
        yield self.document.storages.list

    def gone(self) -> set[str]:
        """Storages that nothing names any more."""
        kept = self.kept()
        before = {row.storage for row in self.document.rows} - {row.storage for row in kept}
        roots = {root for root, _ in self.document.storages.parts.values()}
        named = {reference(node) for node in self.document.object.persistent}
        now = {reference(node.args[0]) for _, node in self.new.values()}
        return {key for key in before if key in self.document.storages.spots} - roots - named - now


def _is_numbered(node: object) -> bool:
    return type(node) is Call and node.func is NUMBERED


def _state_dict(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield a new archive of an OrderedDict of the params, tied ones over one storage."""
    root, storages = state_dict(checkpoint, named_by)
    dtypes = {}
    rows: list[bytes] = []
    numbered = {}
    for i, (_, (_, node)) in enumerate(root.mutations or ()):
        dtype = checkpoint.params[i].dtype
        number, key = len(storages) + i, int(node.args[0].pid)
        rows.append(tables.row(number, key, dtype, node))
        dtypes[key] = dtype
        numbered[id(root), i] = Persistent(str(number))
    held: list[Segment] = [Literal(tables.table_start(len(storages)))]
    for key, storage in enumerate(storages):
        held += (Literal(tables.storage_start(key, dtypes[key], storage.nbytes)), *storage.content)
    contents: dict[str, list[Segment]] = {
        SYSTEM: [Literal(writer.write(system(), PROTOCOL))],
        OBJECT: [Literal(writer.write(root, PROTOCOL, numbered))],
        TENSORS: [Literal(tables.table_start(len(rows)) + b"".join(rows))],
        STORAGES: [*held, Literal(writer.write([], PROTOCOL))],
    }
    written = 0
    for name, content in contents.items():
        segments = list(_member(name, content))
        written += sum(segment.nbytes for segment in segments)
        yield from segments
    yield _ending(written)
