"""Put the checkpoints of a training run in order and see what is selected in them, from their headers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Literal, NamedTuple

from paramctl.errors import NoMatch, UsageError
from paramctl.model.checkpoint import Checkpoint, Leaf, blamed, natural_key
from paramctl.stats.followed_params import Followed

Order = Literal["auto", "step", "name", "given"]
Open = Callable[[str], Checkpoint]

STEP_NAMES = (
    "step",
    "global_step",
    "iteration",
    "iter_num",
    "epoch",
)  # what a checkpoint calls its own place in the run


class RunFile(NamedTuple):
    """One checkpoint of a run: its file, and the step stored in it, or None."""

    file: str
    step: int | float | None


class Run(NamedTuple):
    """The checkpoints of a training run, in order.

    `order` tells how they are ordered: `given`, `name`, or the name under which the checkpoints store their step.
    `moments` are the names of the optimizers' moments of the selected params; `under` is the path of the model
    inside, if a selection matched only there. `params` is the largest number of selected params in a checkpoint,
    tied ones counted once; `skipped` are the paths of selected params that are left out as not learnable.
    """

    run_files: tuple[RunFile, ...]
    order: str
    moments: tuple[str, ...]
    params: int
    under: str = ""
    skipped: tuple[str, ...] = ()


def survey(files: Sequence[str], selections: Sequence[str], open: Open, order: Order = "auto") -> Run:
    """Read the headers of all files, one after the other, and return their order and what they hold.

    The files are ordered by the steps stored in them if each has one and all differ, else by name, with numbers
    in names compared as numbers. Raises NoMatch if the selections match in no file, UsageError if `order` is
    `step` and there are no such steps.
    """
    step_numbers: list[dict[str, int | float]] = []
    moments: set[str] = set()
    unders: list[str] = []
    skipped: dict[str, None] = {}
    params = 0
    failures: list[NoMatch] = []
    for file in files:
        checkpoint = open(file)
        step_numbers.append(_step_numbers(checkpoint))
        try:
            with blamed(checkpoint):
                followed = Followed(checkpoint, selections)
        except NoMatch as error:
            failures.append(error)
            continue
        moments.update(one.name for stored in followed.stored.values() for one in stored if one.name != "grad")
        unders.append(followed.picked.under)
        skipped.update(dict.fromkeys(followed.skipped if selections else ()))
        params = max(params, len(followed.unique))
    if len(failures) == len(files):
        raise failures[0]
    run_files, used = _ordered(files, step_numbers, order)
    return Run(run_files, used, tuple(sorted(moments)), params, next(filter(None, unders), ""), tuple(skipped))


def _ordered(
    files: Sequence[str], step_numbers: Sequence[Mapping[str, int | float]], order: Order
) -> tuple[tuple[RunFile, ...], str]:
    """Return the checkpoints in order, and the name of that order."""
    step_name = _common_step_name(step_numbers)
    if order == "step" and not step_name:
        what = "the checkpoints hold no step that tells them apart"
        raise UsageError(what, hint="order them by 'name', or as 'given'")
    shown = step_name or next(
        (step_name for step_name in STEP_NAMES if any(step_name in held for held in step_numbers)), ""
    )
    run_files = [RunFile(file, held.get(shown)) for file, held in zip(files, step_numbers, strict=True)]
    if order == "given":
        return tuple(run_files), "given"
    if step_name and order != "name":
        return tuple(sorted(run_files, key=lambda run_file: run_file.step or 0)), step_name
    return tuple(sorted(run_files, key=lambda run_file: natural_key(run_file.file))), "name"


def _step_numbers(checkpoint: Checkpoint) -> dict[str, int | float]:
    """Return the numbers at the top of a checkpoint that may be its step, by name."""
    return {
        entry.path: entry.value
        for entry in checkpoint.entries
        if isinstance(entry, Leaf)
        and entry.path in STEP_NAMES
        and isinstance(entry.value, int | float)
        and not isinstance(entry.value, bool)
        and isfinite(entry.value)
    }


def _common_step_name(step_numbers: Sequence[Mapping[str, int | float]]) -> str:
    """Return the first name for which every checkpoint has a number and all numbers differ, or ""."""
    for step_name in STEP_NAMES:
        found = {held[step_name] for held in step_numbers if step_name in held}
        if len(found) == len(step_numbers):
            return step_name
    return ""
