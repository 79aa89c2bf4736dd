"""`paramctl tree`: what is in a checkpoint, nested as the model is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from paramctl.cli import output
from paramctl.cli.options import Color, FileArgument, Json, Layers, called, chosen, opened
from paramctl.cli.output import Line

if TYPE_CHECKING:
    from collections.abc import Collection

    from paramctl.checkpoint import Checkpoint, Param
    from paramctl.tree import Child, Fold, Folds, Node, Scalar, Tensor, Totals

WIDEST = (72, 16, 24, 24, 12)  # what columns grow to; a longer cell pushes the rest of its own line
NARROWEST = 24  # of the names, on a small terminal


def tree(
    file: FileArgument = None,
    layer: Layers = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", "-L", min=1, metavar="N", show_default=False, help="Show N levels; deeper is summed up."),
    ] = None,
    expand: Annotated[bool, typer.Option("--expand", help="Show repeated blocks one by one.")] = False,
    sort: Annotated[bool, typer.Option("--sort", help="Sort names, 2 before 10; the default is the file's order.")] = False,
    as_json: Json = False,
    color: Color = "auto",
) -> None:
    """Print a checkpoint as a nested tree.

    A tensor's line has its name, dtype, shape, number of values and bytes; a layer's has its class,
    where the file says, and its totals. What is tied prints as '= path' of the first and counts once.
    Repeated blocks fold: '0–31 ×32' stands for 32 blocks built alike.

    \b
    Examples:
      paramctl tree model.pt
      paramctl tree model.safetensors -L 2
      paramctl tree model.pt --layer encoder.0 --expand
      cat model.pt | paramctl tree --json | jq .totals
    """
    from paramctl import tree as trees

    with opened(file) as checkpoint:
        positions = chosen(checkpoint, layer)
        root = trees.build(checkpoint, positions)
        if sort:
            trees.sort(root)
        totals = trees.totals(checkpoint, positions)
        if as_json:
            output.json(_document(checkpoint, root, totals))
            return
        folds = None if expand else trees.Folds(root)
        rows = [_title(checkpoint, root), *_Rows(folds, depth).under(root)]
        output.listing([*_lines(rows, output.terminal_width()), *_last(totals)], color)


# --- JSON --------------------------------------------------------------------------------------


def _document(checkpoint: Checkpoint, root: Node, totals: Totals) -> dict[str, object]:
    return {
        "schema": 1,
        "file": checkpoint.file,
        "format": checkpoint.format,
        "root": _nested(root),
        "totals": totals._asdict(),
    }


def _nested(root: Node) -> dict[str, object]:
    """The tree as JSON has it. Nothing folds, and nothing recurses."""
    from paramctl.tree import Node

    document, children = _layer_object(root)
    waiting = [(root, children)]
    while waiting:
        node, out = waiting.pop()
        for child in node.children:
            if isinstance(child, Node):
                inner, children = _layer_object(child)
                waiting.append((child, children))
                out.append(inner)
            else:
                out.append(_leaf_object(child))
    return document


def _layer_object(node: Node) -> tuple[dict[str, object], list[object]]:
    children: list[object] = []
    return {"name": node.name, "type": node.module.type if node.module else None, "children": children}, children


def _leaf_object(leaf: Tensor | Scalar) -> dict[str, object]:
    from paramctl.tree import Tensor

    if isinstance(leaf, Tensor):
        return {"name": leaf.name, **output.tensor_object(leaf.param, leaf.tied_to)}
    return {"name": leaf.name, "value": leaf.value}


# --- text --------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """One line before it is aligned: the guide, the name, what follows it, and a remark at the end.

    `facts` are dtype, shape, values and bytes of a tensor; values and bytes of a layer; nothing of
    anything else. `text` is a layer's class or a scalar's value.
    """

    guide: str
    name: str
    facts: tuple[str, ...]
    text: str = ""
    remark: str = ""


class _Rows:
    """Walks a tree and says its rows, without recursion."""

    def __init__(self, folds: Folds | None, depth: int | None) -> None:
        self._folds = folds
        self._depth = depth
        self._facts: dict[tuple[str, tuple[int, ...]], tuple[str, ...]] = {}

    def under(self, root: Node) -> Iterator[_Row]:
        """The rows of everything under `root`."""
        from paramctl.tree import Fold, Node

        stack = [("", self._children(root, 0), 0)]
        while stack:
            indent, children, at = stack.pop()
            while at < len(children):
                child = children[at]
                at += 1
                last = at == len(children)
                yield self._row(f"{indent}{'└── ' if last else '├── '}", child)
                inner = child.first if isinstance(child, Fold) else child
                below = self._children(inner, len(stack) + 1) if isinstance(inner, Node) else self._parts(inner)
                if below:
                    stack.append((indent, children, at))
                    indent, children, at = f"{indent}{'    ' if last else '│   '}", below, 0

    def _children(self, node: Node, level: int) -> list[Child | Fold]:
        if self._depth is not None and level >= self._depth:
            return []
        return list(node.children) if self._folds is None else self._folds.children(node)

    def _parts(self, child: Tensor | Scalar) -> list[Child | Fold]:
        """What a composite tensor is made of, where everything is to be seen."""
        from paramctl.tree import Tensor

        if self._folds is not None or not isinstance(child, Tensor):
            return []
        return [Tensor(part.path.rpartition(".")[2], part, None) for part in child.param.components]

    def _row(self, guide: str, child: Child | Fold) -> _Row:
        from paramctl.tree import Fold, Scalar, Tensor

        match child:
            case Tensor(name, param, tied_to):
                return _Row(guide, _shown(name), self._tensor_facts(param), "", _remark(param, tied_to))
            case Scalar(name, value, _):
                return _Row(guide, _shown(name), (), _value(value))
            case Fold(name, count, node):
                return _Row(guide, f"{name} ×{count:,}", _sums(node), _class(node), "each")
            case _:
                return _Row(guide, _shown(child.name), _sums(child), _class(child))

    def _tensor_facts(self, param: Param) -> tuple[str, ...]:
        key = (param.dtype.name, param.shape)
        facts = self._facts.get(key)
        if facts is None or param.components:
            shape = output.shape_text(param.shape)
            facts = (param.dtype.name, shape, f"{param.numel:,}", output.human_bytes(param.nbytes))
            self._facts[key] = facts
        return facts
