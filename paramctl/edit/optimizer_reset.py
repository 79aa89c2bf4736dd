"""Report that the optimizer state of changed params is stale, or reset it to the start of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

from paramctl.edit.guards import check_editable
from paramctl.edit.report import Change
from paramctl.errors import UsageError, some
from paramctl.files.content import Buffer
from paramctl.model.checkpoint import Checkpoint, Leaf, Param
from paramctl.model.optimizer_numbers import SCALARS, Shape, Signature, fits, signature
from paramctl.model.optimizer_state import Moment, gradient_owners, moments
from paramctl.model.sharing import group_of
from paramctl.values.arrays import NewValues, cast, encode, with_values

NAMED = 5  # params that a note names
COMPARED = 1_000_000  # pairs of shapes that are compared to find out whether moments may be a param's
STALE = "the optimizer state in this file still belongs to the old values"

# What torch.optim starts from, where that is not 0: a number, or that of the param's group.
_ONE = {"mu": 1.0, "mu_product": 1.0}  # ASGD, NAdam
_OF_GROUP = {"eta": "lr", "step_size": "lr", "sum": "initial_accumulator_value"}  # ASGD, Rprop, Adagrad


class OptimizerUpdate(NamedTuple):
    """An edited checkpoint, the optimizer state that was reset, and notes for the user."""

    checkpoint: Checkpoint
    changed: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def update_optimizers(before: Checkpoint, edited: Checkpoint, changed: Iterable[int], reset: bool) -> OptimizerUpdate:
    """Return `edited`, with the optimizer state of `changed` params reset if `reset`, else a note that it is stale.

    The count of steps is reset too, because it tells an optimizer how far to trust its moments. Raises UsageError
    if `reset` and it is uncertain which moments belong to the params, or how they start.
    """
    found = _remembered(before, changed)
    if reset:
        return _reset(before, edited, found)
    names = _labels(before, found.values)
    if found.objects:
        return OptimizerUpdate(edited, (), (STALE,))
    if found.uncertain:
        return OptimizerUpdate(edited, (), (f"{STALE}; it is not certain which part belongs to {names}",))
    if found.stale:
        names = _labels(before, {one.owner for one in found.stale if one.owner is not None})
        return OptimizerUpdate(edited, (), (f"{STALE} of {names}; --reset-optimizer resets it",))
    return OptimizerUpdate(edited)


class _Remembered(NamedTuple):
    """The optimizer state of some params."""

    values: frozenset[int] = frozenset()  # the params, tied ones by their first
    stale: tuple[Moment, ...] = ()
    uncertain: tuple[str, ...] = ()  # paths of what may be theirs
    objects: tuple[str, ...] = ()  # paths of optimizers that are objects


def _remembered(checkpoint: Checkpoint, changed: Iterable[int]) -> _Remembered:
    """Return the optimizer state of the changed params."""
    values = {i for i in changed if checkpoint.params[i].kind != "optimizer"} - gradient_owners(checkpoint).keys()
    if not values:
        return _Remembered()
    leaders = frozenset(checkpoint.tied_to.get(i, i) for i in values)
    known = moments(checkpoint)
    return _Remembered(
        leaders,
        tuple(one for one in known if one.owner in leaders),
        tuple(_uncertain_layers(checkpoint, leaders, known)),
        tuple(entry.path for entry in checkpoint.entries if isinstance(entry, Leaf) and entry.moments),
    )


def _uncertain_layers(checkpoint: Checkpoint, values: Iterable[int], known: tuple[Moment, ...]) -> list[str]:
    """Return the paths of optimizer state that may belong to the params, by their shapes."""
    params = checkpoint.params
    listed = {one.at for one in known}
    others = [
        param.path
        for at, param in enumerate(params)
        if param.kind == "optimizer" and at not in listed and "state." in param.path
    ]
    unowned: dict[str, list[tuple[str, Shape]]] = {}
    for one in known:
        if one.owner is None:
            unowned.setdefault(one.layer, []).append((one.name, params[one.at].shape))
    kinds = {layer: signature(remembered) for layer, remembered in unowned.items()}
    theirs = {params[i].shape for i in values}
    elsewhere = {param.shape for param in params if param.kind != "optimizer"} - theirs
    if len({*kinds.values()}) * (len(theirs) + len(elsewhere)) > COMPARED:
        return [*others, *kinds]
    may_be = {kind: _fits_any(kind, theirs) or not _fits_any(kind, elsewhere) for kind in {*kinds.values()}}
    return [*others, *(layer for layer, kind in kinds.items() if may_be[kind])]


def _fits_any(kind: Signature, shapes: Iterable[Shape]) -> bool:
    """Return whether moments of that kind fit a param of one of the shapes."""
    return any(fits(kind, shape) for shape in shapes)


def _labels(checkpoint: Checkpoint, indices: Iterable[int]) -> str:
    """Return the labels of params, in words."""
    return some([checkpoint.labels[i] or "." for i in sorted(indices)], NAMED)


def _reset(before: Checkpoint, edited: Checkpoint, found: _Remembered) -> OptimizerUpdate:
    """Return the checkpoint with all stale moments at their start."""
    if found.objects:
        where = some(found.objects, NAMED)
        what = f"--reset-optimizer cannot change {where}: this optimizer was saved whole, as an object"
        raise UsageError(what, hint="leave the option out, or save optimizer.state_dict() from your program")
    if found.uncertain:
        what = (
            f"it is not certain which of {some(found.uncertain, NAMED)} belongs to {_labels(before, found.values)}"
        )
        raise UsageError(
            f"--reset-optimizer: {what}",
            hint=f"leave it out, or set the values yourself: '{found.uncertain[0]}.exp_avg = 0'",
        )
    if not found.stale:
        return OptimizerUpdate(edited, (), ("no optimizer in this file has state of the changed params",))
    _check_resettable(before, found.stale)
    numbers = {entry.path: entry.value for entry in before.entries if isinstance(entry, Leaf)}
    storages: dict[str, list[NewValues]] = {}
    changes: list[Change] = []
    for one in found.stale:
        param, value = before.params[one.at], _initial_value(one, before.params[one.at], numbers)
        assert one.owner is not None
        how = f"reset to {value:g}, {one.name} of {before.labels[one.owner] or '.'}"
        changes.append(Change(before.labels[one.at], how))
        if param.numel:
            storages.setdefault(str(param.storage), []).append(NewValues(param, partial(_filled_bytes, param, value)))
    made = {key: with_values(edited.storages[key], *views) for key, views in storages.items()}
    notes = (*_assumed(before, found.stale), *_steps_kept(found.stale, numbers))
    return OptimizerUpdate(edited.with_storages(made), tuple(changes), notes)


def _assumed(checkpoint: Checkpoint, stale: tuple[Moment, ...]) -> tuple[str, ...]:
    """Return a note on the params whose moments were found by the order of the model alone."""
    owners = {one.owner for one in stale if one.assumed and one.owner is not None}
    if not owners:
        return ()
    why = "other params have the same shape, and an optimizer may be given them in another order"
    return (f"assumed: in the model's order: the moments of {_labels(checkpoint, owners)}; {why}",)


def _check_resettable(checkpoint: Checkpoint, stale: tuple[Moment, ...]) -> None:
    """Raise UsageError unless the moments can be changed without changing anything else."""
    ours = {one.at for one in stale}
    check_editable(checkpoint, ours, ours, "leave --reset-optimizer out")
    for one in stale:
        param = checkpoint.params[one.at]
        others = [checkpoint.labels[i] for i in group_of(checkpoint, one.at) if i not in ours]
        if others:
            what = f"--reset-optimizer: {param.path} is one with {some(others, NAMED)}, of params that did not change"
            raise UsageError(what, hint="untie them first with 'paramctl untie'")
        if param.dtype.category not in ("float", "complex") and param.shape not in SCALARS:
            codes = f"{param.path} holds {param.dtype.name} codes, and the code of 0 is not known"
            raise UsageError(f"--reset-optimizer: {codes}", hint="leave the option out")


def _initial_value(moment: Moment, param: Param, numbers: Mapping[str, object]) -> float:
    """Return the value of a moment at the start of training. Raises UsageError if its group does not say."""
    if moment.name in _ONE and param.shape in SCALARS:
        return _ONE[moment.name]
    word = _OF_GROUP.get(moment.name)
    if word is None:
        return 0.0
    value = numbers.get(f"{moment.group}.{word}", 0.0 if moment.name == "sum" else None)
    if not isinstance(value, float | int):
        what = f"--reset-optimizer: {param.path} starts at its group's {word}, and {moment.group}.{word} is no number"
        raise UsageError(what, hint="leave the option out")
    return float(value)


def _filled_bytes(param: Param, value: float) -> Buffer:
    """Return the bytes of a tensor filled with one number."""
    if not value:
        return bytes(param.nbytes)
    import numpy as np

    return encode(cast(np.full(param.shape, value), param.dtype), param.dtype)


def _steps_kept(stale: tuple[Moment, ...], numbers: Mapping[str, object]) -> tuple[str, ...]:
    """Return a note if steps are counted by plain numbers, as torch before 1.12 did: those are kept."""
    layers = dict.fromkeys(one.layer for one in stale)
    kept = [f"{layer}.step" for layer in layers if numbers.get(f"{layer}.step")]
    return (f"{some(kept, NAMED)} is kept: it is a plain number, not a tensor",) if kept else ()
