"""What was picked of one checkpoint to look at, by paths from the model inside: other formats may hold the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from paramctl.errors import NoMatch
from paramctl.model.checkpoint import Checkpoint
from paramctl.model.optimizer_state import model_inside
from paramctl.model.selection import model_params, select


@dataclass(frozen=True)
class Picked:
    """Params of one checkpoint, by their paths: `at` are positions in `params`.

    `exact` are the positions that were named one by one, `under` is the model inside, if a selection
    matched only there.
    """

    checkpoint: Checkpoint
    at: Mapping[str, int]
    exact: frozenset[int] = frozenset()
    under: str = ""

    @cached_property
    def ties(self) -> Mapping[int, Sequence[int]]:
        """Positions of what is picked of each group of tied params, by the first of all of that group."""
        found: dict[int, list[int]] = {}
        for i in self.at.values():
            found.setdefault(self.checkpoint.tied_to.get(i, i), []).append(i)
        return found

    @cached_property
    def once(self) -> Mapping[str, int]:
        """Those of `at` that are tied to none before them."""
        firsts = {group[0] for group in self.ties.values()}
        return {path: i for path, i in self.at.items() if i in firsts}


def pick(checkpoint: Checkpoint, selections: Sequence[str]) -> Picked:
    """What the selections name, or without any the model.

    Raises NoMatch where one names nothing, or where there are no params.
    """
    if not selections:
        at = _by_path(checkpoint, _model(checkpoint))
        if not at:
            raise NoMatch("there are no parameters in this checkpoint")
        return Picked(checkpoint, at)
    found = select(checkpoint, selections, alike=True, among=model_params(checkpoint))
    return Picked(checkpoint, _by_path(checkpoint, found.indices), found.exact, found.under)


def _model(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Positions in `params` of the model inside, or of all that is neither an optimizer's nor a gradient."""
    inside = model_inside(checkpoint)
    own = model_params(checkpoint)
    start = f"{inside}." if inside else ""
    return tuple(i for i in own if checkpoint.params[i].path.startswith(start))


def _by_path(checkpoint: Checkpoint, indices: Iterable[int]) -> dict[str, int]:
    """Positions by the path from the model inside; by the whole one where that is another's."""
    inside = model_inside(checkpoint)
    start = f"{inside}." if inside else ""
    labels = checkpoint.labels
    taken = {label for label in labels if not start or not label.startswith(start)}
    found = {}
    for i in indices:
        short = labels[i].removeprefix(start)
        found[labels[i] if short in taken else short] = i
    return found
