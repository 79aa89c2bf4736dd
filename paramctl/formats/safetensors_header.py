"""Read and write the JSON header of a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple, NoReturn

from paramctl.errors import FormatError, Unsupported
from paramctl.files.kernel_copy import PAGE
from paramctl.files.sources import Source
from paramctl.formats.containers import strict_json
from paramctl.model import shapes
from paramctl.model.checkpoint import Param, contiguous
from paramctl.model.dtypes import BY_SAFETENSORS, PAIRS, DType
from paramctl.model.shapes import MAX_INT

LARGE = 1 << 20  # bytes of data from which on it counts how they are copied

MAX_HEADER = 100_000_000  # bytes; the library's own limit
METADATA = "__metadata__"


class DTypeAndShape(NamedTuple):
    """A dtype and a shape; many tensors have the same."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int


def header_length(source: Source) -> int:
    if source.size < 8:
        raise FormatError(f"is truncated: {source.size} bytes, and the header's length alone takes 8")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:
        raise FormatError(f"claims a header of {length:,} bytes, over the format's limit of {MAX_HEADER:,}")
    if length > source.size - 8:
        raise FormatError(f"is truncated: its header takes {length:,} bytes, {source.size - 8:,} are there")
    return length


def decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"header is not UTF-8 (byte {8 + error.start})") from None


def parse(text: str) -> dict[str, Any]:
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


def metadata_of(found: object) -> dict[str, str]:
    if not isinstance(found, dict):
        raise FormatError(f"{METADATA} is not an object")
    for key, text in found.items():
        if not isinstance(text, str):
            raise FormatError(f"{METADATA} holds {key!r}, whose value is not a string")
        if not _is_encodable(key + text):
            raise FormatError(f"{METADATA} holds {key!a}, whose value is not valid Unicode")
    return found


def entry_of(name: str, entry: object, forms: dict[str, DTypeAndShape]) -> tuple[DTypeAndShape, int, int]:
    """Return a tensor's dtype and shape, and the start and end of its bytes. `forms` are those met before."""
    if not isinstance(entry, dict):
        raise FormatError(f"tensor {name!r} is not described by an object")
    if not name.isascii():
        check_encodable(name)
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
        raise FormatError(f"tensor {name!r} takes {form.nbytes:,} bytes by its shape, {end - begin:,} by its offsets")
    return form, begin, end


def _form(name: str, word: object, shape: object) -> DTypeAndShape:
    dtype = BY_SAFETENSORS.get(word) if isinstance(word, str) else None
    if dtype is None:
        raise FormatError(f"tensor {name!r} has the unknown dtype {word!r}")
    dims = shapes.shape(shape, name)
    numel = prod(dims)
    if numel * dtype.bits % 8:
        raise FormatError(f"tensor {name!r} does not fill its last byte: {numel:,} elements of {dtype.bits} bits")
    return DTypeAndShape(dtype, dims, contiguous(dims), dtype.nbytes(numel))


def check_encodable(name: str) -> None:
    if not _is_encodable(name):
        raise FormatError(f"tensor name {name!a} is not valid Unicode")


def _is_encodable(text: str) -> bool:
    """Return whether a text holds no half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_coverage(places: list[tuple[int, int, str]], nbytes: int) -> None:
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


def header_bytes(
    kept: list[Param], order: list[Param], aliases: Mapping[str, str], metadata: Mapping[str, str], before: int
) -> bytes:
    """Return the length and the JSON, in the order of `kept`, padded with spaces so that the data is aligned.

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
        places = {"dtype": word_of(param), "shape": dimensions(param), "data_offsets": offsets[param.path]}
        header[param.path] = places
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    much = before % 8 == 0 and before > 0 and at >= LARGE
    text += b" " * ((before - 8 - len(text)) % PAGE if much else -len(text) % 8)
    if len(text) > MAX_HEADER:
        raise Unsupported(f"its header would take {len(text):,} bytes, over the format's {MAX_HEADER:,}")
    return len(text).to_bytes(8, "little") + text


def word_of(param: Param) -> str:
    """Return what a header calls a param's dtype; "" if it has no word for it."""
    return "F4" if _is_paired(param) else param.dtype.safetensors


def dimensions(param: Param) -> list[int]:
    """Return a param's shape as a header has it: an F4 element is one value where torch counts pairs."""
    return [*param.shape[:-1], param.shape[-1] * 2] if _is_paired(param) else list(param.shape)


def _is_paired(param: Param) -> bool:
    return param.dtype.name == PAIRS and bool(param.shape)
