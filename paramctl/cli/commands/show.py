"""`paramctl show`: show params in full, with their values."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import json_text, output
from paramctl.cli.completion import complete_path
from paramctl.cli.options import Color, Force, Json, check_exclusive, open_checkpoint
from paramctl.cli.show_text import Page, stored_elements, stored_for
from paramctl.errors import NoMatch, UsageError

if TYPE_CHECKING:
    from paramctl.cli.show_text import Named
    from paramctl.files.file_writer import Target
    from paramctl.model.checkpoint import Checkpoint, Leaf, Param
    from paramctl.model.optimizer_state import Observed
    from paramctl.model.selections.indexing import Index


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
    check_exclusive({"--json": as_json, "--npy": npy})
    if not npy and (out is not None or force):
        raise UsageError("-o and -f go with --npy", hint="add --npy, or use '>' for text")
    with open_checkpoint(file) as checkpoint:
        named = [one for text in paths for one in _named(checkpoint, text)]
        _check(checkpoint, named)
        if npy:
            _save(checkpoint, named, out, force)
        elif as_json:
            output.json(_document(checkpoint, named, full))
        else:
            output.listing(Page(checkpoint, full, precision).lines(named), color)


def _named(checkpoint: Checkpoint, text: str) -> list[Named]:
    """Return what PATH[INDEX] names: params, or scalars if there are no params."""
    from paramctl.model.selections.selection import readings, select
    from paramctl.model.selections.suggestions import no_match

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
    """Return the entry whose name looks like a pattern, such as `@names[0]`, or is empty, as a bare tensor's is."""
    from paramctl.model.selections.selection import find, find_part

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
    """Return the scalar of that path or position, or those in that layer."""
    from paramctl.model.checkpoint import Leaf
    from paramctl.model.selections.selection import find

    try:
        found = find(checkpoint, path)
        return [found] if isinstance(found, Leaf) else []
    except NoMatch:
        leaves = (entry for entry in checkpoint.entries if isinstance(entry, Leaf))
        return [leaf for leaf in leaves if leaf.path.startswith(f"{path}.")]


def _check(checkpoint: Checkpoint, named: list[Named]) -> None:
    """Raise UsageError, before anything is printed, for an index that does not fit."""
    from paramctl.model.selections.indexing import check_index

    for entry, index in named:
        if isinstance(entry, int):
            param = checkpoint.params[entry]
            if index and -1 in param.shape:
                raise UsageError(f"{param.path} is ragged (nested), and an index has no meaning for it")
            if index and param.storage is None and param.components:
                what = f"{param.path} is {param.layout}, and an index has no meaning for its parts"
                raise UsageError(what, hint="show it whole")
            check_index(index, param.shape, param.path)


def _save(checkpoint: Checkpoint, named: list[Named], out: str | None, force: bool) -> None:
    """Write one tensor as a .npy file."""
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
    """Write a quantised tensor as a .npy file of float32."""
    from paramctl.values import npy
    from paramctl.values.quantized import as_float32, narrowed

    if not index:
        checkpoint.storages[str(param.storage)].check(str(param.storage))
    npy.save(*as_float32(checkpoint, narrowed(param, index)), (), target)
    output.note(f"numpy has no {param.dtype.name}: written dequantized, as float32, which is what torch makes of it")


def _document(checkpoint: Checkpoint, named: list[Named], full: bool) -> dict[str, object]:
    """Return the JSON document."""
    from paramctl.model.optimizer_state import observed

    about = observed(checkpoint)
    scalars = [{"path": e.path, "value": e.value} for e, _ in named if not isinstance(e, int)]
    tensors = [_object(checkpoint, e, index, full, about) for e, index in named if isinstance(e, int)]
    document: dict[str, object] = {"schema": 1, "file": checkpoint.file, "tensors": tensors}
    return {**document, "scalars": scalars} if scalars else document


def _object(
    checkpoint: Checkpoint, at: int, index: Index, full: bool, about: Mapping[int, tuple[Observed, ...]]
) -> dict[str, object]:
    """Return the JSON object of a tensor."""
    from paramctl.model.selections.indexing import index_text

    param = checkpoint.params[at]
    leader = checkpoint.tied_to.get(at)
    known = stored_for(checkpoint, at, about)
    stored = {one.name: checkpoint.params[one.at].path for one in known}
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
    if any(one.assumed for one in known):
        found["moments_assumed"] = True  # in the model's order: other params have the same shape
    if nnz := stored_elements(param):
        found["nnz"] = nnz[0]
    if param.quantizer:
        found["quantizer"] = param.quantizer._asdict()
    if param.components:
        parts = ((part, _json_values(checkpoint, part, (), full)) for part in param.components)
        found["components"] = [{**json_text.tensor_object(part, None), **values} for part, values in parts]
    return found


def _json_values(checkpoint: Checkpoint, param: Param, index: Index, full: bool) -> dict[str, object]:
    """Return the values of a tensor, or those at its edges, as JSON has them."""
    from paramctl.values.preview import nested, preview

    if param.storage is None:
        return {"values": None, "preview": None}
    shown = preview(checkpoint, param, index, full=full)
    if shown.is_whole:
        return {"values": nested(shown), "preview": None}
    return {"values": None, "preview": nested(shown)}
