"""Read the tensors that the tables of a torch.export archive describe, and those of archives inside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from paramctl.errors import FormatError, Unsupported
from paramctl.formats.containers import strict_json, zips
from paramctl.formats.containers.sections import Section
from paramctl.formats.containers.zips import Archive, Record
from paramctl.formats.pytorch import zip_file
from paramctl.formats.pytorch.archives import pickle_limit
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Entry, Kind, Leaf, Param, View, span
from paramctl.model.dtypes import BY_NAME

INSIDE = "!"  # between the record of an inner archive and the key of a storage in it
STRIDED = 7  # torch's number for the layout of an ordinary tensor
_LAYOUTS = ("unknown", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "mkldnn")
_DTYPES = (
    "", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64",
    "complex128", "bool", "bfloat16", *[""] * 14, "uint16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu", "uint32", "uint64",
)  # fmt: skip
_PROGRAM = "serialized_exported_program.json"

MAX_AGAIN = 16  # tensors in an archive inside that several names share: components of a tensor of a subclass
_SIGNATURE = re.compile(r'(?<!\\)"signature"\s*:\s*')
_NAMED: tuple[Kind, ...] = ("parameter", "buffer")


class Table(NamedTuple):
    """One kind of tensors of one model: the folder of their records, what those are called, and where JSON is."""

    model: str
    folder: str
    stem: str
    config: str

    @property
    def is_weights(self) -> bool:
        return self.stem == "weight_"


class ExportPlace(NamedTuple):
    """The place where a tensor is described: the table, its name there, and the view of it that the file has."""

    table: Table
    name: str
    saved: View


class InnerSpot(NamedTuple):
    """A tensor of an archive in the archive: the record that is that, and the tensor as it is in there."""

    record: str
    param: Param


@dataclass(frozen=True)
class ExportDocument:
    """The parts needed to write an archive back: records, contents of each config, and inner archives by record."""

    archive: Archive
    prefix: str
    configs: Mapping[Table, dict[str, Any]]
    inner: Mapping[str, Checkpoint]
    alignment: int


class Reader:
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
        return param._replace(place=ExportPlace(table, name, param.view))

    def saved(self, name: str, path: str, kinds: _Kinds, is_weights: bool) -> Iterator[Entry]:
        """Yield the entries of a file of torch.save in the archive."""
        record = self.archive.find(self.prefix + name)
        name = record.name[len(self.prefix) :] if record else name
        checkpoint = self.inner.get(name)
        if checkpoint is None:
            section = section_of(self.archive, record) if record is not None else None
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

    def __init__(self, reader: Reader, program: str) -> None:
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


def section_of(archive: Archive, record: Record) -> Section | None:
    """Return the section of a record that is an archive itself; None if it is not, or is compressed once more."""
    if record.method != zips.STORED or record.nbytes < len(zips.MAGIC):
        return None
    place = archive.payload(record)
    if archive.source.read(place.offset, len(zips.MAGIC)) != zips.MAGIC:
        return None
    return Section(archive.source, place.offset, place.nbytes)
