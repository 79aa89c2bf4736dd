"""Turn keys and scalars of a pickled object into names and JSON values."""

from __future__ import annotations

from paramctl.formats.pickles.nodes import Call, FrozenSet, Global, PyString, Set, describe
from paramctl.model.shapes import int_text, is_short

PLAIN_ITEMS = 10_000  # elements of a list of numbers that are listed as one value


def key_text(key: object) -> str:
    """Return the name that a dict key prints as."""
    if isinstance(key, str):
        return key
    if isinstance(key, PyString):
        return key.text
    if key is None or isinstance(key, bool | float | bytes):
        return repr(key)
    if isinstance(key, int):
        return int_text(key)
    plain = plain_value(key, 100)
    return str(plain) if isinstance(plain, tuple) else describe(key)


def object_text(node: object) -> str:
    if isinstance(node, bytes | bytearray):
        return f"{len(node):,} bytes"
    if isinstance(node, int):
        return int_text(node)
    if isinstance(node, Set | FrozenSet):
        return f"a set of {len(node.items):,}"
    return describe(node)


def plain_value(node: object, budget: int = PLAIN_ITEMS) -> object:
    """Return a scalar, or a list or tuple of scalars and of lists of them, as JSON has them; None for all else."""
    if isinstance(node, bool | float | str):
        return node
    if isinstance(node, int):
        return node if is_short(node) else None
    if isinstance(node, PyString):
        return node.text
    if not isinstance(node, list | tuple) or len(node) > budget:
        return None
    out = []
    for item in node:
        if isinstance(item, list | tuple) and any(isinstance(x, list | tuple) for x in item[:budget]):
            return None
        value = plain_value(item, budget - len(node))
        if value is None and item is not None:
            return None
        out.append(value)
        budget -= len(item) if isinstance(item, list | tuple) else 0
    return tuple(out) if isinstance(node, tuple) else out


def numpy_scalar(node: object) -> float | int | None:
    """Return the number in `numpy.core.multiarray.scalar(dtype, bytes)`, as trainers leave them behind; else None."""
    import struct

    if not (isinstance(node, Call) and isinstance(node.func, Global) and node.func.name == "scalar"):
        return None
    if not node.func.module.startswith("numpy.") or not isinstance(node.args, tuple) or len(node.args) != 2:
        return None
    dtype, data = node.args
    if isinstance(data, Call) and data.args and isinstance(data.args[0], str):
        data = data.args[0].encode("latin-1", "replace")  # _codecs.encode(text, 'latin1')
    word = dtype.args[0] if isinstance(dtype, Call) and dtype.args else None
    word = word.text if isinstance(word, PyString) else word
    code = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "u1": "B", "b1": "?"}.get(str(word))
    if code is None or not isinstance(data, bytes) or len(data) != struct.calcsize(code):
        return None
    value: float | int = struct.unpack(f"<{code}", data)[0]
    return value
