"""Print params in full: what is known of each, and its values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from paramctl.cli import json_text, output, tables
from paramctl.cli import text as cli_text
from paramctl.cli.output import Line
from paramctl.errors import Unsupported
from paramctl.model.checkpoint import dims

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint, Leaf, Param, Quantizer
    from paramctl.model.optimizer_state import Observed
    from paramctl.model.selections.indexing import Index
    from paramctl.values.preview import Preview

    Named = tuple[int | Leaf, Index]

WIDTH = 80  # columns of a row of values where there is no terminal
UNKNOWN = "not recorded"
_RAW = {"quantized": "stored integers", "bits": "raw bits"}


class Page:
    """The lines of the entries of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, full: bool, precision: int) -> None:
        self.checkpoint = checkpoint
        self.full = full
        self.precision = precision
        self.width = output.terminal_width() or WIDTH

    @cached_property
    def about(self) -> Mapping[int, tuple[Observed, ...]]:
        """The gradients and moments stored for each param."""
        from paramctl.model.optimizer_state import observed

        return observed(self.checkpoint)

    @cached_property
    def users(self) -> Counter[str | None]:
        """How many params lie in each storage."""
        return Counter(param.storage for param in self.checkpoint.params)

    def lines(self, named: list[Named]) -> Iterator[Line]:
        """Yield the lines of the entries, with an empty line between entries."""
        for number, (entry, index) in enumerate(named):
            if number:
                yield Line(("",), ("",))
            if isinstance(entry, int):
                yield from self.param(entry, index)
            else:
                yield from self.scalar(entry)

    def scalar(self, leaf: Leaf) -> Iterator[Line]:
        """Yield the lines of an entry that is not a tensor."""
        yield Line((cli_text.escape(leaf.path) or ".",), ("bold",))
        kind = "object" if leaf.is_object else type(leaf.value).__name__
        yield from _fact("kind", "none" if leaf.value is None else kind)
        yield from _fact(
            "value", cli_text.escape(json_text.json_text(leaf.value), None if self.full else cli_text.LIMIT)
        )

    def param(self, at: int, index: Index) -> Iterator[Line]:
        """Yield the lines of a tensor: its facts, its values, and those of its components."""
        from paramctl.model.selections.indexing import index_text

        param = self.checkpoint.params[at]
        title = cli_text.escape(param.path) or "."
        yield Line((f"{title}[{index_text(index)}]" if index else title,), ("bold",))
        for label, text in self.facts(at, param):
            yield from _fact(label, text)
        yield from self.values(param, index)
        for part in param.components:
            yield Line((f"  {cli_text.escape(part.path)}", f"  {_what(part)}"), ("bold", "cyan"))
            yield from self.values(part, ())

    def facts(self, at: int, param: Param) -> Iterator[tuple[str, str]]:
        """Yield the facts of a param, with a label each."""
        yield "kind", param.kind
        yield "dtype", param.dtype.name
        yield "shape", f"{dims(param.shape)}  ({_size(param)})"
        if param.global_shape is not None:
            yield "part of", dims(param.global_shape)
        if param.layout != "strided":
            yield "layout", cli_text.escape(param.layout)
        if stored := stored_elements(param):
            yield "nnz", stored[1]
        if param.quantizer:
            yield "quantizer", _rule(param.quantizer)
        yield "stride", ", ".join(map(str, param.strides)) or "none"
        yield "device", UNKNOWN if param.device is None else cli_text.escape(param.device)
        yield "requires_grad", {None: UNKNOWN, True: "yes", False: "no"}[param.requires_grad]
        layer = param.path.rpartition(".")[0]
        if layer in self.checkpoint.modules:
            yield "layer", cli_text.escape(self.checkpoint.modules[layer].text)
        yield from self.observations(at, param)
        yield from self.sharing(at)

    def observations(self, at: int, param: Param) -> Iterator[tuple[str, str]]:
        """Yield the gradient and the optimizer's moments of a param, with a label each."""
        if param.kind == "optimizer":
            return
        stored = stored_for(self.checkpoint, at, self.about)
        gradients = [self.path(one.at) for one in stored if one.name == "grad"]
        yield "gradient", ", ".join(gradients) or "no gradient stored"
        for one in stored:
            if one.name != "grad":
                assumed = ", assumed: in the model's order" if one.assumed else ""
                yield "optimizer", f"{cli_text.escape(one.name)} ({self.path(one.at)}){assumed}"

    def sharing(self, at: int) -> Iterator[tuple[str, str]]:
        """Yield the params it is tied to, and those that share some of its bytes."""
        from paramctl.model.sharing import group_of, overlapping

        if self.users[self.checkpoint.params[at].storage] < 2:
            return
        tied = [self.path(i) for i in group_of(self.checkpoint, at) if i != at]
        if tied:
            yield "tied to", ", ".join(tied)
        views = [self.path(i) for i in overlapping(self.checkpoint, at)]
        if views:
            yield "overlaps", ", ".join(views)

    def path(self, at: int) -> str:
        """Return a param's path as it is printed."""
        return cli_text.escape(self.checkpoint.params[at].path) or "."

    def values(self, param: Param, index: Index) -> Iterator[Line]:
        """Yield the lines of the values, or the reason why there are none."""
        from paramctl.values.preview import preview, text_lines

        if param.storage is None:
            yield from _fact("values", "in its components:" if param.components else "none are saved in this file")
            return
        try:
            shown = preview(self.checkpoint, param, index, full=self.full)
        except Unsupported as error:
            yield from _fact("values", cli_text.sentence(str(error)))
            return
        yield from _fact("values", self.remark(param, shown))
        for line in text_lines(shown, self.precision, self.width - 2):
            yield Line((f"  {line}",), ("",))

    def remark(self, param: Param, shown: Preview) -> str:
        """Return the remark above the values."""
        words = [_RAW[param.dtype.category]] if param.dtype.category in _RAW and not param.quantizer else []
        if not shown.is_whole and 0 not in shown.shape:
            words.append("edges only" if not self.full else "they repeat (stride 0): edges only")
        if shown.checked is False:
            words.append("partial read: checksum not verified")
        if not shown.is_whole and 0 not in shown.shape and not self.full:
            words.append("--full for all")
        return ", ".join(words)


def stored_for(checkpoint: Checkpoint, at: int, about: Mapping[int, tuple[Observed, ...]]) -> tuple[Observed, ...]:
    """Return the gradient and moments of a param; those it lacks may be stored for the first of its ties."""
    own = about.get(at, ())
    names = {one.name for one in own}
    leader = checkpoint.tied_to.get(at, at)
    return (*own, *(one for one in about.get(leader, ()) if one.name not in names))


def stored_elements(param: Param) -> tuple[int, str] | None:
    """Return how many elements, rows or blocks a sparse tensor stores, as a number and in words; else None."""
    if not param.layout.startswith("sparse_") or not param.components:
        return None
    values = param.components[-1].shape
    dense = len(values) - (3 if param.layout in ("sparse_bsr", "sparse_bsc") else 1)
    nnz = values[0] if values else 0
    each = "" if len(values) < 2 else f" of {dims(values[1:])}"
    if param.layout in ("sparse_bsr", "sparse_bsc"):
        return nnz, f"{cli_text.counted(nnz, 'block')}{each}"
    return nnz, cli_text.counted(nnz, "row" if dense else "value") + each


def _fact(label: str, text: str) -> Iterator[Line]:
    """Yield the lines of a fact."""
    for number, part in enumerate(tables.wrapped(text, 17) or [""]):
        yield Line((f"  {'' if number else label:<15}", part), ("dim", "dim" if label == "values" else ""))


def _rule(quantizer: Quantizer) -> str:
    """Return how stored integers become values, in a few words."""
    if quantizer.scale is None:
        return f"{quantizer.scheme}, axis {quantizer.axis}"
    return f"{quantizer.scheme}, scale {quantizer.scale!r}, zero point {quantizer.zero_point}"


def _what(part: Param) -> str:
    """Return dtype and shape, in words."""
    return f"{part.dtype.name}  {dims(part.shape)}"


def _size(param: Param) -> str:
    """Return the numbers of values and bytes, in words."""
    return f"{cli_text.counted(param.numel, 'value')}, {cli_text.human_bytes(param.nbytes)}"
