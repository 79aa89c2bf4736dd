"""The containers that entries of a checkpoint lie in, told by the keys that lead to each, and built again from those.

A path such as `model.0.weight` does not say whether `0.weight` is one name in `model`; formats that save objects
within objects do, and others that are made of them keep it so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

DEEPEST = 100  # containers in one another


class Position(int):
    """A position in a list."""


class InTuple(Position):
    """A position in a tuple."""


Keys = tuple[str | int, ...]  # of dicts the keys themselves, of lists and tuples positions


class Found(Mapping[str, Keys]):
    """Keys by path that are looked for when somebody asks: a listing does not."""

    def __init__(self, find: Callable[[], Mapping[str, Keys]]) -> None:
        self._find = find

    @cached_property
    def _found(self) -> Mapping[str, Keys]:
        return self._find()

    def __getitem__(self, path: str) -> Keys:
        return self._found[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def path_of(keys: Keys) -> str:
    """Return the path that these keys make."""
    return ".".join(map(str, keys))


def below(keys: Keys, path: str) -> Keys:
    """Return the keys behind `path`, which they lead through; if it ends within a key, the rest of that is one."""
    for n in range(1, len(keys) + 1):
        reached = path_of(keys[:n])
        if reached == path:
            return keys[n:]
        if reached.startswith(f"{path}."):
            return (reached[len(path) + 1 :], *keys[n:])
    return ()


class _Container(dict[Any, Any]):
    """A container that is being filled, its children by their keys."""


def nested(items: Iterable[tuple[Keys, object]]) -> Any:
    """Values in dicts, lists and tuples within one another; None where their keys contradict each other.

    A position that nothing is at holds None.
    """
    root = _Container()
    for keys, value in items:
        if not 0 < len(keys) <= DEEPEST:
            return None
        at = root
        for key in keys[:-1]:
            at = at.setdefault(key, _Container())
            if type(at) is not _Container:
                return None
        if keys[-1] in at:
            return None
        at[keys[-1]] = value
    try:
        return _filled(root)
    except ValueError:
        return None


def _filled(container: _Container) -> Any:
    """Return a container as Python has it. Raises ValueError if its keys are of two kinds, or are no positions."""
    kinds = {Position if isinstance(key, Position) else object for key in container}
    inner = {key: _filled(each) if type(each) is _Container else each for key, each in container.items()}
    if kinds != {Position}:
        if Position in kinds:
            raise ValueError("positions among keys")
        return inner
    size = max(inner) + 1
    if min(inner) < 0 or size > 2 * len(inner) + DEEPEST:
        raise ValueError("no positions")
    found = [inner.get(i) for i in range(size)]
    return tuple(found) if any(type(key) is InTuple for key in inner) else found
