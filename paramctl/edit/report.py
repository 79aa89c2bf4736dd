"""What a verb did: the checkpoint it made, and a report of every param it touched or left alone."""

from __future__ import annotations

from typing import NamedTuple

from paramctl.model.checkpoint import Checkpoint


class Change(NamedTuple):
    """One param that has new values or a new storage. `also` are the paths tied to it.

    A `role` and fans are said of what was drawn; they are None where there are none.
    """

    path: str
    how: str
    role: str | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    also: tuple[str, ...] = ()


class Kept(NamedTuple):
    """A param that was named, but only as part of a layer, and was left as it is."""

    path: str
    why: str


class Edit(NamedTuple):
    """A new checkpoint and how it differs; `notes` are what a person should know about it."""

    checkpoint: Checkpoint
    changed: tuple[Change, ...]
    kept: tuple[Kept, ...] = ()
    seed: int | None = None
    notes: tuple[str, ...] = ()


