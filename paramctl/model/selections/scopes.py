"""Look for names in a checkpoint: from its root, or from a layer that holds the model."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property

from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.model.optimizer_state import model_inside, wrapped_models
from paramctl.model.selections.positions import POSITION, Walk
from paramctl.model.tree import Child, Node, Tensor, build


def scopes(checkpoint: Checkpoint, text: str) -> Iterator[Names]:
    """Yield the scopes to look for `text` in, one after the other until something is found."""
    yield checkpoint.derived(from_root)
    if inside := checkpoint.derived(_from_inside):
        yield inside
    yield from checkpoint.derived(_from_wrapped)
    if not text.isascii():
        yield checkpoint.derived(_folded_from_root)
        if folded := checkpoint.derived(_folded_from_inside):
            yield folded
        yield from checkpoint.derived(_folded_from_wrapped)


def from_root(checkpoint: Checkpoint) -> Names:
    return Names(checkpoint)


def _from_inside(checkpoint: Checkpoint) -> Names | None:
    under = model_inside(checkpoint)
    return Names(checkpoint, under) if under else None


def _from_wrapped(checkpoint: Checkpoint) -> tuple[Names, ...]:
    return tuple(Names(checkpoint, under) for under in wrapped_models(checkpoint))


def _folded_from_root(checkpoint: Checkpoint) -> Names:
    return Names(checkpoint, folded=True)


def _folded_from_inside(checkpoint: Checkpoint) -> Names | None:
    inside = checkpoint.derived(_from_inside)
    return Names(checkpoint, inside.under, folded=True) if inside else None


def _folded_from_wrapped(checkpoint: Checkpoint) -> tuple[Names, ...]:
    return tuple(Names(checkpoint, names.under, folded=True) for names in checkpoint.derived(_from_wrapped))


class Names:
    """The params under the names that a selection may call them by: from the root, or from a layer.

    With `folded`, names are compared in Unicode's composed form, however they were typed.
    """

    def __init__(self, checkpoint: Checkpoint, under: str = "", folded: bool = False) -> None:
        self.entries = checkpoint.entries
        self.params = checkpoint.params
        self.under = under
        self.fold = _composed if folded else str
        self._walk: Walk | None = None

    def name(self, index: int) -> str:
        """Return the name of a param here."""
        path = self.params[index].path
        return self.fold(path[len(self.under) + 1 :] if self.under else path)

    def exactly(self, text: str) -> list[int]:
        """Return the params of exactly that name; a bare tensor's is `.`."""
        text = self.fold(text)
        return self._by_name.get(text) or (self._by_name.get("", []) if text == "." else [])

    def leaves(self, text: str) -> list[Leaf]:
        """Return the scalars of exactly that name."""
        return self._leaves.get(self.fold(f"{self.under}.{text}" if self.under else text), [])

    def members(self, layer: str) -> list[int]:
        """Return the params under a layer, in the file's order."""
        start = f"{self.fold(layer)}."
        first = bisect_left(self._sorted, (start, -1))
        last = bisect_left(self._sorted, (f"{start[:-1]}/", -1))  # '/' is what comes next to '.'
        return sorted(i for _, i in self._sorted[first:last])

    def positioned(self, checkpoint: Checkpoint, text: str) -> list[int | str | Leaf]:
        """Return the params, layers (by their names here) and scalars that `[0].a[1]` leads to from here."""
        if not POSITION.search(text):
            return []
        if self._walk is None:
            self._walk = Walk(_layer(checkpoint.derived(build), self.under), "", self.fold)
        return [self._end(node, path) for node, path in self._walk.ends(self.fold(text))]

    def matching(self, pattern: re.Pattern[str]) -> list[int]:
        """Return the params whose whole name a pattern matches."""
        return [i for name, i in self._pairs if pattern.fullmatch(name)]

    @cached_property
    def _pairs(self) -> list[tuple[str, int]]:
        paths = enumerate(param.path for param in self.params)
        if self.under:
            prefix = f"{self.under}."
            paths_here = ((path[len(prefix) :], i) for i, path in paths if path.startswith(prefix))
        else:
            paths_here = ((path, i) for i, path in paths)
        return [(self.fold(path), i) for path, i in paths_here]

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for name, i in self._pairs:
            found.setdefault(name, []).append(i)
        return found

    @cached_property
    def _sorted(self) -> list[tuple[str, int]]:
        return sorted(self._pairs)

    @cached_property
    def _leaves(self) -> dict[str, list[Leaf]]:
        found: dict[str, list[Leaf]] = {}
        for entry in self.entries:
            if isinstance(entry, Leaf):
                found.setdefault(self.fold(entry.path), []).append(entry)
        return found

    @cached_property
    def _index_of(self) -> dict[int, int]:
        return {id(param): i for i, param in enumerate(self.params)}

    def _end(self, child: Child, path: str) -> int | str | Leaf:
        if isinstance(child, Node):
            return path
        if isinstance(child, Tensor):
            return self._index_of[id(child.param)]
        return Leaf(f"{self.under}.{path}" if self.under else path, child.value, child.is_object)


def _layer(tree: Node, path: str) -> Node:
    """Return the layer of a tree at a path of plain names, which is there; the tree itself at none."""
    for name in path.split(".") if path else ():
        tree = next(child for child in tree.children if isinstance(child, Node) and child.name == name)
    return tree


def _composed(text: str) -> str:
    """Unicode's composed form: an accent may also be typed after its letter."""
    return unicodedata.normalize("NFC", text)
