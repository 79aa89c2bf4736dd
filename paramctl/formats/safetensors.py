"""One safetensors file: a length, a JSON header, and every tensor's bytes one after the other.

Reference: https://github.com/huggingface/safetensors. The header is read by hand: it is JSON, and the
library imports numpy as soon as it opens a file.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files.content import Extent, Literal
from paramctl.files.kernel_copy import PAGE
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.containers import strict_json
from paramctl.formats.protocol import Writes
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Entry, Leaf, Loss, Param, Storage, View, contiguous, natural_key
from paramctl.model.dtypes import BY_SAFETENSORS, PAIRS, DType
from paramctl.model.shapes import MAX_INT
from paramctl.progress import ProgressCallback, ignore
from paramctl.values.arrays import content_of

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "safetensors"
SUFFIXES: tuple[str, ...] = (".safetensors",)
WRITES: Writes = "any"
KEEPS_TIES = True
LARGE = 1 << 20  # bytes of data from which on it counts how they are copied
MAX_HEADER = 100_000_000  # bytes; the library's own limit
METADATA = "__metadata__"
FORMAT_KEY = "format"  # names the framework that wrote the file, never a tensor


class Document(NamedTuple):
    """The parts needed to write the file back as it was."""

    source: Source
    data_start: int  # bytes of the header: the eight of its length, and the JSON
    places: list[tuple[int, int, str]]  # begin, end and name of each tensor's bytes, in their order
    listed: tuple[Param, ...]  # every param as read


class _Form(NamedTuple):
    """A dtype and a shape; many tensors have the same."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int


class _Storages(Mapping[str, Storage]):
    """The tensors' bytes, each described when it is asked for: a listing asks for none."""

    def __init__(self, source: Source, data_start: int, places: list[tuple[int, int, str]]) -> None:
        self.source = source
        self.data_start = data_start
        self.places = places

    @cached_property
    def by_name(self) -> dict[str, tuple[int, int]]:
        return {name: (begin, end) for begin, end, name in self.places}

    def __getitem__(self, name: str) -> Storage:
        begin, end = self.by_name[name]
        return Storage((Extent(self.source, self.data_start + begin, end - begin),), end - begin)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a plausible header length and then JSON come first; a name that says so gets the errors."""
    opens = head[8:].lstrip(b" ")[:1]
    if len(head) > 8 and opens == b"{":
        return True
    named = source.path is not None and source.path.suffix.lower() in SUFFIXES
    foreign = head.startswith((b"PK\x03\x04", b"\x80", b"GGUF", b"version https", b"<"))
    return named and not foreign


def read(source: Source) -> Checkpoint:
    """List a safetensors file. Raises FormatError for anything the specification forbids."""
    data_start = 8 + _header_length(source)
    entries = _parse(_decoded(source.read(8, data_start - 8)))
    metadata = _metadata(entries.pop(METADATA, {}))
    params: dict[str, Param] = {}
    places: list[tuple[int, int, str]] = []
    forms: dict[str, _Form] = {}
    for name, entry in entries.items():
        (dtype, shape, strides, _), begin, end = _entry(name, entry, forms)
        params[name] = Param(name, "tensor", dtype, shape, strides, name)
        places.append((begin, end, name))
    places.sort()
    _check_coverage(places, source.size - data_start)
    listed = _with_aliases(params, metadata)
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=listed,
        saved=_Storages(source, data_start, places),
        metadata={key: text for key, text in metadata.items() if not _is_alias(key, text, params)},
        sources=(source,),
        document=Document(
            source, data_start, places, listed
        ),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a safetensors file cannot hold: everything that is not a tensor of a dtype it knows."""
    return [Loss(entry, why) for entry in checkpoint.entries if (why := _no_place(entry))]


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Nowhere: a file of this format holds nothing but its params."""
    return []


def _no_place(entry: Entry) -> str:
    """Why an entry cannot be written; empty if it can."""
    if isinstance(entry, Leaf):
        return "object" if entry.is_object else "scalar"
    if not entry.is_plain:
        return f"{entry.layout} tensor"
    if entry.repeats_itself:
        return "repeats a few values over its shape: stride 0"
    return "" if _word(entry) else f"{entry.dtype.name}, which safetensors has no word for"


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the file's segments: its own header if nothing but values changed, else a new one."""
    document = checkpoint.document
    params = list(checkpoint.params)
    if isinstance(document, Document) and _same(params, document.listed):
        yield Extent(document.source, 0, document.data_start)
        for _, _, name in document.places:
            yield from checkpoint.storages[name].content
        return
    previous = [name for _, _, name in document.places] if isinstance(document, Document) else []
    kept, aliases = _leaders(params)
    _check_aliases(aliases, checkpoint.metadata)
    _check_names(params)
    order = _data_order(kept, previous)
    contents = {param.path: content_of(checkpoint, param) for param in order}
    start = document.data_start if isinstance(document, Document) else 0
    yield Literal(_header(kept, order, aliases, checkpoint.metadata, start))
    for param in order:
        yield from contents[param.path]


def verify(path: Path, meant: Checkpoint) -> None:
    """Open a file that was just written with the library itself, unless it could not open the source."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except SafetensorError as error:
        document = meant.document
        if not isinstance(document, Document) or _opens(document.source):
            raise FormatError(f"was written, but safetensors refuses it: {error}") from None


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Names in the metadata that look like aliases, but of no tensor; the rest of a file is checked by reading it."""
    from paramctl.findings import Finding

    names = {param.path for param in checkpoint.params}
    last_names = {name.rpartition(".")[2] for name in names}
    for key, text in checkpoint.metadata.items():
        if key in names or text in names or key == FORMAT_KEY:
            continue
        end = key.rpartition(".")[2]
        if "." in key and "." in text and end == text.rpartition(".")[2] and end in last_names:
            what = f"is tied to {text}, and there is no such tensor"
            yield Finding("error", "integrity", "dangling-alias", key, what)


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """None: loading this file runs nothing."""
    yield from ()


def _opens(source: Source) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source.path or f"/proc/self/fd/{source.fileno()}", framework="np"):
            return True
    except SafetensorError:
        return False


def _same(params: list[Param], listed: tuple[Param, ...]) -> bool:
    """Return whether the header that listed those params says what these are."""
    return [(p.path, p.view) for p in params] == [(p.path, p.view) for p in listed]


def _header_length(source: Source) -> int:
    if source.size < 8:
        raise FormatError(f"is truncated: {source.size} bytes, and the header's length alone takes 8")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:
        raise FormatError(f"claims a header of {length:,} bytes, over the format's limit of {MAX_HEADER:,}")
    if length > source.size - 8:
        raise FormatError(f"is truncated: its header takes {length:,} bytes, {source.size - 8:,} are there")
    return length


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"header is not UTF-8 (byte {8 + error.start})") from None


def _parse(text: str) -> dict[str, Any]:
    whole = _whole_number if "-" in text and "-0" in text else None  # a hook costs time, and hardly a header needs it
    parsed = strict_json.parse(text, "header", parse_constant=_refuse_constant, parse_int=whole)
    if not isinstance(parsed, dict):
        raise FormatError("header is not a JSON object")
    return parsed


def _whole_number(text: str) -> int:
    """Return an integer; the library takes -0 for a fraction, and refuses it as a size."""
    if text == "-0":
        raise ValueError("-0 is no size")
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _metadata(found: object) -> dict[str, str]:
    if not isinstance(found, dict):
        raise FormatError(f"{METADATA} is not an object")
    for key, text in found.items():
        if not isinstance(text, str):
            raise FormatError(f"{METADATA} holds {key!r}, whose value is not a string")
        if not _is_encodable(key + text):
            raise FormatError(f"{METADATA} holds {key!a}, whose value is not valid Unicode")
    return found


def _entry(name: str, entry: object, forms: dict[str, _Form]) -> tuple[_Form, int, int]:
    """Return a tensor's dtype and shape, and the start and end of its bytes. `forms` are those met before."""
    if not isinstance(entry, dict):
        raise FormatError(f"tensor {name!r} is not described by an object")
    if not name.isascii():
        _check_encodable(name)
    try:
        word, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except KeyError as missing:
        raise FormatError(f"tensor {name!r} has no {missing.args[0]}") from None
    text = f"{word!r}{shape!r}"
    form = forms.get(text)
    if form is None:
        form = forms[text] = _form(name, word, shape)
    begin, end = offsets if isinstance(offsets, list) and len(offsets) == 2 else (None, None)
    if not (type(begin) is type(end) is int and 0 <= begin <= end < MAX_INT):
        raise FormatError(f"tensor {name!r} has data_offsets that are not a begin and an end")
    if end - begin != form.nbytes:
        raise FormatError(
            f"tensor {name!r} takes {form.nbytes:,} bytes by its shape, {end - begin:,} by its offsets"
        )
    return form, begin, end


def _form(name: str, word: object, shape: object) -> _Form:
    dtype = BY_SAFETENSORS.get(word) if isinstance(word, str) else None
    if dtype is None:
        raise FormatError(f"tensor {name!r} has the unknown dtype {word!r}")
    dims = shapes.shape(shape, name)
    numel = prod(dims)
    if numel * dtype.bits % 8:
        raise FormatError(f"tensor {name!r} does not fill its last byte: {numel:,} elements of {dtype.bits} bits")
    return _Form(dtype, dims, contiguous(dims), dtype.nbytes(numel))


def _check_encodable(name: str) -> None:
    if not _is_encodable(name):
        raise FormatError(f"tensor name {name!a} is not valid Unicode")


def _is_encodable(text: str) -> bool:
    """Return whether a text holds no half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_coverage(places: list[tuple[int, int, str]], nbytes: int) -> None:
    """Raise FormatError unless the tensors cover the data without hole or overlap, to the file's last byte."""
    at = 0
    for begin, end, name in places:
        if begin != at:
            problem = "overlaps the one before it" if begin < at else "leaves a hole before it"
            raise FormatError(f"tensor {name!r} begins at byte {begin:,} of the data and {problem}")
        at = end
    if at > nbytes:
        raise FormatError(f"is truncated: its tensors take {at:,} bytes, {nbytes:,} are there")
    if at < nbytes:
        raise FormatError(f"has {nbytes - at:,} bytes after its last tensor that nothing describes")


def _is_alias(key: str, text: str, params: Mapping[str, Param]) -> bool:
    """Return whether a metadata entry is `dropped name → kept name`, as `save_model` records ties."""
    return key != FORMAT_KEY and text in params and key not in params


def _with_aliases(params: Mapping[str, Param], metadata: Mapping[str, str]) -> tuple[Param, ...]:
    """Return the params in header order, with each alias at the place of its layer if layers are sorted."""
    listed = list(params.values())
    aliases = [
        params[text]._replace(path=key) for key, text in metadata.items() if _is_alias(key, text, params)
    ]
    if not aliases:
        return tuple(listed)
    rank = {name: i for i, name in enumerate(params)}
    aliases.sort(key=lambda alias: (natural_key(_layer(alias)), rank[str(alias.storage)]))
    layers = [natural_key(_layer(param)) for param in listed]
    in_order = layers == sorted(layers)
    spots: dict[int, list[Param]] = {}
    for alias in aliases:
        spot = bisect(layers, natural_key(_layer(alias))) if in_order else len(listed)
        spots.setdefault(max(spot, rank[str(alias.storage)] + 1), []).append(alias)
    return tuple(p for i in range(len(listed) + 1) for p in (*spots.get(i, ()), *listed[i : i + 1]))


def _layer(param: Param) -> str:
    return param.path.rpartition(".")[0]


def _leaders(params: Iterable[Param]) -> tuple[list[Param], dict[str, str]]:
    """Params that are written, and for each tied one the name of the one that stands for it."""
    first: dict[View, Param] = {}
    kept: list[Param] = []
    aliases: dict[str, str] = {}
    for param in params:
        leader = first.setdefault(param.view, param) if param.numel else param
        if leader is param:
            kept.append(param)
        else:
            aliases[param.path] = leader.path
    return kept, aliases


def _check_aliases(aliases: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Raise UsageError for an alias that is a key of the metadata with another meaning."""
    for name in aliases:
        if name == FORMAT_KEY or name in metadata:
            raise UsageError(
                f"'{name}' cannot be tied: {METADATA} uses that name for something else",
                hint="tie the others to it, or keep it untied",
            )


def _check_names(params: Iterable[Param]) -> None:
    seen: set[str] = set()
    for param in params:
        if param.path in seen:
            raise UsageError(f"two tensors print as '{param.path}', and safetensors has one name for each")
        if param.path == METADATA:
            raise UsageError(f"a tensor is called {METADATA}, which safetensors keeps for itself")
        seen.add(param.path)
        _check_encodable(param.path)


def _data_order(kept: list[Param], previous: list[str]) -> list[Param]:
    """Return the params in the order of their bytes: as before; new ones after the last whose alignment is as large."""
    rank = {name: i for i, name in enumerate(previous)}
    order = sorted((p for p in kept if p.storage == p.path in rank), key=lambda p: rank[p.path])
    settled = {param.path for param in order}
    new = sorted((p for p in kept if p.path not in settled), key=lambda p: (-p.dtype.bits, p.path))
    if not order:
        return new
    after_last = {old.dtype.bits: i for i, old in enumerate(order, 1)}
    spots: dict[int, list[Param]] = {}
    for param in new:
        spot = max((i for bits, i in after_last.items() if bits >= param.dtype.bits), default=0)
        spots.setdefault(spot, []).append(param)
    return [p for i in range(len(order) + 1) for p in (*spots.get(i, ()), *order[i : i + 1])]


def _header(
    kept: list[Param], order: list[Param], aliases: Mapping[str, str], metadata: Mapping[str, str], before: int
) -> bytes:
    """Length and JSON, in the order of `kept`, padded with spaces so that the data is aligned.

    Much data keeps its place on a page of memory, after the `before` bytes that came before it: then
    the kernel copies, or shares, whole pages of it.
    """
    at = 0
    offsets: dict[str, list[int]] = {}
    for param in order:
        offsets[param.path] = [at, at + param.nbytes]
        at += param.nbytes
    header: dict[str, object] = {METADATA: {**metadata, **aliases}} if metadata or aliases else {}
    for param in kept:
        places = {"dtype": _word(param), "shape": _dimensions(param), "data_offsets": offsets[param.path]}
        header[param.path] = places
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    much = before % 8 == 0 and before > 0 and at >= LARGE
    text += b" " * ((before - 8 - len(text)) % PAGE if much else -len(text) % 8)
    if len(text) > MAX_HEADER:
        raise Unsupported(f"its header would take {len(text):,} bytes, over the format's {MAX_HEADER:,}")
    return len(text).to_bytes(8, "little") + text


def _word(param: Param) -> str:
    """Return what a header calls a param's dtype; "" if it has no word for it."""
    return "F4" if _is_paired(param) else param.dtype.safetensors


def _dimensions(param: Param) -> list[int]:
    """Return a param's shape as a header has it: an F4 element is one value where torch counts pairs."""
    return [*param.shape[:-1], param.shape[-1] * 2] if _is_paired(param) else list(param.shape)


def _is_paired(param: Param) -> bool:
    return param.dtype.name == PAIRS and bool(param.shape)
