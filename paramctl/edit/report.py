"""Define the result of an edit: the new checkpoint, and a report of every param it touched or kept."""

from __future__ import annotations

from typing import NamedTuple

from paramctl.model.checkpoint import Checkpoint


class Change(NamedTuple):
    """A param with new values or a new storage; `also` are the paths tied to it.

    `role` and fans are given for drawn params; they are None for others.
    """

    path: str
    how: str
    role: str | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    also: tuple[str, ...] = ()


class Kept(NamedTuple):
    """A param that was named as part of a layer and was left unchanged."""

    path: str
    why: str


class Edit(NamedTuple):
    """A new checkpoint and its differences; `notes` are for the user."""

    checkpoint: Checkpoint
    changed: tuple[Change, ...]
    kept: tuple[Kept, ...] = ()
    seed: int | None = None
    notes: tuple[str, ...] = ()
