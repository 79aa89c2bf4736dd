"""Print a tree of layers and tensors as aligned lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paramctl.cli import json_text, output
from paramctl.cli import text as cli_text
from paramctl.cli.options import display_name
from paramctl.model import tree as trees
from paramctl.model.checkpoint import dims
from paramctl.model.tree import Child, Fold, Folds, Look, Node, Scalar, Tensor

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint

_TENSOR = ("dim", "", "cyan", "", "", "dim")
_LAYER = ("dim", "bold", "green", "", "dim")
_SCALAR = ("dim", "", "dim")

WIDEST = (72, 16, 24, 24, 12)  # what columns grow to; a longer cell pushes the rest of its own line
NARROWEST = 24  # what remarks get where there is room
NAMES = 20  # what names keep before the numbers of values make room for them
LEAST = 12  # what remarks keep, and names on the smallest terminal
NAME = 6  # what a name keeps beside its guide

# One line before it is aligned: the guide, the name, what is known of it, a text, and a remark at the
# end. Known of a tensor are dtype, shape, values and bytes; of a layer values and bytes, and the text
# is its class; of a scalar nothing, and the text is its value. (60,000 named tuples would take longer
# to make than all else here.)
_Row = tuple[str, str, tuple[str, ...], str, str]


class Rows:
    """The rows of a tree, made without recursion."""

    def __init__(self, folds: Folds | None, depth: int | None) -> None:
        self._folds = folds
        self._depth = depth
        self._limit = cli_text.LIMIT if output.stdout_is_terminal() else None  # a program may look for a name
        self._names: dict[str, str] = {}
        self._tensors: dict[Look, tuple[str, tuple[str, ...], str]] = {}
        self._layers: dict[tuple[int, int], tuple[str, ...]] = {}

    def of(self, root: Node, checkpoint: Checkpoint) -> list[_Row]:
        """Return the row of the file, and those of everything in it."""
        what = f"{checkpoint.format}  {_class(root)}" if root.module else checkpoint.format
        rows: list[_Row] = [("", cli_text.escape(display_name(checkpoint.file)), ("", ""), what, "")]
        stack = [("", self._children(root, 0), 0)]
        while stack:
            indent, children, at = stack.pop()
            branch = f"{indent}├── "
            while at < len(children):
                child = children[at]
                at += 1
                last = at == len(children)
                guide = f"{indent}└── " if last else branch
                if isinstance(child, Tensor):
                    rows.append(self._tensor(guide, child))
                    below = self._parts(child) if child.param.components else None
                else:
                    rows.append(self._other(guide, child))
                    below = self._below(child, len(stack) + 1)
                if below:
                    stack.append((indent, children, at))
                    indent, children, at = f"{indent}{'    ' if last else '│   '}", below, 0
                    branch = f"{indent}├── "
        return rows

    def _below(self, child: Child | Fold, level: int) -> Sequence[Child | Fold]:
        """Return the children of a layer or of the first of folded blocks."""
        node = child.first if isinstance(child, Fold) else child
        return self._children(node, level) if isinstance(node, Node) else ()

    def _children(self, node: Node, level: int) -> Sequence[Child | Fold]:
        """Return the children to print at that level."""
        if self._depth is not None and level >= self._depth:
            return ()
        return node.children if self._folds is None else self._folds.children(node)

    def _parts(self, tensor: Tensor) -> Sequence[Child | Fold]:
        """Return the components of a composite tensor, if nothing is folded."""
        if self._folds is not None:
            return ()
        return [trees.part(component) for component in tensor.param.components]

    def _tensor(self, guide: str, tensor: Tensor) -> _Row:
        """Return the row of a tensor."""
        look = tensor.look
        shown = self._tensors.get(look)
        if shown is None:
            name = self._shown(look.name) if tensor.param.path else "."
            shown = self._tensors[look] = name, _facts(look), self._remark(look)
        name, facts, remark = shown
        return guide, name, facts, "", remark

    def _other(self, guide: str, child: Node | Scalar | Fold) -> _Row:
        """Return the row of a layer, a scalar or folded blocks."""
        if isinstance(child, Scalar):
            return guide, self._shown(child.name), (), _value(child.value), ""
        if isinstance(child, Fold):
            return (
                guide,
                f"{child.name} ×{child.blocks:,}",
                self._sums(child.first),
                _class(child.first),
                self._moments(child.first, " …, each") or "each",
            )
        name = self._names.get(child.name) or self._shown(child.name)
        return guide, name, self._sums(child), _class(child), self._moments(child)

    def _moments(self, node: Node, more: str = "") -> str:
        """Return the param whose optimizer moments a layer holds, in words, or ""."""
        if node.moments_of is None:
            return ""
        return f"moments of {cli_text.escape(node.moments_of, self._limit) or '.'}{more}"

    def _sums(self, node: Node) -> tuple[str, ...]:
        """Return the numbers of values and bytes of a layer."""
        sums = self._layers.get((node.numel, node.nbytes))
        if sums is None:
            numbers = (f"{node.numel:,}", cli_text.human_bytes(node.nbytes)) if node.numel else ("", "")
            sums = self._layers[node.numel, node.nbytes] = numbers
        return sums

    def _shown(self, name: str) -> str:
        """Return a name as it is printed."""
        shown = self._names[name] = cli_text.escape(name, self._limit) or '""'
        return shown

    def _remark(self, look: Look) -> str:
        """Return the remark on a tensor: buffer, layout, tie."""
        words = ["buffer"] if look.kind == "buffer" else []
        if look.layout != "strided":
            words.append(look.layout)
        if look.global_shape is not None:
            words.append(f"part of {dims(look.global_shape)}")
        if look.tied_to is not None:
            words.append(f"= {cli_text.escape(look.tied_to, self._limit) or '.'}")
        return " ".join(words)


def _facts(look: Look) -> tuple[str, ...]:
    """Return dtype, shape, values and bytes of a tensor."""
    return look.dtype, dims(look.shape), f"{look.numel:,}", cli_text.human_bytes(look.nbytes)


def _class(node: Node) -> str:
    """Return the class of a layer as it is printed."""
    return cli_text.escape(node.module.text) if node.module else ""


def _value(value: object) -> str:
    """Return a scalar as it is printed."""
    try:
        return cli_text.escape(str(value))
    except ValueError:  # an integer of thousands of digits
        return json_text.json_text(value)


class Layout:
    """Align rows. Off a terminal nothing is cut; on a terminal guides, remarks, then names are cut to fit.

    Where names would have no room, tensors and layers lose their numbers of values.
    """

    def __init__(self, rows: Sequence[_Row], terminal: int | None) -> None:
        facts = {row[2] for row in rows}
        columns = [
            min(max((len(fact[i]) for fact in facts if len(fact) >= -i), default=0), most)
            for i, most in zip(range(-4, 0), WIDEST[1:], strict=True)
        ]
        self._terminal = terminal
        self._remark = 0
        self._narrow = False
        self._values = True
        middle = columns[0] + columns[1] + 4
        label = self._wanted(rows, middle)
        if terminal is not None:
            label = self._fitted(rows, columns, label, terminal)
        self._label = label
        self._to_sums = label + middle
        self._aligned = {fact: self._padded(fact, columns) for fact in facts}
        self._joined = {fact: "".join(cells) for fact, cells in self._aligned.items()}

    def _fitted(self, rows: Sequence[_Row], columns: Sequence[int], wanted: int, terminal: int) -> int:
        """Return the width of the names with their guides on a terminal."""
        remarks = min(max(cli_text.cell_width(row[4]) for row in rows), NARROWEST)
        room = terminal - sum(columns) - 2 * (len(columns) + (remarks > 0))
        if wanted + remarks > room:
            self._narrow = True
            wanted = self._wanted(rows, columns[0] + columns[1] + 4)
        if min(wanted, NAMES) + min(remarks, LEAST) > room:
            self._values = False
            room += columns[2] + 2
        label = min(wanted, max(room - min(remarks, LEAST), LEAST))
        self._remark = max(room - label, 0)
        return label

    def _wanted(self, rows: Sequence[_Row], middle: int) -> int:
        """Return the width of the names with their guides; a layer's class may reach up to its sums."""
        names = (len(self._guide(row[0])) + cli_text.cell_width(row[1]) for row in rows if len(row[2]) != 2)
        layers = (
            len(self._guide(row[0])) + cli_text.cell_width(row[1]) + (len(row[3]) and len(row[3]) + 2)
            for row in rows[1:]
            if len(row[2]) == 2
        )
        return max(
            min(max(names, default=0), WIDEST[0]),
            max((width for width in layers if width <= WIDEST[0]), default=0) - middle,
        )

    def _guide(self, guide: str) -> str:
        """Return the lines before a name; on a narrow terminal two columns a level instead of four."""
        return "".join(f"{guide[i]} " for i in range(0, len(guide), 4)) if self._narrow else guide

    def _short_guide(self, guide: str) -> str:
        """Return the lines before a name, without those of the outer levels where the name would have no room."""
        guide = self._guide(guide)
        if self._terminal is None or not guide or len(guide) + NAME <= self._label:
            return guide
        return f"…{guide[len(guide) - max(self._label - NAME - 1, 2) :]}"

    def _padded(self, facts: tuple[str, ...], widths: list[int]) -> tuple[str, ...]:
        """Return the facts of a tensor or the sums of a layer, padded."""
        if not facts:
            return ()
        columns = zip(facts, "<<>>"[-len(facts) :], widths[-len(facts) :], strict=True)
        *cells, last = (f"  {text:{side}{width}}" for text, side, width in columns)
        return (*(cells if self._values else [*cells[:-1], ""]), f"{last}  ")

    def text(self, row: _Row) -> str:
        """Return the row as a plain line."""
        guide, name, facts, text, remark = row
        if self._terminal is not None or not (name.isascii() and text.isascii()):
            return "".join(self.line(row).cells).rstrip()
        if len(facts) == 4:
            start = f"{guide}{name}".ljust(self._label)
        elif facts:
            start = (f"{guide}{name}  {text}" if text else f"{guide}{name}").ljust(self._to_sums)
        else:
            return f"{f'{guide}{name}'.ljust(self._label)}  {text}"
        return f"{start}{self._joined[facts]}{remark}".rstrip()

    def line(self, row: _Row) -> output.Line:
        """Return the row as cells with styles."""
        if len(row[2]) == 2:
            return self._layer(row)
        guide, name, facts, text, remark = row
        guide = self._short_guide(guide)
        room = self._label - len(guide)
        if self._terminal is not None:
            name = cli_text.elide(name, max(room, NAME))
            remark = cli_text.elide(remark, self._remark)
        taken = cli_text.cell_width(name)
        name += " " * (room - taken)
        if facts:
            return output.Line((guide, name, *self._aligned[facts], remark), (*_TENSOR, _style(remark)))
        if self._terminal is not None:
            text = cli_text.cut(text, max(self._terminal - self._label - 2, LEAST))
        return output.Line((guide, name, f"  {text}"), _SCALAR)

    def _layer(self, row: _Row) -> output.Line:
        """Return the row of a layer as cells with styles."""
        guide, name, facts, text, remark = row
        guide = self._short_guide(guide)
        room = self._to_sums - len(guide)
        if self._terminal is not None:
            remark = cli_text.elide(remark, self._remark)
            most = room if facts[0] else self._terminal - len(guide)
            kept = 0 if guide else len(text) + 2  # of the file itself the format is worth more than its folders
            name = cli_text.elide(name, max(most - kept, 8))
            text = text and cli_text.cut(text, max(most - cli_text.cell_width(name) - 2, 0))
        text = f"  {text}" if text else ""
        text += " " * (room - cli_text.cell_width(name) - cli_text.cell_width(text))
        return output.Line((guide, name, text, *self._aligned[facts], remark), (*_LAYER, _style(remark)))


def _style(remark: str) -> str:
    """Return the style of a remark."""
    return "magenta" if "=" in remark else "dim"
