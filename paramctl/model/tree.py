"""Paths become nested nodes; repeated blocks fold; totals count tied params once."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from paramctl.model.checkpoint import Checkpoint, Leaf, Module, Param, natural_key
from paramctl.model.optimizer_state import moment_layers

# Levels of nesting. A name of 3,000 dots is not a model of 3,000 levels, and a JSON document that
# deep could not be read by most programs: what is deeper keeps its dots, as one name.
DEPTH = 100


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """The look of a tensor in its layer; one object in a tree for all that look alike, so identity compares them.

    `tied_to` is the path of the first param of its group of ties.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    numel: int
    nbytes: int
    tied_to: str | None = None
    global_shape: tuple[int, ...] | None = None


class Tensor(NamedTuple):
    """A param in the tree."""

    param: Param
    look: Look

    @property
    def name(self) -> str:
        return self.look.name


class Scalar(NamedTuple):
    """An entry that is not a tensor."""

    name: str
    value: object
    is_object: bool


@dataclass(slots=True, eq=False)
class Node:
    """A layer: its name, its class where the file says, and what is under it, in the file's order.

    `numel` and `nbytes` count everything under it, what is tied within it once. `below` is told of the
    root alone: every layer under it, each after the one it lies in. `moments_of` is the path of the param
    that an optimizer remembers here, where that is certain.
    """

    name: str
    module: Module | None = None
    parent: Node | None = None
    children: list[Child] = field(default_factory=list)
    numel: int = 0
    nbytes: int = 0
    below: Sequence[Node] = ()
    moments_of: str | None = None


Child = Node | Tensor | Scalar


class Fold(NamedTuple):
    """Several layers that are built alike and have consecutive numbers as names, or at the end of them (`block 0`).

    `first` stands for all.
    """

    name: str
    blocks: int
    first: Node


class Totals(NamedTuple):
    """The totals of a tree: every tensor, and values and bytes of those that are not tied to another."""

    tensors: int
    unique: int
    numel: int
    nbytes: int


def build(checkpoint: Checkpoint, chosen: Collection[int] | None = None, others: Collection[str] = ()) -> Node:
    """Return the tree of a checkpoint, or of the params at the positions `chosen` and the `others` alone.

    Layers that hold nothing, such as a ReLU, have their place in it too where the file names them. The
    `others` are the paths of such layers and of scalars.
    """
    modules = checkpoint.modules
    layers = _Layers(modules)
    root = layers.root
    tied, params = checkpoint.tied_to, checkpoint.params
    shown = modules if chosen is None else _leading_to([*others, *(params[i].path for i in chosen)], modules)
    named = iter(shown)
    in_ties = {*tied, *tied.values()}
    holders: dict[int, Node] = {}
    looks: dict[Hashable, Look] = {}
    at = -1
    for entry in checkpoint.entries:
        path = entry.path
        if isinstance(entry, Leaf):
            if chosen is not None and path not in others:
                continue
        else:
            at += 1
            if chosen is not None and at not in chosen:
                continue
        above, dot, name = path.rpartition(".") if len(path) < DEPTH else _split(path)
        if above in shown and above not in layers:
            layers.add(_before(above, named))
        node = layers[above] if dot else root
        if isinstance(entry, Leaf):
            node.children.append(Scalar(name, entry.value, entry.is_object))
            continue
        tied_to = None
        if at in in_ties:
            holders[at] = node
            tied_to = params[tied[at]].path if at in tied else None
        alike: Hashable = (name, entry.kind, entry.dtype.name, entry.shape, entry.layout, tied_to)
        if entry.components or entry.global_shape:
            alike = (alike, entry.numel, entry.nbytes, entry.global_shape)
        look = looks.get(alike)
        if look is None:
            look = looks[alike] = _look(entry, name, tied_to)
        node.children.append(Tensor(entry, look))
        node.numel += look.numel
        node.nbytes += look.nbytes
    layers.add(named)
    _count_ties_once(checkpoint, holders)
    return _summed_up(checkpoint, layers)


class _Layers(dict[str, Node]):
    """The layers below the root by their paths, each made, with those above it, when it is asked for."""

    def __init__(self, modules: Mapping[str, Module]) -> None:
        self.root = Node("", modules.get(""))
        self._modules = modules

    def __missing__(self, path: str) -> Node:
        above, dot, name = path.rpartition(".") if len(path) < DEPTH else _split(path)
        parent = self[above] if dot else self.root
        node = self[path] = Node(name, self._modules.get(path) if path else None, parent)
        parent.children.append(node)
        return node

    def add(self, paths: Iterable[str]) -> None:
        """Make the layers at `paths`, where they are not there yet."""
        for path in paths:
            if path:
                self[path]


def _summed_up(checkpoint: Checkpoint, layers: _Layers) -> Node:
    """Return the root, with the sums of all layers, and with the owners of optimizer moments."""
    for path, owner in moment_layers(checkpoint).items():
        if path in layers:
            layers[path].moments_of = owner
    root = layers.root
    root.below = tuple(layers.values())  # each was added after the one it lies in
    for node in reversed(root.below):
        assert node.parent is not None
        node.parent.numel += node.numel
        node.parent.nbytes += node.nbytes
    return root


def _split(path: str) -> tuple[str, str, str]:
    """Return the path of the layer that an entry is in, a dot if there is such a layer, and the entry's name."""
    if path.count(".") < DEPTH:
        return path.rpartition(".")
    *names, name = path.split(".", DEPTH)
    return ".".join(names), ".", name


def _before(path: str, paths: Iterator[str]) -> Iterator[str]:
    return takewhile(path.__ne__, paths)


def _look(param: Param, name: str, tied_to: str | None = None) -> Look:
    size = param.numel, param.nbytes
    return Look(name, param.kind, param.dtype.name, param.shape, param.layout, *size, tied_to, param.global_shape)


def part(component: Param) -> Tensor:
    """Return a component of a composite tensor, as a leaf of the tree; it counts nowhere."""
    return Tensor(component, _look(component, component.path.rpartition(".")[2]))


def _leading_to(paths: Iterable[str], modules: Mapping[str, Module]) -> Mapping[str, Module]:
    """Return the layers named by the file that are among `paths`, or hold one of them, in the file's order."""
    wanted = {name for path in paths for name in (path, path.rpartition(".")[0])}
    return {name: module for name, module in modules.items() if name in wanted}


def _count_ties_once(checkpoint: Checkpoint, holders: Mapping[int, Node]) -> None:
    """Take from each layer what was counted there more than once.

    A tied param counts in a layer unless one of its group came before it in that layer: its values are
    taken off where its way to the root meets theirs, and so in everything above.
    """
    for group in checkpoint.groups():
        seen: set[int] = set()
        for at in group:
            node: Node | None = holders.get(at)
            while node is not None and id(node) not in seen:
                seen.add(id(node))
                node = node.parent
            if node is not None:
                node.numel -= checkpoint.params[at].numel
                node.nbytes -= checkpoint.params[at].nbytes


def totals(checkpoint: Checkpoint, chosen: Collection[int] | None = None) -> Totals:
    """Return the totals of a checkpoint, or of the params at the positions `chosen` alone."""
    tied, params = checkpoint.tied_to, checkpoint.params
    positions = range(len(params)) if chosen is None else chosen
    unique = [params[i] for i in {tied.get(i, i) for i in positions}]
    return Totals(*counts(checkpoint, chosen), sum(p.numel for p in unique), sum(p.nbytes for p in unique))


def counts(checkpoint: Checkpoint, chosen: Collection[int] | None = None) -> tuple[int, int]:
    """Return how many tensors there are, and how many if tied ones count once."""
    tied = checkpoint.tied_to
    if chosen is None:
        return len(checkpoint.params), len(checkpoint.params) - len(tied)
    return len(chosen), len({tied.get(i, i) for i in chosen})


def sort(root: Node, *, by_size: bool = False) -> None:
    """Put the children of every layer in natural order, `2` before `10`, or the largest first."""

    def size(child: Child) -> int:
        """Return the sort key of a child: its bytes, the most first."""
        return -(child.nbytes if isinstance(child, Node) else child.look.nbytes if isinstance(child, Tensor) else 0)

    for node in (root, *root.below):
        node.children.sort(key=size if by_size else lambda child: natural_key(child.name))


class Folds:
    """The layers of a tree that are built alike: names, shapes, dtypes, classes and ties, all the way down."""

    def __init__(self, root: Node) -> None:
        kinds: dict[Hashable, int] = {}
        self._kind: dict[Node, int] = {}
        for node in (*reversed(root.below), root):
            children = [child.look if isinstance(child, Tensor) else self._structure(child) for child in node.children]
            # Layers that are built alike may hold their parts in another order.
            self._kind[node] = kinds.setdefault((node.module, len(children), frozenset(children)), len(kinds))

    def _structure(self, child: Node | Scalar) -> Hashable:
        if isinstance(child, Node):
            return (child.name, self._kind[child])
        return (child.name, type(child.value).__name__, child.value if _is_atom(child.value) else id(child))

    def children(self, node: Node) -> Sequence[Child | Fold]:
        """Return the children of `node`, with each run of layers that are alike as one Fold, at the place of the first.

        Only the numbers must follow one another, not the layers: many files have `10` before `2`.
        """
        numbered = [child for child in node.children if isinstance(child, Node) and child.name[-1:].isdigit()]
        if len(numbered) < 2:
            return node.children
        alike: dict[Hashable, list[tuple[int, Node]]] = {}
        for layer in numbered:
            if match := _NUMBERED(layer.name):
                alike.setdefault((match[1], self._kind[layer]), []).append((int(match[2]), layer))
        runs = {id(child): run for same in alike.values() for run in _runs(same) for _, child in run}
        out: list[Child | Fold] = []
        done: set[int] = set()
        for child in node.children:
            run = runs.get(id(child))
            if run is None:
                out.append(child)
            elif id(run[0]) not in done:
                done.add(id(run[0]))
                out.append(Fold(f"{run[0][1].name}–{run[-1][0]}", len(run), run[0][1]))
        return out


def _is_atom(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


# A number alone, or behind a word and a sign that parts them: `fc1` and `fc2` are seldom blocks of one stack.
_NUMBERED = re.compile(r"((?:.*[ _-])?)(0|[1-9][0-9]{0,17})", re.S).fullmatch


def _runs(layers: list[tuple[int, Node]]) -> Iterator[list[tuple[int, Node]]]:
    """Yield the layers whose numbers follow one another, each with its number, two or more at a time."""
    run: list[tuple[int, Node]] = []
    for number, node in sorted(layers, key=lambda pair: pair[0]):
        if run and number != run[-1][0] + 1:
            if len(run) > 1:
                yield run
            run = []
        run.append((number, node))
    if len(run) > 1:
        yield run
