"""Programs that torch.export.save wrote: a zip archive of raw tensors, and JSON that says what they are.

Listed are the weights (parameters and buffers) and then the constants (buffers that are not persistent, and
tensors lifted from the code), in the order in which torch.export.load finds them; sample inputs are no tensors
of the model. Until torch 2.7 weights and constants each were one file of torch.save inside the archive, and a
tensor of a subclass still is; such are read and edited as archives in the archive.

Reference: torch/export/pt2_archive/_package.py and torch/_export/serde/schema.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files.content import Buffer, Computed, Content, Extent, chunks
from paramctl.files.content import Literal as LiteralSegment
from paramctl.files.segments import Segment, pieces
from paramctl.files.sources import Source
from paramctl.formats.containers import strict_json, zip_layout, zips
from paramctl.formats.containers.sections import Held, Section, in_whole, spliced
from paramctl.formats.containers.zip_layout import Piece
from paramctl.formats.containers.zips import Archive, Record
from paramctl.formats.pickles import unread_files
from paramctl.formats.pickles.unread_files import PICKLE
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import zip_file
from paramctl.formats.pytorch.archives import (
    alignment_of,
    byteorder_of,
    changed_piece,
    folder_of,
    kind,
    pickle_limit,
    record_of,
)
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Entry, Kind, Leaf, Loss, Param, Storage, View, span
from paramctl.model.dtypes import BY_NAME
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torch-export"
SUFFIXES: tuple[str, ...] = (".pt2",)
WRITES: Writes = "own"
KEEPS_TIES = True
INSIDE = "!"  # between the record of an inner archive and the key of a storage in it
STRIDED = 7  # torch's number for the layout of an ordinary tensor
_LAYOUTS = ("unknown", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "mkldnn")
_DTYPES = (
    "", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64",
    "complex128", "bool", "bfloat16", *[""] * 14, "uint16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu", "uint32", "uint64",
)  # fmt: skip
MAX_AGAIN = 16  # tensors in an archive inside that several names share: components of a tensor of a subclass
_SIGNATURE = re.compile(r'(?<!\\)"signature"\s*:\s*')
_NAMED: tuple[Kind, ...] = ("parameter", "buffer")
_PROGRAM = "serialized_exported_program.json"


class Table(NamedTuple):
    """One kind of tensors of one model: the folder of their records, what those are called, and where JSON is."""

    model: str
    folder: str
    stem: str
    config: str

    @property
    def is_weights(self) -> bool:
        return self.stem == "weight_"


class Spot(NamedTuple):
    """The place where a tensor is described: the table, its name there, and the view of it that the file has."""

    table: Table
    name: str
    saved: View


class InnerSpot(NamedTuple):
    """A tensor of an archive in the archive: the record that is that, and the tensor as it is in there."""

    record: str
    param: Param


@dataclass(frozen=True)
class Document:
    """The parts needed to write an archive back: records, contents of each config, and inner archives by record."""

    archive: Archive
    prefix: str
    configs: Mapping[Table, dict[str, Any]]
    inner: Mapping[str, Checkpoint]
    alignment: int


def recognises(head: bytes, source: Source) -> bool:
    """Return whether torch.export.save wrote the file."""
    return head.startswith(zips.MAGIC) and kind(source) == "torch.export"


def read(source: Source) -> Checkpoint:
    """List an exported program. Raises FormatError where the archive contradicts itself."""
    archive = zips.read(source)
    reader = _Reader(archive, folder_of(archive))
    entries = tuple(reader.run())
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=entries,
        saved=_Records(archive, reader.prefix, reader.inner, {e.storage for e in entries if isinstance(e, Param)}),
        sources=(source,),
        document=Document(
            archive, reader.prefix, reader.configs, reader.inner, alignment_of(archive, reader.prefix)
        ),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """None of what it holds itself; nothing else becomes an exported program, whose graph must come from somewhere."""
    if not isinstance(checkpoint.document, Document):
        what = "an exported program holds a graph too, and cannot be made of tensors alone"
        raise UsageError(what, hint="convert to .pt, load_state_dict() that into the module, and export it")
    return []


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Nothing: all tensors of the model are listed."""
    return []


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the archive's own records around those that changed. Raises Unsupported for a tie the file cannot say."""
    assert isinstance(checkpoint.document, Document), "losses() refused it"
    return _Writer(checkpoint, checkpoint.document).run()


def verify(path: Path, meant: Checkpoint) -> None:
    """Nothing beyond reading it back: torch takes seconds to import and checks less than we do."""


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about the archive and those inside it, every byte of them read."""
    from paramctl.formats.containers import zip_audit

    document = checkpoint.document
    assert isinstance(document, Document)
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
    if (section := _section(archive, record)) is not None:
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


def _section(archive: Archive, record: Record) -> Section | None:
    """Return the section of a record that is an archive itself; None if it is not, or is compressed once more."""
    if record.method != zips.STORED or record.nbytes < len(zips.MAGIC):
        return None
    place = archive.payload(record)
    if archive.source.read(place.offset, len(zips.MAGIC)) != zips.MAGIC:
        return None
    return Section(archive.source, place.offset, place.nbytes)


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


# --- reading -------------------------------------------------------------------------------------


class _Reader:
    """Finds the tensors of each model in an archive; notes what the configs say, and archives inside."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        self.archive = archive
        self.prefix = prefix
        self.configs: dict[Table, dict[str, Any]] = {}
        self.inner: dict[str, Checkpoint] = {}

    def run(self) -> Iterator[Entry]:
        if _PROGRAM in self.archive.records:
            yield from self.before_2_7()
            return
        models = [*self.models()]
        if not models:
            raise Unsupported("is a .pt2 archive without an exported program: it has compiled code only")
        for model in models:
            start = f"{model}." if len(models) > 1 else ""
            kinds = _Kinds(self, f"models/{model}.json")
            for word, stem in (("weights", "weight_"), ("constants", "tensor_")):
                table = Table(model, f"data/{word}/", stem, f"data/{word}/{model}_{word}_config.json")
                for entry in self.table(table, kinds):
                    yield entry._replace(path=start + entry.path)

    def models(self) -> Iterator[str]:
        pattern = re.compile(re.escape(self.prefix) + r"models/([^/]+)\.json")
        return (match[1] for name in self.archive.records if (match := pattern.fullmatch(name)))

    def before_2_7(self) -> Iterator[Entry]:
        """Yield the entries of an archive of torch 2.0 to 2.6, whose parts are files of torch.save of fixed names."""
        kinds = _Kinds(self, _PROGRAM)
        for word in ("state_dict", "constants"):
            for name in (f"serialized_{word}.pt", f"serialized_{word}.json"):
                if name in self.archive.records:
                    yield from self.saved(name, "", kinds, word == "state_dict")

    def table(self, table: Table, kinds: _Kinds) -> Iterator[Entry]:
        """Yield the tensors of one config, or of the one file that torch 2.7 wrote for them."""
        whole = f"{table.folder}{table.model}.pt"
        if self.archive.find(self.prefix + whole):
            yield from self.saved(whole, "", kinds, table.is_weights)
            return
        if self.archive.find(self.prefix + table.config) is None:
            raise FormatError(f"has no record {table.config}")
        config = self.json(table.config)
        self.configs[table] = config
        for name, meta in _object(config.get("config"), table.config).items():
            yield from self.tensor(table, name, _object(meta, table.config), kinds)

    def tensor(self, table: Table, name: str, meta: dict[str, Any], kinds: _Kinds) -> Iterator[Entry]:
        """Yield the tensor that one line of a config describes; an object that is no tensor has no tensor_meta."""
        file = meta.get("path_name")
        if not isinstance(file, str) or INSIDE in file:
            raise FormatError(f"tensor '{name}' has no path_name")
        if meta.get("use_pickle"):
            if meta.get("tensor_meta") is None:
                yield Leaf(name, "an object", True)
            else:
                yield from self.saved(f"{table.folder}{file}", name, kinds, table.is_weights)
            return
        kind: Kind = "parameter" if meta.get("is_param") is True else kinds.of(name, table.is_weights)
        yield self.param(table, name, f"{table.folder}{file}", _object(meta.get("tensor_meta"), name), kind)

    def param(self, table: Table, name: str, key: str, meta: dict[str, Any], kind: Kind) -> Param:
        record = self.archive.find(self.prefix + key)
        if record is None:
            raise FormatError(f"tensor '{name}' lies in record {key}, which is not in the archive")
        key = record.name[len(self.prefix) :]
        number = meta.get("dtype")
        known = type(number) is int and 0 <= number < len(_DTYPES) and _DTYPES[number]
        if not known:
            raise FormatError(f"tensor '{name}' has the unknown dtype {number!r}")
        dtype = BY_NAME[known]
        shape, strides = shapes.view(_numbers(meta.get("sizes")), _numbers(meta.get("strides")), name)
        offset = shapes.count(_number(meta.get("storage_offset")), f"tensor '{name}' has an offset that is no count")
        grad = meta.get("requires_grad")
        device = _object(meta.get("device") or {}, name).get("type")
        param = Param(
            name, kind, dtype, shape, strides, key, offset, grad if isinstance(grad, bool) else None,
            device if isinstance(device, str) else None,
        )  # fmt: skip
        layout = meta.get("layout")
        if layout != STRIDED or (not record.nbytes and param.numel):  # of a fake tensor no values are saved
            word = _LAYOUTS[layout] if type(layout) is int and 0 <= layout < len(_LAYOUTS) else "unknown"
            param = param._replace(storage=None, offset=0, layout="meta" if layout == STRIDED else word)
        elif (reach := span(shape, strides)) and (offset + reach) * dtype.bits > record.nbytes * 8:
            what = f"reaches element {offset + reach:,} of a record of {record.nbytes:,} bytes"
            raise FormatError(f"tensor '{name}' {what}")
        return param._replace(place=Spot(table, name, param.view))

    def saved(self, name: str, path: str, kinds: _Kinds, is_weights: bool) -> Iterator[Entry]:
        """Yield the entries of a file of torch.save in the archive."""
        record = self.archive.find(self.prefix + name)
        name = record.name[len(self.prefix) :] if record else name
        checkpoint = self.inner.get(name)
        if checkpoint is None:
            section = _section(self.archive, record) if record is not None else None
            if section is None:
                raise Unsupported(f"record {name} is no archive of torch.save, or is compressed once more")
            checkpoint = self.inner[name] = zip_file.read(section)
        elif len(checkpoint.entries) > MAX_AGAIN:
            raise FormatError(f"several tensors lie in record {name}, which holds {len(checkpoint.entries):,} things")
        for entry in checkpoint.entries:
            inside = f"{path}.{entry.path}" if path and entry.path else path or entry.path
            if isinstance(entry, Leaf):
                yield entry._replace(path=inside)
                continue
            kind = entry.kind if entry.kind == "parameter" else kinds.of(inside, is_weights)
            yield _placed(entry, name)._replace(path=inside, kind=kind, place=InnerSpot(name, entry))

    def json(self, name: str) -> dict[str, Any]:
        """Return a record of JSON. Raises FormatError if it is not JSON, or no object."""
        return _object(strict_json.parse(self.text(name), f"record {name}"), name)

    def text(self, name: str) -> str:
        record = self.archive.find(self.prefix + name)
        return self.archive.read(record, pickle_limit(record)).decode("utf-8", "replace") if record else ""


class _Kinds:
    """The kinds of tensors, from the signature of a program; nothing of the graph around it is decoded."""

    def __init__(self, reader: _Reader, program: str) -> None:
        self._reader = reader
        self._program = program
        self._known: dict[str, Kind] | None = None

    def of(self, name: str, is_weight: bool) -> Kind:
        """Return the kind of a tensor that is not listed as a parameter: a weight is a buffer then."""
        if self._known is None:
            self._known = dict(self._signature())
        return self._known.get(name, "buffer" if is_weight else "tensor")

    def _signature(self) -> Iterator[tuple[str, Kind]]:
        text = self._reader.text(self._program)
        start = _SIGNATURE.search(text)
        try:
            found = json.JSONDecoder().raw_decode(text, start.end())[0] if start else {}
        except (ValueError, RecursionError):
            raise FormatError(f"record {self._program} is not JSON") from None
        specs = found.get("input_specs") if isinstance(found, dict) else None
        for spec in specs if isinstance(specs, list) else ():
            for word in _NAMED:
                held = spec.get(word) if isinstance(spec, dict) else None
                name = held.get(f"{word}_name") if isinstance(held, dict) else None
                if isinstance(name, str):
                    yield name, word


def _placed(param: Param, record: str) -> Param:
    """Return a tensor of an inner archive, its storages by their keys in the whole."""
    storage = None if param.storage is None else f"{record}{INSIDE}{param.storage}"
    return param._replace(storage=storage, components=tuple(_placed(part, record) for part in param.components))


def _object(found: object, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise FormatError(f"'{where}' does not say what a tensor is: there is no JSON object")
    return found


def _numbers(found: object) -> object:
    """Return what a list of `{"as_int": 3}` says, and anything else as it is."""
    return [*map(_number, found)] if isinstance(found, list) else found


def _number(found: object) -> object:
    """Return the number in `{"as_int": 3}`; a saved tensor has no symbols for sizes."""
    return found.get("as_int") if isinstance(found, dict) else None


# --- writing -------------------------------------------------------------------------------------


class _Writer:
    """Lays an archive out again: changed records, configs where tensors lie elsewhere now, archives inside."""

    def __init__(self, checkpoint: Checkpoint, document: Document) -> None:
        self.checkpoint = checkpoint
        self.document = document
        self.names = {key: key for key in checkpoint.saved}
        self.new: dict[str, list[str]] = {}  # new keys, by the folder of their records
        self.moved = [
            (param, param.place)
            for param in checkpoint.params
            if isinstance(param.place, Spot) and param.view != param.place.saved
        ]

    def run(self) -> Iterator[Segment]:
        for param, spot in self.moved:
            self.check(param, spot.table)
        made: dict[str, Content] = {**dict(self.inner()), **dict(self.configs())}
        gone = self.gone()
        prefix = self.document.prefix
        pieces: list[Piece] = []
        for record in sorted(self.document.archive.records.values(), key=lambda record: record.header):
            key = record.name.removeprefix(prefix)
            if key in gone:
                continue
            if key in made:
                pieces.append(Piece(record.name, record, (made[key],)))
            elif key in self.checkpoint.edited:
                pieces.append(changed_piece(record.name, record, self.checkpoint.edited[key]))
            else:
                pieces.append(Piece(record.name, record))
        for folder, keys in self.new.items():
            last = max(i for i, piece in enumerate(pieces) if piece.name.startswith(prefix + folder))
            added = (changed_piece(prefix + self.names[key], None, self.checkpoint.edited[key]) for key in keys)
            pieces[last + 1 : last + 1] = added
        return zip_layout.layout(self.document.archive, pieces, self.document.alignment)

    def check(self, param: Param, table: Table) -> None:
        """Raise Unsupported unless a param's bytes can lie where its table looks; a new storage gets a name there."""
        key = str(param.storage)
        if key not in self.names:
            self.names[key] = self.fresh(table)
            self.new.setdefault(table.folder, []).append(key)
        elif INSIDE in key or not key.startswith(table.folder):
            what = f"{param.path} cannot lie in record {key.partition(INSIDE)[0]}"
            raise Unsupported(what, hint=f"the program looks for it in {table.folder} only: tie others")

    def fresh(self, table: Table) -> str:
        """Return a name that no record has yet, in the folder of a table."""
        start = f"{self.document.prefix}{table.folder}{table.stem}"
        taken = {*self.document.archive.records, *(self.document.prefix + name for name in self.names.values())}
        return f"{start}{next(n for n in count() if f'{start}{n}' not in taken)}".removeprefix(self.document.prefix)

    def gone(self) -> set[str]:
        """Return the records that some tensor lay in, and none does any more."""
        before = {str(spot.saved[0]) for _, spot in self.moved}
        return before - {str(param.storage) for param in self.checkpoint.params}

    def configs(self) -> Iterator[tuple[str, LiteralSegment]]:
        """Yield the configs with tensors that lie elsewhere now."""
        changed: dict[Table, dict[str, Any]] = {}
        for param, spot in self.moved:
            held = changed.setdefault(spot.table, dict(self.document.configs[spot.table]["config"]))
            meta = held[spot.name]
            sizes = {
                "strides": [{"as_int": step} for step in param.strides],
                "storage_offset": {"as_int": param.offset},
            }
            name = self.names[str(param.storage)].removeprefix(spot.table.folder)
            held[spot.name] = {**meta, "path_name": name, "tensor_meta": {**meta["tensor_meta"], **sizes}}
        for table, held in changed.items():
            text = json.dumps({**self.document.configs[table], "config": held})
            yield table.config, LiteralSegment(text.encode())

    def inner(self) -> Iterator[tuple[str, Computed]]:
        """Yield the inner archives that changed, each as the bytes of a record."""
        for name, saved in self.document.inner.items():
            now = self.inside(name, saved)
            if now.edited or now.entries != saved.entries:
                yield name, _whole(zip_file.layout(now), name)

    def inside(self, name: str, saved: Checkpoint) -> Checkpoint:
        """Return an inner archive as it is now, its storages by their own keys."""
        start = f"{name}{INSIDE}"
        keys = {f"{start}{key}": key for key in saved.storages}
        number = max((n for key in saved.storages if (n := shapes.number(key)) is not None), default=-1) + 1
        params: dict[int, Param] = {}
        at = {id(param): i for i, param in enumerate(saved.params)}
        for param in self.checkpoint.params:
            if not isinstance(param.place, InnerSpot) or param.place.record != name:
                continue
            key = param.storage
            if key is not None and key not in keys:
                if key in self.names:
                    raise Unsupported(f"{param.path} lies in record {name}, and cannot be tied to what is not in it")
                keys[key] = str(number)
                number += 1
            own = None if key is None else keys[key]
            params[at[id(param.place.param)]] = param.place.param._replace(
                storage=own, offset=param.offset, strides=param.strides, flags=param.flags
            )
        edited = {keys[key]: storage for key, storage in self.checkpoint.edited.items() if key in keys}
        return replace(saved.with_params(params), edited=edited)


def _whole(segments: Iterable[Segment], name: str) -> Computed:
    """Segments of an archive inside as one computed piece, whose sum the outer archive needs."""
    held = tuple(spliced(segments, name))

    def make() -> Iterator[Buffer]:
        for piece in pieces(held):
            yield from chunks((piece,)) if isinstance(piece, Extent) else (piece,)

    nbytes = sum(segment.nbytes for segment in held)
    return Computed(nbytes, make, nbytes)
