"""Carry a checkpoint into another format, or a part of it into a file of its own."""

from __future__ import annotations

from dataclasses import replace

from paramctl.changes import Edit
from paramctl.checkpoint import Checkpoint, Entry, Leaf, Param
from paramctl.errors import NoMatch, UsageError
from paramctl.formats import Format
from paramctl.paths import nearest


def convert(checkpoint: Checkpoint, form: Format, *, layer: str | None = None, lossy: bool = False) -> Edit:
    """The checkpoint as `form` can hold it; with `layer`, that subtree with its names from there on.

    Raises UsageError that lists what `form` has no place for, unless `lossy` accepts its loss.
    """
    part = checkpoint if layer is None else subtree(checkpoint, layer)
    if checkpoint.format != form.NAME or layer is not None:
        part = replace(part, document=None)
    lost = form.losses(part)
    if lost and not lossy:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise UsageError(
            f"{form.NAME} cannot hold {shown}",
            hint="accept the loss with --lossy, or take one part with --layer",
        )
    kept = part if not lost else _without(part, form)
    tied = len(kept.tied_to)
    count = f"{len(kept.params):,} tensors" + (f", {tied:,} of them tied," if tied else "") + f" as {form.NAME}"
    notes = (count, *(f"left out: {name}" for name in lost))
    return Edit(replace(kept, format=form.NAME), (), notes=notes)


def subtree(checkpoint: Checkpoint, layer: str) -> Checkpoint:
    """What lies under `layer`, with its names counted from there. Raises NoMatch if nothing does."""
    entries: list[Entry] = []
    for entry in checkpoint.entries:
        if entry.path == layer:
            entries.append(entry._replace(path=layer.rsplit(".", 1)[-1]))
        elif entry.path.startswith(f"{layer}."):
            entries.append(entry._replace(path=entry.path[len(layer) + 1 :]))
    if not entries:
        near = ", ".join(nearest(checkpoint, layer))
        raise NoMatch(f"no layer '{layer}'", hint=f"nearest: {near}" if near else "")
    modules = {
        path[len(layer) + 1 :]: module
        for path, module in checkpoint.modules.items()
        if path == layer or path.startswith(f"{layer}.")
    }
    return replace(checkpoint, entries=tuple(entries), modules=modules, document=None)


def _without(checkpoint: Checkpoint, form: Format) -> Checkpoint:
    """The checkpoint without what the format has no place for."""
    kept: list[Entry] = []
    for entry in checkpoint.entries:
        if isinstance(entry, Leaf) or (isinstance(entry, Param) and not entry.is_plain):
            continue
        kept.append(entry)
    return replace(checkpoint, entries=tuple(kept), document=None)
