"""What is followed of one checkpoint of a run: params whose values tell something, and what is stored of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.optimizer_state import STATISTICS, Observed, observed
from paramctl.stats.picked_params import Picked, pick

WHOLE = ("int", "bool")  # counts, indices and flags


class Followed:
    """What was picked, without what would drown the weights beside it unless it was named one by one.

    `spared` are the paths of what is left out so; `stored` are gradients and moments, each tensor once, by the
    position of the one of tied params that stands for them.
    """

    def __init__(self, checkpoint: Checkpoint, selections: Sequence[str]) -> None:
        every = pick(checkpoint, selections)
        self.checkpoint = checkpoint
        self.spared = tuple(_drowning(every))
        self.picked = replace(every, at={path: i for path, i in every.at.items() if path not in {*self.spared}})
        about = observed(checkpoint)
        self.stored = {group[0]: self._stored(about, group, leader) for leader, group in self.picked.ties.items()}

    @property
    def at(self) -> Mapping[str, int]:
        """Positions in `params` of all that is followed."""
        return self.picked.at

    @property
    def once(self) -> Mapping[str, int]:
        """Those of `at` that are tied to none before them."""
        return self.picked.once

    def _stored(
        self, about: Mapping[int, Sequence[Observed]], group: Sequence[int], leader: int
    ) -> tuple[Observed, ...]:
        """Gradients and moments of tied params, each tensor once; of all of the group where the selected have none."""
        all_of = self.checkpoint.groups_by_first.get(leader, (leader,))
        found: dict[tuple[str, int], Observed] = {}
        for members in (group, all_of):
            names = {name for name, _ in found}
            for one in (one for i in members for one in about.get(i, ()) if one.name not in names):
                if self._alike(one, leader):
                    found.setdefault((one.name, self.checkpoint.tied_to.get(one.at, one.at)), one)
        return tuple(found.values())

    def _alike(self, one: Observed, owner: int) -> bool:
        """Whether it has a number for each value of the param; the count of steps an optimizer keeps has not."""
        params = self.checkpoint.params
        return one.name != "step" and params[one.at].shape == params[owner].shape


def _drowning(picked: Picked) -> Iterator[str]:
    """Paths of what no optimizer moves and was not named one by one; nothing where nothing else is left.

    That is what is whole, and running statistics, which move farther in a step than weights ever do.
    """
    params = picked.checkpoint.params
    found = [path for path, i in picked.at.items() if i not in picked.exact and not _may_be_learnt(params[i])]
    return iter(found if len(found) < len(picked.at) else ())


def _may_be_learnt(param: Param) -> bool:
    statistic = param.kind == "buffer" or param.path.endswith(STATISTICS)
    return param.dtype.category not in WHOLE and not statistic
