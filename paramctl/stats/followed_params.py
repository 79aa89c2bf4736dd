"""Choose the params of one checkpoint that `track` follows, and find the gradients and moments stored for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.optimizer_state import STATISTICS, Observed, observed
from paramctl.stats.picked_params import Picked, pick

WHOLE = ("int", "bool")  # counts, indices and flags


class Followed:
    """The selected params without those that are not learnable, unless they were named one by one.

    `skipped` are the paths of the params left out. `stored` holds gradients and moments, each tensor once, by the
    position of the param (the first selected one of its group of ties).
    """

    def __init__(self, checkpoint: Checkpoint, selections: Sequence[str]) -> None:
        every = pick(checkpoint, selections)
        self.checkpoint = checkpoint
        self.skipped = tuple(_not_learnable(every))
        self.picked = replace(every, at={path: i for path, i in every.at.items() if path not in {*self.skipped}})
        about = observed(checkpoint)
        self.stored = {group[0]: self._stored(about, group, leader) for leader, group in self.picked.ties.items()}

    @property
    def at(self) -> Mapping[str, int]:
        """Positions in `params` of all followed params, by path."""
        return self.picked.at

    @property
    def unique(self) -> Mapping[str, int]:
        """The entries of `at` without params that are tied to an earlier one."""
        return self.picked.unique

    def _stored(
        self, about: Mapping[int, Sequence[Observed]], group: Sequence[int], leader: int
    ) -> tuple[Observed, ...]:
        """Return the gradients and moments of tied params, each tensor once.

        If those selected have none of a name, the ones of the whole group of ties are taken.
        """
        all_of = self.checkpoint.groups_by_first.get(leader, (leader,))
        found: dict[tuple[str, int], Observed] = {}
        for members in (group, all_of):
            names = {name for name, _ in found}
            for one in (one for i in members for one in about.get(i, ()) if one.name not in names):
                if self._has_value_for_each(one, leader):
                    found.setdefault((one.name, self.checkpoint.tied_to.get(one.at, one.at)), one)
        return tuple(found.values())

    def _has_value_for_each(self, one: Observed, owner: int) -> bool:
        """Return whether a tensor has one number for each value of the param (not a count of steps, for example)."""
        params = self.checkpoint.params
        return one.name != "step" and params[one.at].shape == params[owner].shape


def _not_learnable(picked: Picked) -> Iterator[str]:
    """Yield the paths of params that no optimizer moves, unless they were named one by one.

    Those are integers, flags, and running statistics, which move farther in a step than weights ever do. Yields
    nothing if no other params are left.
    """
    params = picked.checkpoint.params
    found = [path for path, i in picked.at.items() if i not in picked.exact and not _may_be_learnt(params[i])]
    return iter(found if len(found) < len(picked.at) else ())


def _may_be_learnt(param: Param) -> bool:
    """Return whether an optimizer may move the param."""
    statistic = param.kind == "buffer" or param.path.endswith(STATISTICS)
    return param.dtype.category not in WHOLE and not statistic
