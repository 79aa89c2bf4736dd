"""Carry a checkpoint into another format, or a part of it into a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from paramctl.changes import Edit
from paramctl.checkpoint import Checkpoint, Loss, Param
from paramctl.errors import UsageError, some
from paramctl.formats import Format
from paramctl.paths import layer_members
from paramctl.ties import overlaps


def convert(checkpoint: Checkpoint, form: Format, *, layer: str | None = None, lossy: bool = False) -> Edit:
    """The checkpoint as `form` can hold it; with `layer`, that subtree with its names from there on.

    Raises UsageError that lists what `form` has no place for, unless `lossy` accepts its loss.
    """
    part, notes = (checkpoint, ()) if layer is None else subtree(checkpoint, layer)
    if checkpoint.format != form.NAME or layer is not None:
        part = replace(part, document=None)
    lost = form.losses(part)
    if lost and not lossy:
        raise UsageError(
            f"{form.NAME} cannot hold {some([loss.text for loss in lost])}",
            hint="accept the loss with --lossy, or take one part with --layer",
        )
    kept = replace(_without(part, lost) if lost else part, format=form.NAME)
    unique = len(kept.params) - len(kept.tied_to)
    count = f"{len(kept.params):,} tensor{'s' * (len(kept.params) != 1)}"
    count += f" ({unique:,} unique)" if kept.tied_to else ""
    texts = [f"{name} (metadata)" for name in checkpoint.metadata if name != "format"]
    dropped = [[loss.text for loss in lost], texts if checkpoint.format != form.NAME else []]
    left = tuple(f"left out {some(what)}" for what in dropped if what)
    return Edit(kept, (), notes=(*notes, f"{count} as {form.NAME}", *_parted(kept), *left))


def _parted(checkpoint: Checkpoint) -> Iterator[str]:
    """A note where params that share only some of their bytes are written one after the other."""
    sharing = [checkpoint.labels[i] for group in overlaps(checkpoint) for i in group]
    if sharing and checkpoint.document is None:
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
    notes = (f"selected '{path}'",) if path != layer else ()
    return replace(checkpoint, entries=entries, modules=modules, document=None), notes


def _without(checkpoint: Checkpoint, lost: Iterable[Loss]) -> Checkpoint:
    """The checkpoint without what is lost, and so without what only fits the whole of it."""
    gone = {id(loss.entry) for loss in lost}
    return replace(checkpoint, entries=tuple(e for e in checkpoint.entries if id(e) not in gone), document=None)
