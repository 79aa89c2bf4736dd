"""The checkpoints of one training run: their order, and what is selected in them, by their headers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Literal, NamedTuple

from paramctl.errors import NoMatch, UsageError
from paramctl.model.checkpoint import Checkpoint, Leaf, blamed, natural_key
from paramctl.stats.followed_params import Followed

Order = Literal["auto", "step", "name", "given"]
Open = Callable[[str], Checkpoint]

WORDS = ("step", "global_step", "iteration", "iter_num", "epoch")  # what a checkpoint calls its own place in the run


class Stop(NamedTuple):
    """One checkpoint of a run: its file, and the step that it says it was saved at, if it does."""

    file: str
    step: int | float | None


class Run(NamedTuple):
    """The checkpoints of a run, in order.

    `order` says which that is: `given`, `name`, or the checkpoints' own word for a step. `moments` are the
    names of what the optimizers remember of the selected params, `under` is the model inside, if a
    selection matched only there. `params` is how many are selected, at most, tied ones once; `spared` are the
    paths of what was selected and is left out, as it would drown the weights.
    """

    stops: tuple[Stop, ...]
    order: str
    moments: tuple[str, ...]
    params: int
    under: str = ""
    spared: tuple[str, ...] = ()


def survey(files: Sequence[str], selections: Sequence[str], open: Open, order: Order = "auto") -> Run:
    """Look at the headers of all files, one after the other, for their order and for what they hold.

    The steps in the checkpoints decide if all have one and no two the same, else the names, as people
    count. Raises NoMatch where the selections match in no file, UsageError where `order` is `step` and
    there are no such steps.
    """
    words: list[dict[str, int | float]] = []
    moments: set[str] = set()
    unders: list[str] = []
    spared: dict[str, None] = {}
    params = 0
    failures: list[NoMatch] = []
    for file in files:
        checkpoint = open(file)
        words.append(_words(checkpoint))
        try:
            with blamed(checkpoint):
                followed = Followed(checkpoint, selections)
        except NoMatch as error:
            failures.append(error)
            continue
        moments.update(one.name for stored in followed.stored.values() for one in stored if one.name != "grad")
        unders.append(followed.picked.under)
        spared.update(dict.fromkeys(followed.spared if selections else ()))
        params = max(params, len(followed.once))
    if len(failures) == len(files):
        raise failures[0]
    stops, used = _ordered(files, words, order)
    return Run(stops, used, tuple(sorted(moments)), params, next(filter(None, unders), ""), tuple(spared))


def _ordered(
    files: Sequence[str], words: Sequence[Mapping[str, int | float]], order: Order
) -> tuple[tuple[Stop, ...], str]:
    """The checkpoints in order, and what that is called."""
    word = _word_of_all(words)
    if order == "step" and not word:
        what = "the checkpoints hold no step that tells them apart"
        raise UsageError(what, hint="order them by 'name', or as 'given'")
    shown = word or next((word for word in WORDS if any(word in held for held in words)), "")
    stops = [Stop(file, held.get(shown)) for file, held in zip(files, words, strict=True)]
    if order == "given":
        return tuple(stops), "given"
    if word and order != "name":
        return tuple(sorted(stops, key=lambda stop: stop.step or 0)), word
    return tuple(sorted(stops, key=lambda stop: natural_key(stop.file))), "name"


def _words(checkpoint: Checkpoint) -> dict[str, int | float]:
    """What a checkpoint says of its own place in the run: numbers at the top."""
    return {
        entry.path: entry.value
        for entry in checkpoint.entries
        if isinstance(entry, Leaf)
        and entry.path in WORDS
        and isinstance(entry.value, int | float)
        and not isinstance(entry.value, bool)
        and isfinite(entry.value)
    }


def _word_of_all(words: Sequence[Mapping[str, int | float]]) -> str:
    """The first word that all checkpoints have a number for, each another; "" if there is none."""
    for word in WORDS:
        found = {held[word] for held in words if word in held}
        if len(found) == len(words):
            return word
    return ""
