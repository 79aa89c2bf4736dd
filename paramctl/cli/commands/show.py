"""`paramctl show`: one or a few params in full, with their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import json_text, output
from paramctl.cli import text as cli_text
from paramctl.cli.options import Color, Force, Json, complete_path, one_of, opened
from paramctl.cli.output import Line
from paramctl.errors import NoMatch, Unsupported, UsageError
from paramctl.model.checkpoint import dims

if TYPE_CHECKING:
    from paramctl.files.file_writer import Target
    from paramctl.model.checkpoint import Checkpoint, Leaf, Param, Quantizer
    from paramctl.model.indexing import Index
    from paramctl.model.optimizer_state import Observed
    from paramctl.values.preview import Preview

    Named = tuple[int | Leaf, Index]

WIDTH = 80  # columns of a row of values where there is no terminal
UNKNOWN = "not recorded"


def show(
    file: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="The checkpoint; '-' is standard input.")
    ],
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH[INDEX]...",
            show_default=False,
            autocompletion=complete_path,
            help="A path, a layer or positions ('[0][1].bias'), perhaps with an index ('0.weight[0,:5]').",
        ),
    ],
    full: Annotated[bool, typer.Option("--full", help="Print every value, however many there are.")] = False,
    precision: Annotated[
        int, typer.Option("--precision", "-p", min=0, max=20, metavar="N", help="Digits behind the point.")
    ] = 4,
    as_json: Json = False,
    npy: Annotated[bool, typer.Option("--npy", help="Write one tensor as a .npy file.")] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, help="Where --npy writes; '-': to the pipe."
        ),
    ] = None,
    force: Force = False,
    color: Color = "auto",
) -> None:
    """Show parameters in full: what they are, and their values.

    Of more than 1,000 values the edges are printed, and only those are read. A layer shows everything
    in it. An index is numpy's: '0.weight[0]', '0.weight[:2, -1]', '0.weight[..., ::2]'.

    \b
    Examples:
      paramctl show model.pt 2.bias
      paramctl show model.pt '0.weight[0, :5]' '[0][1].bias'
      paramctl show model.pt 2.bias --npy -o bias.npy
      paramctl show model.pt 2.bias --json | jq .tensors[0].values
    """
    one_of({"--json": as_json, "--npy": npy})
    if not npy and (out is not None or force):
        raise UsageError("-o and -f go with --npy", hint="add --npy, or use '>' for text")
    with opened(file) as checkpoint:
        named = [one for text in paths for one in _named(checkpoint, text)]
        _check(checkpoint, named)
        if npy:
            _save(checkpoint, named, out, force)
        elif as_json:
            output.json(_document(checkpoint, named, full))
        else:
            output.listing(_Page(checkpoint, full, precision).lines(named), color)


def _named(checkpoint: Checkpoint, text: str) -> list[Named]:
    """What a PATH[INDEX] names: params, or scalars where there are none."""
    from paramctl.model.selection import readings, select
    from paramctl.model.suggestions import no_match

    if exact := _exactly_named(checkpoint, text):
        return [exact]
    path = text
    for path, index in readings(text):
        if not path:
            break
        try:
            return [(i, index) for i in select(checkpoint, [path], alike=True).indices]
        except NoMatch as error:
            failure = error
            scalars = _scalars(checkpoint, path)
        if scalars and not index:
            return [(leaf, ()) for leaf in scalars]
    raise failure if path else no_match(checkpoint, text)


def _exactly_named(checkpoint: Checkpoint, text: str) -> Named | None:
    """The one entry whose name looks like something else, such as `@names[0]`, or is empty, as a bare tensor's is."""
    from paramctl.model.selection import find, find_part

    if not text:
        try:
            return find(checkpoint, text), ()
        except NoMatch:
            what = "the empty path names a tensor that has no name, and this file has none"
            raise NoMatch(what, hint="'paramctl ls' lists what it has") from None
    if text.startswith(("@", "!", "re:")):
        with suppress(NoMatch, UsageError):
            entry, index = find_part(checkpoint, text)
            return (entry, index) if isinstance(entry, int) or not index else None
    return None


def _scalars(checkpoint: Checkpoint, path: str) -> list[Leaf]:
    """The scalar of that path or position, or those in that layer."""
    from paramctl.model.checkpoint import Leaf
    from paramctl.model.selection import find

    try:
        found = find(checkpoint, path)
        return [found] if isinstance(found, Leaf) else []
    except NoMatch:
        leaves = (entry for entry in checkpoint.entries if isinstance(entry, Leaf))
        return [leaf for leaf in leaves if leaf.path.startswith(f"{path}.")]


def _check(checkpoint: Checkpoint, named: list[Named]) -> None:
    """Raise UsageError, before anything is printed, for an index that does not fit."""
    from paramctl.model.indexing import check_index

    for entry, index in named:
        if isinstance(entry, int):
            param = checkpoint.params[entry]
            if index and -1 in param.shape:
                raise UsageError(f"{param.path} is ragged (nested), and an index has no meaning for it")
            if index and param.storage is None and param.components:
                what = f"{param.path} is {param.layout}, and an index has no meaning for its parts"
                raise UsageError(what, hint="show it whole")
            check_index(index, param.shape, param.path)


# --- .npy --------------------------------------------------------------------------------------


def _save(checkpoint: Checkpoint, named: list[Named], out: str | None, force: bool) -> None:
    from paramctl.files.file_writer import NewFile, Stream
    from paramctl.values import npy

    entry, index = named[0]
    if len(named) > 1 or not isinstance(entry, int):
        what = f"{len(named)} entries were named" if len(named) > 1 else "a scalar was named"
        raise UsageError(f"a .npy file holds one tensor, and {what}", hint="name one tensor")
    param = checkpoint.params[entry]
    if param.storage is None and param.components:
        what = f"{param.path or '.'} is a {param.layout} tensor, and a .npy file holds a plain one"
        raise UsageError(what, hint="--json has all its parts")
    target: Target
    if out in (None, "-"):
        if output.stdout_is_terminal():
            raise UsageError("a .npy file is not for a terminal", hint="add -o FILE, or a pipe")
        target = Stream(output.take_over())
    else:
        target = NewFile(Path(str(out)), force)
    if param.quantizer:
        _save_dequantized(checkpoint, param, index, target)
    elif (dtype := npy.save(checkpoint, param, index, target)) != param.dtype.name:
        output.note(f"numpy has no {param.dtype.name}: written as {dtype}, which holds every value of it")
    if index and checkpoint.storages[str(param.storage)].crc32 is not None:
        output.note("partial read: checksum not verified")


def _save_dequantized(checkpoint: Checkpoint, param: Param, index: Index, target: Target) -> None:
    from paramctl.values import npy
    from paramctl.values.quantized import as_float32, narrowed

    if not index:
        checkpoint.storages[str(param.storage)].check(str(param.storage))
    npy.save(*as_float32(checkpoint, narrowed(param, index)), (), target)
    output.note(f"numpy has no {param.dtype.name}: written dequantized, as float32, which is what torch makes of it")


# --- JSON --------------------------------------------------------------------------------------


def _document(checkpoint: Checkpoint, named: list[Named], full: bool) -> dict[str, object]:
    from paramctl.model.optimizer_state import observed

    about = observed(checkpoint)
    scalars = [{"path": e.path, "value": e.value} for e, _ in named if not isinstance(e, int)]
    tensors = [_object(checkpoint, e, index, full, about) for e, index in named if isinstance(e, int)]
    document: dict[str, object] = {"schema": 1, "file": checkpoint.file, "tensors": tensors}
    return {**document, "scalars": scalars} if scalars else document


def _object(
    checkpoint: Checkpoint, at: int, index: Index, full: bool, about: Mapping[int, tuple[Observed, ...]]
) -> dict[str, object]:
    from paramctl.model.indexing import index_text

    param = checkpoint.params[at]
    leader = checkpoint.tied_to.get(at)
    stored = {one.name: checkpoint.params[one.at].path for one in _stored_for(checkpoint, at, about)}
    found = {
        **json_text.tensor_object(param, None if leader is None else checkpoint.params[leader].path),
        "requires_grad": param.requires_grad,
        "stride": list(param.strides),
        "device": param.device,
        "grad": stored.pop("grad", None),
        "moments": stored,
        "index": index_text(index) if index else None,
        **_json_values(checkpoint, param, index, full),
    }
    if nnz := _stored_elements(param):
        found["nnz"] = nnz[0]
    if param.quantizer:
        found["quantizer"] = param.quantizer._asdict()
    if param.components:
        parts = ((part, _json_values(checkpoint, part, (), full)) for part in param.components)
        found["components"] = [{**json_text.tensor_object(part, None), **values} for part, values in parts]
    return found


def _json_values(checkpoint: Checkpoint, param: Param, index: Index, full: bool) -> dict[str, object]:
    from paramctl.values.preview import nested, preview

    if param.storage is None:
        return {"values": None, "preview": None}
    shown = preview(checkpoint, param, index, full=full)
    if shown.is_whole:
        return {"values": nested(shown), "preview": None}
    return {"values": None, "preview": nested(shown)}


# --- text --------------------------------------------------------------------------------------


class _Page:
    """Says of each entry what is known, as lines."""

    def __init__(self, checkpoint: Checkpoint, full: bool, precision: int) -> None:
        self.checkpoint = checkpoint
        self.full = full
        self.precision = precision
        self.width = output.terminal_width() or WIDTH

    @cached_property
    def about(self) -> Mapping[int, tuple[Observed, ...]]:
        """The gradients and moments that are stored for each param."""
        from paramctl.model.optimizer_state import observed

        return observed(self.checkpoint)

    @cached_property
    def users(self) -> Counter[str | None]:
        """How many params lie in each storage."""
        return Counter(param.storage for param in self.checkpoint.params)

    def lines(self, named: list[Named]) -> Iterator[Line]:
        """The entries one after the other, an empty line between them."""
        for number, (entry, index) in enumerate(named):
            if number:
                yield Line(("",), ("",))
            if isinstance(entry, int):
                yield from self.param(entry, index)
            else:
                yield from self.scalar(entry)

    def scalar(self, leaf: Leaf) -> Iterator[Line]:
        """The lines of an entry that is no tensor."""
        yield Line((cli_text.escape(leaf.path) or ".",), ("bold",))
        kind = "object" if leaf.is_object else type(leaf.value).__name__
        yield _fact("kind", "none" if leaf.value is None else kind)
        yield _fact("value", cli_text.escape(json_text.json_text(leaf.value), None if self.full else cli_text.LIMIT))

    def param(self, at: int, index: Index) -> Iterator[Line]:
        """The lines of a tensor: what is known of it, its values, and those of its components."""
        from paramctl.model.indexing import index_text

        param = self.checkpoint.params[at]
        title = cli_text.escape(param.path) or "."
        yield Line((f"{title}[{index_text(index)}]" if index else title,), ("bold",))
        for label, text in self.facts(at, param):
            yield _fact(label, text)
        yield from self.values(param, index)
        for part in param.components:
            yield Line((f"  {cli_text.escape(part.path)}", f"  {_what(part)}"), ("bold", "cyan"))
            yield from self.values(part, ())

    def facts(self, at: int, param: Param) -> Iterator[tuple[str, str]]:
        """What is known of a param besides its values."""
        yield "kind", param.kind
        yield "dtype", param.dtype.name
        yield "shape", f"{dims(param.shape)}  ({_size(param)})"
        if param.layout != "strided":
            yield "layout", cli_text.escape(param.layout)
        if stored := _stored_elements(param):
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
        """What is stored for a param beside it: its gradient, and what an optimizer remembers."""
        if param.kind == "optimizer":
            return
        stored = _stored_for(self.checkpoint, at, self.about)
        gradients = [self.path(one.at) for one in stored if one.name == "grad"]
        yield "gradient", ", ".join(gradients) or "no gradient stored"
        for one in stored:
            if one.name != "grad":
                yield "optimizer", f"{cli_text.escape(one.name)} ({self.path(one.at)})"

    def sharing(self, at: int) -> Iterator[tuple[str, str]]:
        """The params it is tied to, and those that merely share some of its bytes."""
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
        """A param's path as it is printed."""
        return cli_text.escape(self.checkpoint.params[at].path) or "."

    def values(self, param: Param, index: Index) -> Iterator[Line]:
        """The values, or why there are none to print."""
        from paramctl.values.preview import preview, text_lines

        if param.storage is None:
            yield _fact("values", "in its components:" if param.components else "none are saved in this file")
            return
        try:
            shown = preview(self.checkpoint, param, index, full=self.full)
        except Unsupported as error:
            yield _fact("values", cli_text.sentence(str(error)))
            return
        yield _fact("values", self.remark(param, shown))
        for line in text_lines(shown, self.precision, self.width - 2):
            yield Line((f"  {line}",), ("",))

    def remark(self, param: Param, shown: Preview) -> str:
        """What to know before reading the values."""
        words = [_RAW[param.dtype.category]] if param.dtype.category in _RAW and not param.quantizer else []
        if not shown.is_whole:
            words.append("edges only" if not self.full else "they repeat (stride 0): edges only")
        if shown.checked is False:
            words.append("partial read: checksum not verified")
        if not shown.is_whole and not self.full:
            words.append("--full for all")
        return ", ".join(words)


_RAW = {"quantized": "stored integers", "bits": "raw bits"}


def _stored_for(
    checkpoint: Checkpoint, at: int, about: Mapping[int, tuple[Observed, ...]]
) -> tuple[Observed, ...]:
    """What is stored about a param; for a tied one, what it lacks may be kept with the first of its group."""
    own = about.get(at, ())
    names = {one.name for one in own}
    leader = checkpoint.tied_to.get(at, at)
    return (*own, *(one for one in about.get(leader, ()) if one.name not in names))


def _fact(label: str, text: str) -> Line:
    return Line((f"  {label:<15}", text), ("dim", "dim" if label == "values" else ""))


def _rule(quantizer: Quantizer) -> str:
    """How stored integers become values, in a few words."""
    if quantizer.scale is None:
        return f"{quantizer.scheme}, axis {quantizer.axis}"
    return f"{quantizer.scheme}, scale {quantizer.scale!r}, zero point {quantizer.zero_point}"


def _stored_elements(param: Param) -> tuple[int, str] | None:
    """How many elements, rows or blocks a sparse tensor stores, as torch counts them, and in words; else None."""
    if not param.layout.startswith("sparse_") or not param.components:
        return None
    values = param.components[-1].shape
    dense = len(values) - (3 if param.layout in ("sparse_bsr", "sparse_bsc") else 1)
    nnz = values[0] if values else 0
    each = "" if len(values) < 2 else f" of {dims(values[1:])}"
    if param.layout in ("sparse_bsr", "sparse_bsc"):
        return nnz, f"{cli_text.counted(nnz, 'block')}{each}"
    return nnz, cli_text.counted(nnz, "row" if dense else "value") + each


def _what(part: Param) -> str:
    return f"{part.dtype.name}  {dims(part.shape)}"


def _size(param: Param) -> str:
    return f"{cli_text.counted(param.numel, 'value')}, {cli_text.human_bytes(param.nbytes)}"
