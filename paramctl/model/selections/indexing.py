"""An index such as `[0, :5, ..., ::2]`, read as numpy would take it, and never evaluated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import EllipsisType

from paramctl.errors import UsageError
from paramctl.model.checkpoint import dims

Item = int | slice | EllipsisType
Index = tuple[Item, ...]

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_HINT = "use whole numbers, slices such as 0:5 or ::2, and '...'"


def split_index(text: str) -> tuple[str, Index | None]:
    """Return a path and the index behind it: `0.weight[0,:5]` is `('0.weight', (0, slice(None, 5)))`.

    Without brackets at its end a text is all path, and the index None. Of several pairs of brackets
    the last is the index. Raises UsageError for what is in the brackets but no index.
    """
    start = text.rfind("[")
    if start < 0 or not text.endswith("]"):
        return text, None
    return text[:start], parse_index(text[start + 1 : -1])


def parse_index(text: str) -> Index:
    """Return the index between the brackets. Raises UsageError if numpy's basic indexing has no such thing."""
    pieces = text.split(",")
    if len(pieces) > 1 and not pieces[-1].strip():
        pieces.pop()  # as in Python, [0,] is [0]
    index = tuple(_item(piece.strip(), text) for piece in pieces)
    if sum(item is ... for item in index) > 1:
        raise UsageError(f"the index [{text}] has '...' twice", hint="once stands for all axes left out")
    return index


def _item(piece: str, text: str) -> Item:
    if piece == "...":
        return ...
    if _NUMBER.fullmatch(piece):
        return int(piece)
    bounds = [bound.strip() for bound in piece.split(":")]
    if len(bounds) not in (2, 3) or not all(_NUMBER.fullmatch(bound) for bound in bounds if bound):
        raise UsageError(f"'{piece}' in the index [{text}] is no index", hint=_HINT)
    numbers = [int(bound) if bound else None for bound in bounds]
    if len(numbers) == 3 and numbers[2] == 0:
        raise UsageError(f"the slice {piece} in the index [{text}] has step 0", hint="give another step")
    return slice(*numbers)


def check_index(index: Index, shape: Sequence[int], path: str) -> None:
    """Raise UsageError unless `index` fits a tensor of `shape`; `path` is what the message calls it."""
    name = f"{path or '.'} ({dims(shape)})"
    axes = sum(item is not ... for item in index)
    if axes > len(shape):
        has = f"{len(shape)} {'axis' if len(shape) == 1 else 'axes'}"
        raise UsageError(f"{name} has {has}, and the index [{index_text(index)}] has {axes}")
    for axis, item in _by_axis(index, len(shape)):
        if isinstance(item, int) and not -shape[axis] <= item < shape[axis]:
            raise UsageError(f"index {item} is out of range for axis {axis} of {name}")


def _by_axis(index: Index, ndim: int) -> list[tuple[int, Item]]:
    """Return the items with the axis each is for; those behind an ellipsis count from the last."""
    at = index.index(...) if ... in index else len(index)
    behind = index[at + 1 :]
    return [*enumerate(index[:at]), *enumerate(behind, ndim - len(behind))]


def index_text(index: Index) -> str:
    """`0, :5, ...`: an index as people write it, without its brackets."""
    return ", ".join(map(_item_text, index))


def _item_text(item: Item) -> str:
    if not isinstance(item, slice):
        return "..." if item is ... else str(item)
    start, stop, step = ("" if bound is None else str(bound) for bound in (item.start, item.stop, item.step))
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
