"""Carry a checkpoint into another format, or a part of it into a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from paramctl.edit.report import Edit
from paramctl.errors import UsageError, some
from paramctl.formats.protocol import AnyFormat
from paramctl.formats.sets import shard_division, sharded
from paramctl.formats.sets.shard_division import Division
from paramctl.model.checkpoint import Checkpoint, Loss, Param, Storage
from paramctl.model.keys import below
from paramctl.model.selection import layer_members
from paramctl.model.sharing import overlaps


def convert(
    checkpoint: Checkpoint,
    form: AnyFormat,
    *,
    layer: str | None = None,
    lossy: bool = False,
    division: Division | None = None,
) -> Edit:
    """The checkpoint as `form` can hold it; with `layer`, that subtree with its names from there on.

    `division` says how it becomes a set of shards. Raises UsageError that lists what `form` has no place
    for, unless `lossy` accepts its loss.
    """
    part, notes = (checkpoint, ()) if layer is None else subtree(checkpoint, layer)
    if checkpoint.format != form.NAME or layer is not None or division is not None:
        part = replace(part, document=division)
    lost = form.losses(part)
    if lost and not lossy:
        raise UsageError(
            f"{form.NAME} cannot hold {some([loss.text for loss in lost])}",
            hint="accept the loss with --lossy, or take one part with --layer",
        )
    kept = replace(_without(part, lost, division) if lost else part, format=form.NAME)
    kept, untied = (kept, ()) if form.KEEPS_TIES else _untied(kept)
    unique = len(kept.params) - len(kept.tied_to)
    count = f"{len(kept.params):,} tensor{'s' * (len(kept.params) != 1)}"
    count += f" ({unique:,} unique)" if kept.tied_to else ""
    texts = [f"{name} (metadata)" for name in checkpoint.metadata if name != "format"]
    dropped = [[loss.text for loss in lost], [] if _keeps_texts(checkpoint, form, division) else texts]
    left = tuple(f"left out {some(what)}" for what in dropped if what)
    told = (f"{count} {_as(kept, form, division)}", *untied, *_parted(kept), *_too_large(kept, division), *left)
    return Edit(kept, (), notes=(*notes, *told))


def _too_large(kept: Checkpoint, division: Division | None) -> Iterator[str]:
    """A note where a tensor alone is larger than a shard may be."""
    large = [param.path or "." for param in kept.params if division and param.nbytes > division.limit]
    if large:
        yield f"{some(large)} {'are' if len(large) > 1 else 'is'} larger than that, and no tensor is parted"


def _as(kept: Checkpoint, form: AnyFormat, division: Division | None) -> str:
    if division is None:
        return f"as {form.NAME}"
    n = len(kept.derived(shard_division.divided).shards)
    return f"in {n:,} {division.form} file{'s' * (n != 1)} and an index"


def _keeps_texts(checkpoint: Checkpoint, form: AnyFormat, division: Division | None) -> bool:
    """Whether what is written holds the file's own notes: only safetensors files have a place for them."""
    made = division.form if division else form.NAME
    return checkpoint.format == made or (checkpoint.format, made) == (sharded.NAME, shard_division.SAFETENSORS)


def _untied(checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint for a format that knows no ties, and saves each of them in full as torch does; a note says so."""
    if not checkpoint.tied_to:
        return checkpoint, ()
    taken = set(checkpoint.storages)
    params: dict[int, Param] = {}
    storages: dict[str, Storage] = {}
    for i in checkpoint.tied_to:
        param = checkpoint.params[i]
        key = f"{param.storage}'"
        while key in taken:
            key += "'"
        taken.add(key)
        params[i], storages[key] = param._replace(storage=key), checkpoint.storages[str(param.storage)]
    names, one = some([checkpoint.labels[i] for i in checkpoint.tied_to]), len(checkpoint.tied_to) == 1
    note = f"{names} {'was tied, and has bytes of its' if one else 'were tied, and have bytes of their'} own now"
    return checkpoint.with_params(params).with_storages(storages), (note,)


def _parted(checkpoint: Checkpoint) -> Iterator[str]:
    """A note where params that share only some of their bytes are written one after the other."""
    sharing = [checkpoint.labels[i] for group in overlaps(checkpoint) for i in group]
    if sharing and (checkpoint.document is None or isinstance(checkpoint.document, Division)):
        yield f"{some(sharing)} overlapped, and have bytes of their own now"


def subtree(checkpoint: Checkpoint, layer: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """What lies under `layer`, with its names counted from there, and a note where that is not its full path.

    A single param keeps its last name. Raises NoMatch if nothing is there.
    """
    single: Param | None = None
    path = layer
    if not any(entry.path == layer or entry.path.startswith(f"{layer}.") for entry in checkpoint.entries):
        name, at = layer_members(checkpoint, layer)[0]
        single = None if name else checkpoint.params[at]
        path = checkpoint.params[at].path.removesuffix(f".{name}") if name else checkpoint.params[at].path
    start = f"{path}."
    inside = (entry for entry in checkpoint.entries if entry.path == path or entry.path.startswith(start))
    entries = tuple(
        entry._replace(path=path.rsplit(".", 1)[-1] if entry.path == path else entry.path[len(start) :])
        for entry in inside
        if single is None or entry is single
    )
    modules = {
        name[len(start) :]: module
        for name, module in checkpoint.modules.items()
        if name == path or name.startswith(start)
    }
    keys = {
        name[len(start) :]: below(found, path) for name, found in checkpoint.keys.items() if name.startswith(start)
    }
    notes = (f"selected '{path}'",) if path != layer else ()
    return replace(checkpoint, entries=entries, modules=modules, keys=keys, document=None), notes


def _without(checkpoint: Checkpoint, lost: Iterable[Loss], division: Division | None) -> Checkpoint:
    """The checkpoint without what is lost, and so without what only fits the whole of it."""
    gone = {id(loss.entry) for loss in lost}
    return replace(checkpoint, entries=tuple(e for e in checkpoint.entries if id(e) not in gone), document=division)
