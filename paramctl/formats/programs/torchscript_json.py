"""TorchScript archives of torch before 1.4, whose modules and tensors a model.json describes.

torch itself does not read them any more. Listed is what state_dict() of the module had: the parameters and
buffers of each layer, then its sub-modules. Other tensors (in attributes, and constants of the code) are kept
and not listed. All of them are in one table, where the code finds them by number: a param whose tensor lies
elsewhere now gets a new line at the table's end.

Reference: torch/csrc/jit/export.cpp of torch 1.3, torch/csrc/jit/serialization/import_legacy.cpp, and
caffe2/proto/torch.proto, of which model.json is the JSON form: 64-bit integers are strings, what is missing is 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.files.content import Literal
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.containers import strict_json, zip_layout, zip_pickles, zips
from paramctl.formats.containers.zip_layout import ZipPiece
from paramctl.formats.containers.zips import Archive, Record
from paramctl.formats.programs import torchscript
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch.archives import (
    Storages,
    alignment_of,
    changed_piece,
    check_version,
    folder_of,
    kind,
    pickle_limit,
    record_of,
)
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Loss, Param, Quantizer, View, span
from paramctl.model.dtypes import BY_NAME
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torchscript-json"
SUFFIXES: tuple[str, ...] = torchscript.SUFFIXES
WRITES: Writes = "own"
KEEPS_TIES = True
KEEPS_METADATA = False
MODEL = "model.json"
FOLDER = "tensors/"  # of the records that tensors lie in
MAX_LEVELS = 100  # of modules in one another
LARGEST_SCALE = 1e300
_DTYPES = {  # by caffe2's names; a quantized tensor has the one of its integers
    "FLOAT": "float32", "INT32": "int32", "BYTE": "uint8", "BOOL": "bool", "UINT8": "uint8", "INT8": "int8",
    "INT16": "int16", "INT64": "int64", "FLOAT16": "float16", "DOUBLE": "float64",
}  # fmt: skip
_QUANTIZED = {"int8": "qint8", "uint8": "quint8", "int32": "qint32"}
_INTEGER = re.compile("-?[0-9]{1,19}")


class TableLine(NamedTuple):
    """The place where a param is described: its object in the JSON, its row in the table, and its view as read."""

    definition: dict[str, Any]
    number: int
    saved: View


@dataclass(frozen=True)
class JsonScriptDocument:
    """The parts that are needed to write an archive back: its records, and the content of its model.json."""

    archive: Archive
    prefix: str
    model: dict[str, Any]


def recognises(head: bytes, source: Source) -> bool:
    """Return whether torch.jit.save of an early torch wrote the file: a zip with model.json and no pickled modules."""
    return head.startswith(zips.MAGIC) and kind(source) == "TorchScript of 1.0"


def read(source: Source) -> Checkpoint:
    """List a TorchScript module. Raises FormatError where the archive contradicts itself."""
    archive = zips.read(source)
    prefix = folder_of(archive)
    check_version(archive, prefix)
    record = record_of(archive, prefix + MODEL)
    where = f"record {MODEL}"
    model = _object(strict_json.parse(archive.read(record, pickle_limit(record)), where), where)
    table = _Table(archive, prefix, _list(model, "tensors", where))
    entries = tuple(_params(_object(model.get("mainModule"), where), table))
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=entries,
        saved=Storages(archive, prefix, "little"),
        sources=(source,),
        document=JsonScriptDocument(archive, prefix, model),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return none for a program that was read. Raises UsageError for anything else: it has no code to write."""
    return [] if isinstance(checkpoint.document, JsonScriptDocument) else torchscript.losses(checkpoint)


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the lines of the table of tensors that were those of params, and that the code may know."""
    document = checkpoint.document
    if not isinstance(document, JsonScriptDocument):
        return []
    held = {str(param.storage) for param in checkpoint.params}
    lost = [(param, place) for param, place in _moved(checkpoint) if str(place.saved[0]) not in held]
    return [f"tensor {place.number} of {MODEL}" for _, place in lost]


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the archive's own records around those that changed."""
    document = checkpoint.document
    assert isinstance(document, JsonScriptDocument), "losses() refused it"
    archive, prefix = document.archive, document.prefix
    edited, new = dict(checkpoint.edited), _new_names(checkpoint, document)
    changed: dict[str, ZipPiece] = {}
    for key in edited.keys() - new.keys():
        record = record_of(archive, prefix + key)
        changed[record.name] = changed_piece(record.name, record, edited[key])
    if moved := _moved(checkpoint):
        text = json.dumps(_with_moved(document.model, moved, new)).encode()
        record = record_of(archive, prefix + MODEL)
        changed[record.name] = ZipPiece(record.name, record, (Literal(text),))
    records = sorted(archive.records.values(), key=lambda record: record.header)
    pieces = [changed.get(record.name) or ZipPiece(record.name, record) for record in records]
    last = max((i for i, piece in enumerate(pieces, 1) if piece.name.startswith(prefix + FOLDER)), default=0)
    pieces[last:last] = [changed_piece(prefix + name, None, edited[key]) for key, name in new.items()]
    return zip_layout.layout(archive, pieces, alignment_of(archive, prefix))


def verify(path: Path, meant: Checkpoint) -> None:
    """Do nothing beyond reading it back: no torch of today could open it."""


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about the archive, every byte of it read."""
    from paramctl.findings import Finding
    from paramctl.formats.containers import zip_audit

    document = checkpoint.document
    assert isinstance(document, JsonScriptDocument)
    yield from zip_audit.audit_for(checkpoint, document.archive, document.prefix, on_progress)
    lines = document.model.get("tensors", [])
    table = _Table(document.archive, document.prefix, lines)
    listed = {param.place.number for param in checkpoint.params if isinstance(param.place, TableLine)}
    for number in sorted(set(range(len(lines))) - listed):  # constants of the code, and what attributes hold
        try:
            table.tensor(number, f"{number} of {MODEL}")
        except FormatError as error:
            yield Finding("error", "integrity", "unreadable", None, error.what)


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles in the archive, which hold the values of attributes, each with the name of its record."""
    return zip_pickles.code(source)


def _params(module: dict[str, Any], table: _Table) -> Iterator[Param]:
    """Yield the parameters and buffers of a module, then those of the modules in it."""
    waiting = [("", module, 0)]
    while waiting:
        path, module, level = waiting.pop()
        if level > MAX_LEVELS:
            raise FormatError(f"has modules that are nested too deep (record {MODEL})")
        where = f"module '{path}'" if path else "the module"
        for word, is_buffer in (("parameters", False), ("buffers", True)):
            for definition in _list(module, "parameters", where):
                if (_object(definition, where).get("isBuffer") is True) is is_buffer:
                    yield table.param(_join(path, definition, where), definition, word)
        inner = [_object(each, where) for each in _list(module, "submodules", where)]
        waiting += [(_join(path, each, where), each, level + 1) for each in reversed(inner)]


def _join(path: str, definition: dict[str, Any], where: str) -> str:
    name = definition.get("name")
    if not isinstance(name, str):
        raise FormatError(f"{where} holds something without a name (record {MODEL})")
    return f"{path}.{name}" if path else name


class _Table:
    """The tensors of an archive by their numbers, each looked at when a param is."""

    def __init__(self, archive: Archive, prefix: str, lines: list[Any]) -> None:
        self._archive = archive
        self._prefix = prefix
        self._lines = lines

    def param(self, path: str, definition: dict[str, Any], word: str) -> Param:
        """Return the tensor that a parameter's or a buffer's definition names."""
        where = f"tensor '{path}'"
        number = _count(definition.get("tensorId", 0), where)
        if number >= len(self._lines):
            raise FormatError(f"{where} has the number {number}, and there are {len(self._lines):,} tensors")
        param = self.tensor(number, path)._replace(kind="buffer" if word == "buffers" else "parameter")
        return param._replace(place=TableLine(definition, number, param.view))

    def tensor(self, number: int, path: str) -> Param:
        """Return the tensor that a line of the table describes."""
        where = f"tensor '{path}'"
        line = _object(self._lines[number], where)
        key = _object(line.get("data"), where).get("key")
        record = self._record(key, where)
        dtype = BY_NAME.get(_DTYPES.get(str(line.get("dataType")), ""))
        if dtype is None:
            raise FormatError(f"{where} has the unknown dtype {line.get('dataType')!r}")
        dims, steps = ([*map(_number, _list(line, each, where))] for each in ("dims", "strides"))
        shape, strides = shapes.view(dims, steps, path)
        offset = _count(line.get("offset", 0), where)
        if (reach := span(shape, strides)) and (offset + reach) * dtype.itemsize > record.nbytes:
            raise FormatError(
                f"{where} reaches element {offset + reach:,} of a record of {record.nbytes:,} bytes ({key})"
            )
        device = line.get("device")
        param = Param(
            path, "tensor", dtype, shape, strides, str(key), offset,
            line.get("requiresGrad") is True, device if isinstance(device, str) else None,
        )  # fmt: skip
        return _quantized(param, line, where) if line.get("isQuantized") is True else param

    def _record(self, key: object, where: str) -> Record:
        record = self._archive.find(f"{self._prefix}{key}")
        if not isinstance(key, str) or record is None or not key.startswith(FOLDER):
            raise FormatError(f"{where} lies in record {key!r}, which the archive does not have for tensors")
        return record


def _quantized(param: Param, line: dict[str, Any], where: str) -> Param:
    """Return the tensor of integers that a line says are quantized."""
    word, scale = _QUANTIZED.get(param.dtype.name), line.get("scale", 0)
    if word is None or isinstance(scale, bool) or not isinstance(scale, int | float) or abs(scale) > LARGEST_SCALE:
        raise FormatError(f"{where} is quantized in a way that no tensor is")
    zero_point = _number(line.get("zeroPoint", 0))
    if type(zero_point) is not int or not -(1 << 31) <= zero_point < 1 << 31:
        raise FormatError(f"{where} has a zero point that is no number of 32 bits (record {MODEL})")
    quantizer = Quantizer("per_tensor_affine", float(scale), zero_point)
    return param._replace(dtype=BY_NAME[word], layout="quantized", quantizer=quantizer)


def _object(found: object, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise FormatError(f"{where} is not described by an object (record {MODEL})")
    return found


def _list(owner: dict[str, Any], key: str, where: str) -> list[Any]:
    found = owner.get(key, [])
    if not isinstance(found, list):
        raise FormatError(f"{where} has {key} that are no list (record {MODEL})")
    return found


def _count(found: object, where: str) -> int:
    number = _number(found)
    return shapes.count(number, f"{where} has {number!r} where a count belongs (record {MODEL})")


def _number(found: object) -> object:
    """Return the number in a string, as the JSON form of a protocol buffer has it, and anything else as it is."""
    return int(found) if isinstance(found, str) and _INTEGER.fullmatch(found) else found


def _moved(checkpoint: Checkpoint) -> list[tuple[Param, TableLine]]:
    """Return the params whose tensor is another view than the file has."""
    placed = [(param, param.place) for param in checkpoint.params if isinstance(param.place, TableLine)]
    return [(param, place) for param, place in placed if param.view != place.saved]


def _new_names(checkpoint: Checkpoint, document: JsonScriptDocument) -> dict[str, str]:
    """Return a record's name for each new storage that a param is in."""
    taken = {name.removeprefix(document.prefix) for name in document.archive.records}
    free = (name for n in count() if (name := f"{FOLDER}{n}") not in taken)
    used = {str(param.storage) for param in checkpoint.params}
    return {key: next(free) for key in checkpoint.edited if key not in checkpoint.saved and key in used}


def _with_moved(model: dict[str, Any], moved: list[tuple[Param, TableLine]], new: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of model.json with those params as lines of their own at the end of the table."""
    lines = [*model["tensors"]]
    numbers: dict[int, int] = {}
    for param, place in moved:
        key = str(param.storage)
        views = {"dims": param.shape, "strides": param.strides}
        line = {**lines[place.number], **{word: [*map(str, sizes)] for word, sizes in views.items()}}
        numbers[id(place.definition)] = len(lines)
        lines.append({**line, "offset": str(param.offset), "data": {"key": new.get(key, key)}})
    return {**model, "mainModule": _renumbered(model["mainModule"], numbers), "tensors": lines}


def _renumbered(module: dict[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return a module, and all in it, with other numbers for some of the definitions of its params."""
    made = dict(module)
    if "parameters" in module:
        params = module["parameters"]
        ids = [numbers.get(id(each)) for each in params]
        made["parameters"] = [
            each if n is None else {**each, "tensorId": str(n)} for each, n in zip(params, ids, strict=True)
        ]
    if "submodules" in module:
        made["submodules"] = [_renumbered(each, numbers) for each in module["submodules"]]
    return made
