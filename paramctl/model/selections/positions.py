"""Find what positions in the nested tree lead to, `[0][1].bias`, `encoder[::4]`, written as for nested lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from paramctl.model.checkpoint import Checkpoint
from paramctl.model.tree import Child, Node, Tensor, build

POSITION = re.compile(r"\[(?:(-?[0-9]{1,9})|(-?[0-9]{0,9}):(-?[0-9]{0,9})(?::(-?[0-9]{0,9}))?)\]")


class Walk:
    """Goes from a layer of a tree where positions and names lead; names are compared as `fold` makes them."""

    def __init__(self, tree: Node, layer: str, fold: Callable[[str], str]) -> None:
        layers = (child for child in tree.children if isinstance(child, Node))
        self._root = next((child for child in layers if child.name == layer), None) if layer else tree
        self._fold = fold
        self._named: dict[int, dict[str, list[int]]] = {}

    def ends(self, text: str) -> Iterator[tuple[Child, str]]:
        """Yield what `text` leads to, with its path from here.

        Where names hold dots and brackets a text can be read in several ways, and each is gone, once.
        """
        waiting: list[tuple[Node, str, int]] = [(self._root, "", 0)] if self._root else []
        seen: set[tuple[int, int]] = set()
        while waiting:
            node, path, at = waiting.pop()
            for child, end in self._steps(node, text, at):
                if (id(child), end) in seen:
                    continue
                seen.add((id(child), end))
                here = child.name if node is self._root else f"{path}.{child.name}"
                if end == len(text):
                    yield child, here
                elif isinstance(child, Node):
                    waiting.append((child, here, end))

    def _steps(self, node: Node, text: str, at: int) -> Iterator[tuple[Child, int]]:
        """Yield the children that the next `[n]` or name of `text` stands for, and the end of that part."""
        if position := POSITION.match(text, at):
            yield from ((child, position.end()) for child in _at(node, position))
        first = node is self._root
        if not first and not text.startswith(".", at):
            return
        start = at if first else at + 1
        named = self._children_of(node)
        ends = [end for end in range(start, len(text) + 1) if end == len(text) or text[end] in ".["]
        found = [(i, end) for end in ends for i in named.get(text[start:end], ())]
        yield from ((node.children[i], end) for i, end in sorted(found))

    def _children_of(self, node: Node) -> dict[str, list[int]]:
        """Positions in a layer by their names."""
        if id(node) not in self._named:
            named = self._named[id(node)] = {}
            for i, child in enumerate(node.children):
                named.setdefault(self._fold(child.name), []).append(i)
        return self._named[id(node)]


def _at(node: Node, position: re.Match[str]) -> Sequence[Child]:
    """Return the children at a position or in a slice of them; none if it leads nowhere."""
    if position[1]:
        number = int(position[1])
        return node.children[number : number + 1 or None]
    start, stop, step = (int(text) if text not in (None, "", "-") else None for text in position.groups()[1:])
    return node.children[start:stop:step] if step != 0 else ()


def positions(checkpoint: Checkpoint, wanted: Collection[int]) -> dict[int, str]:
    """Return the positions, from the root, of the params that are `wanted` by their position in `params`."""
    names = {id(checkpoint.params[i]): i for i in wanted}
    found: dict[int, str] = {}
    waiting: list[tuple[Node, str]] = [(checkpoint.derived(build), "")]
    while waiting and len(found) < len(names):
        node, prefix = waiting.pop()
        for n, child in enumerate(node.children):
            if isinstance(child, Node):
                waiting.append((child, f"{prefix}[{n}]"))
            elif isinstance(child, Tensor) and id(child.param) in names:
                found[names[id(child.param)]] = f"{prefix}[{n}]"
    return found
