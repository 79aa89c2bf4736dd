"""Positions in the nested tree, `[0][1].bias`, written as one would index nested lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

from paramctl.checkpoint import Checkpoint
from paramctl.tree import Child, Node, Tensor, build

POSITION = re.compile(r"\[(-?[0-9]{1,9})\]")


def walk(root: Node, text: str, fold: Callable[[str], str]) -> Iterator[tuple[Child, str]]:
    """What the positions and names in `text` lead to from `root`, with its path from there.

    Names are compared as `fold` makes them. Where they hold dots and brackets a text can be read in
    several ways, and each is gone, once.
    """
    waiting: list[tuple[Node, str, int]] = [(root, "", 0)]
    seen: set[tuple[int, int]] = set()
    while waiting:
        node, path, at = waiting.pop()
        for child, end in _steps(node, text, at, fold, node is root):
            if (id(child), end) in seen:
                continue
            seen.add((id(child), end))
            here = child.name if node is root else f"{path}.{child.name}"
            if end == len(text):
                yield child, here
            elif isinstance(child, Node):
                waiting.append((child, here, end))


def _steps(
    node: Node, text: str, at: int, fold: Callable[[str], str], first: bool
) -> Iterator[tuple[Child, int]]:
    """The children that the next `[n]` or name of `text` stands for, and where it ends."""
    position = POSITION.match(text, at)
    if position and -len(node.children) <= int(position[1]) < len(node.children):
        yield node.children[int(position[1])], position.end()
    if not first and not text.startswith(".", at):
        return
    start = at if first else at + 1
    for child in node.children:
        name = fold(child.name)
        end = start + len(name)
        if text.startswith(name, start) and (end == len(text) or text[end] in ".["):
            yield child, end


def positions(checkpoint: Checkpoint, wanted: Collection[int]) -> dict[int, str]:
    """The positions, from the root, of the params that are `wanted` by their position in `params`."""
    names = {id(checkpoint.params[i]): i for i in wanted}
    found: dict[int, str] = {}
    waiting: list[tuple[Node, str]] = [(build(checkpoint), "")]
    while waiting and len(found) < len(names):
        node, prefix = waiting.pop()
        for n, child in enumerate(node.children):
            if isinstance(child, Node):
                waiting.append((child, f"{prefix}[{n}]"))
            elif isinstance(child, Tensor) and id(child.param) in names:
                found[names[id(child.param)]] = f"{prefix}[{n}]"
    return found
