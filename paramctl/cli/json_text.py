"""Format results as JSON text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from json import JSONEncoder

    from paramctl.model.checkpoint import Param


def tensor_object(param: Param, tied_to: str | None) -> dict[str, object]:
    """Return the JSON object that every listing has for a tensor."""
    return {
        "path": param.path,
        "kind": param.kind,
        "dtype": param.dtype.name,
        "shape": list(param.shape),
        "numel": param.numel,
        "nbytes": param.nbytes,
        "tied_to": tied_to,
        "global_shape": None if param.global_shape is None else list(param.global_shape),
    }


def json_text(value: object) -> str:
    """Return `value` as JSON on one line, in ASCII, so that no character of a file's names reaches a terminal raw."""
    try:
        return _encoder().encode(value)
    except ValueError:  # NaN, infinity, or an integer of thousands of digits
        return _encoder().encode(_json_value(value))


@lru_cache(maxsize=1)
def _encoder() -> JSONEncoder:
    """Return the JSON encoder."""
    from json import JSONEncoder

    return JSONEncoder(ensure_ascii=True, allow_nan=False)


def _json_value(value: object) -> object:
    """Return `value` with strings in place of what JSON cannot express."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"an integer of {value.bit_length():,} bits"
    return value


def json_number(value: float) -> float | str:
    """Return `value`, or "NaN", "Infinity", "-Infinity"."""
    if value != value:
        return "NaN"
    return value if abs(value) != float("inf") else "Infinity" if value > 0 else "-Infinity"


def json_document(document: object) -> Iterator[str]:
    """Yield the lines of a document; containers without containers of containers stay on one line."""
    stack: list[tuple[Iterator[tuple[str, object]], str]] = []
    indent, prefix, value = "", "", document
    while True:
        opened = _opened(value)
        if opened is None:
            line = f"{indent}{prefix}{json_text(value)}"
        else:
            yield f"{indent}{prefix}{'{' if isinstance(value, dict) else '['}"
            stack.append((opened, "}" if isinstance(value, dict) else "]"))
            indent += "  "
            line = ""
        while stack:
            following = next(stack[-1][0], None)
            if following is not None:
                if line:
                    yield f"{line},"
                prefix, value = following
                break
            if line:
                yield line
            indent = indent[:-2]
            line = f"{indent}{stack.pop()[1]}"
        else:
            yield line
            return


def _opened(value: object) -> Iterator[tuple[str, object]] | None:
    """Return the items of a container whose items hold containers; None for a value on one line."""
    if isinstance(value, dict):
        if any(map(_holds, value.values())):
            return ((f"{json_text(key)}: ", item) for key, item in value.items())
    elif isinstance(value, list | tuple) and any(map(_holds, value)):
        return (("", item) for item in value)
    return None


def _holds(value: object) -> bool:
    """Return whether a container is among the items of `value`."""
    if isinstance(value, dict):
        return any(isinstance(item, dict | list | tuple) for item in value.values())
    return isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value)
