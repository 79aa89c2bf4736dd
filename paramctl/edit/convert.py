"""Convert a checkpoint to another format, or take a part of it into a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from paramctl.edit.report import Edit
from paramctl.errors import UsageError, some
from paramctl.formats import registry
from paramctl.formats.protocol import AnyFormat
from paramctl.formats.sets import shard_division
from paramctl.formats.sets.shard_division import Division
from paramctl.model.checkpoint import Checkpoint, Entry, Loss, Param, Storage
from paramctl.model.keys import below
from paramctl.model.selections.selection import is_pattern, layer_members, select
from paramctl.model.sharing import overlaps


def convert(
    checkpoint: Checkpoint,
    form: AnyFormat,
    *,
    layer: str | None = None,
    lossy: bool = False,
    division: Division | None = None,
) -> Edit:
    """Return the checkpoint as `form` can hold it; with `layer`, only that subtree, named from there on.

    `division` describes the shards of a set. Raises UsageError with a list of what `form` cannot hold, unless `lossy`
    accepts the loss.
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
    dropped = [[loss.text for loss in lost], [] if _keeps_metadata(form, division) else texts]
    left = tuple(f"left out {some(what)}" for what in dropped if what)
    told = (
        f"{count} {_written_as(kept, form, division)}",
        *untied,
        *_overlap_note(kept),
        *_too_large_note(kept, division),
        *left,
    )
    return Edit(kept, (), notes=(*notes, *told))


def _too_large_note(kept: Checkpoint, division: Division | None) -> Iterator[str]:
    """Yield a note if a single tensor is larger than a shard may be."""
    large = [param.path or "." for param in kept.params if division and param.nbytes > division.limit]
    if large:
        yield f"{some(large)} {'are' if len(large) > 1 else 'is'} larger than that: tensors are never split"


def _written_as(kept: Checkpoint, form: AnyFormat, division: Division | None) -> str:
    """Return the words for the new format."""
    if division is None:
        return f"as {form.NAME}"
    n = len(kept.derived(shard_division.divided).shards)
    return f"in {n:,} {division.form} file{'s' * (n != 1)} and an index"


def _keeps_metadata(form: AnyFormat, division: Division | None) -> bool:
    """Return whether the output has a place for the file's metadata."""
    return (registry.named(division.form) if division else form).KEEPS_METADATA


def _untied(checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the checkpoint without ties, for a format that has none, and a note on the tensors that were tied."""
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


def _overlap_note(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note if params that share some of their bytes are written separately."""
    sharing = [checkpoint.labels[i] for group in overlaps(checkpoint) for i in group]
    if sharing and (checkpoint.document is None or isinstance(checkpoint.document, Division)):
        yield f"{some(sharing)} overlapped, and have bytes of their own now"


def subtree(checkpoint: Checkpoint, layer: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the entries under `layer`, named from there on, and a note if `layer` is not their full path.

    A single param keeps its last name. A pattern, or `!` and a selection, keeps the params that it names under their
    full paths; `!` keeps other entries as well. Raises NoMatch if nothing is there.
    """
    is_there = any(entry.path == layer or entry.path.startswith(f"{layer}.") for entry in checkpoint.entries)
    if not is_there and (layer.startswith("!") or is_pattern(layer)):
        return _selected(checkpoint, layer), ()
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
    keys = {name[len(start) :]: below(found, path) for name, found in checkpoint.keys.items() if name.startswith(start)}
    notes = (f"selected '{path}'",) if path != layer else ()
    return replace(checkpoint, entries=entries, modules=modules, keys=keys, document=None), notes


def _selected(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    """Return the checkpoint with the params that a pattern names, and with `!` also entries elsewhere."""
    chosen = {id(checkpoint.params[i]) for i in select(checkpoint, [pattern]).indices}
    away = pattern.removeprefix("!")

    def is_kept(entry: Entry) -> bool:
        """Return whether an entry is left."""
        if isinstance(entry, Param):
            return id(entry) in chosen
        return away != pattern and entry.path != away and not entry.path.startswith(f"{away}.")

    return replace(checkpoint, entries=tuple(filter(is_kept, checkpoint.entries)), document=None)


def _without(checkpoint: Checkpoint, lost: Iterable[Loss], division: Division | None) -> Checkpoint:
    """Return the checkpoint without the lost entries."""
    gone = {id(loss.entry) for loss in lost}
    return replace(checkpoint, entries=tuple(e for e in checkpoint.entries if id(e) not in gone), document=division)
