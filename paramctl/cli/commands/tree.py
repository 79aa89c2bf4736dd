"""`paramctl tree`: show a checkpoint as a nested tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import json_text, output
from paramctl.cli import text as cli_text
from paramctl.cli.options import (
    Color,
    FileArgument,
    Json,
    Layers,
    Selections,
    SortBy,
    Top,
    open_checkpoint,
    ordered,
    selected_positions,
    with_positional,
)
from paramctl.cli.tree_text import Layout, Rows
from paramctl.model import tree as trees
from paramctl.model.tree import Node, Scalar, Tensor, Totals

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint


def tree(
    file: FileArgument = None,
    selections: Selections = None,
    layer: Layers = None,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth",
            "-L",
            min=1,
            metavar="N",
            show_default=False,
            help="Show N levels; deeper is summed up.",
        ),
    ] = None,
    expand: Annotated[bool, typer.Option("--expand", help="Show repeated blocks one by one.")] = False,
    sort: SortBy = "file",
    top: Top = None,
    as_json: Json = False,
    color: Color = "auto",
) -> None:
    """Print a checkpoint as a nested tree.

    A tensor's line has its name, dtype, shape, number of values and bytes; a layer's has its class,
    where the file says, and its totals. Tied tensors are marked '= path' of the first and count once.
    Repeated blocks fold: '0–31 ×32' stands for 32 blocks built alike.

    \b
    Examples:
      paramctl tree model.pt
      paramctl tree model.safetensors -L 2
      paramctl tree model.pt encoder.0 --expand
      paramctl tree model.pt --sort size --top 5
      cat model.pt | paramctl tree --json | jq .totals
    """
    with open_checkpoint(file) as checkpoint:
        positions, others = _selected(checkpoint, with_positional(layer, selections))
        if top is not None:
            among = range(len(checkpoint.params)) if positions is None else sorted(positions)
            positions = frozenset(ordered(checkpoint, among, sort, top))
        root = trees.build(checkpoint, positions, others)
        if sort != "file":
            trees.sort(root, by_size=sort == "size")
        totals = Totals(*trees.counts(checkpoint, positions), root.numel, root.nbytes)
        if as_json:
            output.json(_document(checkpoint, root, totals))
            return
        folds = None if expand else trees.Folds(root)
        rows = Rows(folds, depth).of(root, checkpoint)
        layout = Layout(rows, output.terminal_width())
        if output.in_color(len(rows), color):
            output.colored(map(layout.line, rows))
        else:
            output.lines(map(layout.text, rows))
        output.lines(["", cli_text.totals_text(*totals)])


def _selected(checkpoint: Checkpoint, layers: list[str] | None) -> tuple[frozenset[int] | None, frozenset[str]]:
    """Return the positions of the params that `--layer` names, and the paths of scalars and empty layers."""
    if not layers:
        return None, frozenset()
    at = {id(param): i for i, param in enumerate(checkpoint.params)}
    everything = _with_stand_ins(checkpoint)
    found = [everything.params[i] for i in selected_positions(everything, layers) or ()]
    positions = frozenset(at[id(param)] for param in found if id(param) in at)
    return positions, frozenset(param.path[: -len(_WITHIN)] for param in found if id(param) not in at)


def _with_stand_ins(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with a param inside each scalar and empty layer, for selections to find."""
    from dataclasses import replace

    from paramctl.model.checkpoint import Param
    from paramctl.model.dtypes import BY_NAME

    def entries() -> Iterator[Param]:
        """Yield the params and the stand-ins."""
        waiting = [("", child) for child in reversed(trees.build(checkpoint).children)]
        while waiting:
            above, child = waiting.pop()
            path = f"{above}{child.name}"
            if isinstance(child, Tensor):
                yield child.param
            elif isinstance(child, Node) and child.children:
                waiting += [(f"{path}.", inner) for inner in reversed(child.children)]
            else:  # the kind keeps it from passing for part of a model
                yield Param(f"{path}{_WITHIN}", "optimizer", BY_NAME["uint8"], (), (), None)

    return replace(checkpoint, entries=tuple(entries()), modules={})


# Under what it stands for, as if that were a layer: globs name tensors first, and layers only where
# there are none. It is too long for a name to be suggested as the nearest to another.
_WITHIN = f".{'_' * 300}"


def _document(checkpoint: Checkpoint, root: Node, totals: Totals) -> dict[str, object]:
    """Return the JSON document."""
    return {
        "schema": 1,
        "file": checkpoint.file,
        "format": checkpoint.format,
        "root": _nested(root),
        "totals": totals._asdict(),
    }


def _nested(root: Node) -> dict[str, object]:
    """Return the tree as JSON has it, without folding and without recursion."""
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
    """Return the JSON object of a layer, and its list of children."""
    children: list[object] = []
    found: dict[str, object] = {
        "name": node.name,
        "type": node.module.type if node.module else None,
        "children": children,
    }
    if node.moments_of is not None:
        found["moments_of"] = node.moments_of
    return found, children


def _leaf_object(leaf: Tensor | Scalar) -> dict[str, object]:
    """Return the JSON object of a tensor or scalar."""
    if isinstance(leaf, Tensor):
        return {"name": leaf.name, **json_text.tensor_object(leaf.param, leaf.look.tied_to)}
    return {"name": leaf.name, "value": leaf.value}
