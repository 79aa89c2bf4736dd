"""Select params, keyed by their path relative to the model, so that files of different formats can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from paramctl.errors import NoMatch
from paramctl.model.checkpoint import Checkpoint
from paramctl.model.optimizer_state import model_inside
from paramctl.model.selections.selection import model_params, select


@dataclass(frozen=True)
class Picked:
    """Selected params of one checkpoint: `at` maps their paths to positions in `params`.

    `exact` are the positions of params that were named one by one; `under` is the path of the model inside the
    checkpoint, if a selection matched only there.
    """

    checkpoint: Checkpoint
    at: Mapping[str, int]
    exact: frozenset[int] = frozenset()
    under: str = ""

    @cached_property
    def ties(self) -> Mapping[int, Sequence[int]]:
        """Positions of the selected params of each group of ties, by the first position of the whole group."""
        found: dict[int, list[int]] = {}
        for i in self.at.values():
            found.setdefault(self.checkpoint.tied_to.get(i, i), []).append(i)
        return found

    @cached_property
    def unique(self) -> Mapping[str, int]:
        """The entries of `at` without params that are tied to an earlier one."""
        firsts = {group[0] for group in self.ties.values()}
        return {path: i for path, i in self.at.items() if i in firsts}


def pick(checkpoint: Checkpoint, selections: Sequence[str]) -> Picked:
    """Return the params that the selections name, or the whole model if there are no selections.

    Raises NoMatch if a selection names nothing, or if there are no params.
    """
    if not selections:
        at = _by_path(checkpoint, _model(checkpoint))
        if not at:
            raise NoMatch("there are no parameters in this checkpoint")
        return Picked(checkpoint, at)
    found = select(checkpoint, selections, alike=True, among=model_params(checkpoint))
    return Picked(checkpoint, _by_path(checkpoint, found.indices), found.exact, found.under)


def _model(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the positions of the params of the model inside: no optimizer state and no gradients."""
    inside = model_inside(checkpoint)
    own = model_params(checkpoint)
    start = f"{inside}." if inside else ""
    return tuple(i for i in own if checkpoint.params[i].path.startswith(start))


def _by_path(checkpoint: Checkpoint, indices: Iterable[int]) -> dict[str, int]:
    """Return positions by path relative to the model; by full path if the relative one belongs to another param."""
    inside = model_inside(checkpoint)
    start = f"{inside}." if inside else ""
    labels = checkpoint.labels
    taken = {label for label in labels if not start or not label.startswith(start)}
    found = {}
    for i in indices:
        short = labels[i].removeprefix(start)
        found[labels[i] if short in taken else short] = i
    return found
