"""What a checkpoint holds beside its model: gradients, and what an optimizer remembers of each param."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint, Leaf, Param

MODELS = ("state_dict", "model_state_dict", "model")
OTHER_MODELS = ("module", "net", "network", "weights", "params", "ema", "generator")
GRADIENTS = frozenset({"grad", "grads", "gradients"})
_STATISTICS = ("running_mean", "running_var")  # floats that no optimizer moves, whatever a file calls them


class Observed(NamedTuple):
    """Something stored about a param: `grad`, or an optimizer's word for it, and its position in `params`."""

    name: str
    at: int


def observed(checkpoint: Checkpoint) -> Mapping[int, tuple[Observed, ...]]:
    """For each param, by position in `params`, the gradients and moments that are stored for it."""
    found: dict[int, list[Observed]] = {}
    for gradient, owner in gradient_owners(checkpoint).items():
        found.setdefault(owner, []).append(Observed("grad", gradient))
    for moment, (owner, name) in moment_owners(checkpoint).items():
        found.setdefault(owner, []).append(Observed(name, moment))
    return {owner: tuple(all_of) for owner, all_of in found.items()}


def model_inside(checkpoint: Checkpoint) -> str:
    """The top-level name under which the checkpoint holds its one model; "" if it holds none or several."""
    model = (param.path for param in checkpoint.params if param.kind != "optimizer")
    tops = {path.partition(".")[0] for path in model if "." in path}
    for known in (MODELS, OTHER_MODELS):
        found = [name for name in known if name in tops]
        if found:
            return found[0] if len(found) == 1 else ""
    return ""


# --- gradients ---------------------------------------------------------------------------------


def gradient_owners(checkpoint: Checkpoint) -> dict[int, int]:
    """Position in `params` of each stored gradient → that of the param it belongs to.

    A gradient is `<path>.grad`, or has the path and shape of a param in a container called `grad`,
    `grads` or `gradients` beside the model or in it.
    """
    params = checkpoint.params
    model = [i for i, param in enumerate(params) if param.kind != "optimizer"]
    held = [i for i in model if not GRADIENTS.isdisjoint(params[i].path.split("."))]
    if not held:
        return {}
    lookup = _Lookup(checkpoint, sorted({*model}.difference(held)))
    owners: dict[int, int] = {}
    for i in held:
        candidates = (lookup.find(path) for path in _ungraded(params[i].path))
        same = (j for j in candidates if j is not None and params[j].shape == params[i].shape)
        owner = next(same, None)
        if owner is not None:
            owners[i] = owner
    return owners


class _Lookup:
    """Params by their path, from the root or from the model inside."""

    def __init__(self, checkpoint: Checkpoint, indices: Iterable[int]) -> None:
        inside = model_inside(checkpoint)
        self.by_path: dict[str, int] = {}
        self.by_rest: dict[str, int] = {}
        for i in indices:
            path = checkpoint.params[i].path
            self.by_path.setdefault(path, i)
            top, _, rest = path.partition(".")
            if top == inside:
                self.by_rest.setdefault(rest, i)

    def find(self, path: str) -> int | None:
        """Position in `params`, or None."""
        return self.by_path.get(path, self.by_rest.get(path))


def _ungraded(path: str) -> Iterator[str]:
    """What a gradient's path may be the gradient of: `grads.0.weight` and `0.weight.grad` of `0.weight`."""
    first, *others = path.split(".")
    if first in GRADIENTS:
        yield ".".join(others)
    if len(others) > 1 and others[0] in GRADIENTS:
        yield ".".join([first, *others[1:]])
        yield ".".join(others[1:])
    if others and others[-1] in GRADIENTS:
        yield path.rpartition(".")[0]


# --- optimizers --------------------------------------------------------------------------------


class _Optimizer(NamedTuple):
    """One optimizer's state: what it moves, in its order, and per param what it remembers."""

    moved: list[object]  # numbers, or names where the optimizer knew them
    moments: dict[str, list[Observed]]  # by the number or name, as it stands in the path


def moment_owners(checkpoint: Checkpoint) -> dict[int, tuple[int, str]]:
    """Position in `params` of each optimizer tensor → that of the param it belongs to, and its name.

    An optimizer knows its params by name, or by number in the order it was given them. Numbers are
    taken for the model's order only where that is certain: as many as the model has distinct learnt
    params, and every moment of the shape of its param.
    """
    optimizers = _optimizers(checkpoint)
    if not optimizers:
        return {}
    learnt = _learnt(checkpoint)
    lookup = _Lookup(checkpoint, learnt)
    owners: dict[int, tuple[int, str]] = {}
    for optimizer in optimizers:
        owner_of = _owner_of(checkpoint, optimizer, learnt, lookup)
        if not _agree(checkpoint.params, optimizer, owner_of):
            continue
        for key, moments in optimizer.moments.items():
            owners.update((moment.at, (owner_of[key], moment.name)) for moment in moments)
    return owners


def _learnt(checkpoint: Checkpoint) -> list[int]:
    """Positions of what an optimizer may move: the model's floating-point params, tied ones once."""
    inside = model_inside(checkpoint)
    start = f"{inside}." if inside else ""
    gradients = gradient_owners(checkpoint)
    return [
        i
        for i, param in enumerate(checkpoint.params)
        if param.kind in ("parameter", "tensor")
        and param.dtype.category in ("float", "complex")
        and param.path.startswith(start)
        and i not in gradients
        and i not in checkpoint.tied_to
        and not param.path.endswith(_STATISTICS)
    ]


def _optimizers(checkpoint: Checkpoint) -> list[_Optimizer]:
    """Every optimizer whose groups say which params it moves."""
    moved: dict[str, list[object]] = {}
    named: dict[str, list[object]] = {}
    for entry in checkpoint.entries:
        if isinstance(entry, Leaf) and isinstance(entry.value, list):
            prefix, group, _ = entry.path.rpartition("param_groups.")
            if group and entry.path.endswith(".params"):
                moved.setdefault(prefix, []).extend(entry.value)
            if group and entry.path.endswith(".param_names"):
                named.setdefault(prefix, []).extend(entry.value)
    found = {prefix: _Optimizer(keys, {}) for prefix, keys in moved.items()}
    for i, param in enumerate(checkpoint.params):
        if param.kind == "optimizer":
            prefix, state, rest = param.path.partition("state.")
            key, _, name = rest.rpartition(".")
            if state and key and prefix in found:
                found[prefix].moments.setdefault(key, []).append(Observed(name, i))
    return [_with_names(optimizer, named.get(prefix, [])) for prefix, optimizer in found.items()]


def _with_names(optimizer: _Optimizer, names: list[object]) -> _Optimizer:
    """The optimizer with the names its groups give to its numbers, if they do."""
    if len(names) != len(optimizer.moved):
        return optimizer
    by_number = dict(zip(map(str, optimizer.moved), names, strict=True))
    moments = {str(by_number.get(key, key)): found for key, found in optimizer.moments.items()}
    return _Optimizer(names, moments)


def _owner_of(
    checkpoint: Checkpoint, optimizer: _Optimizer, learnt: Sequence[int], lookup: _Lookup
) -> dict[str, int]:
    """Position in `params` for each key of an optimizer's state."""
    if all(isinstance(name, str) for name in optimizer.moved):
        found = {str(name): lookup.find(str(name)) for name in optimizer.moved}
        return {name: index for name, index in found.items() if index is not None}
    if len(set(map(str, optimizer.moved))) != len(learnt):
        return {}
    return dict(zip(map(str, optimizer.moved), learnt, strict=True))


def _agree(params: Sequence[Param], optimizer: _Optimizer, owner_of: Mapping[str, int]) -> bool:
    """Whether every moment has the shape of its param; a step's count is a scalar."""
    return bool(optimizer.moments) and all(
        key in owner_of and params[moment.at].shape in ((), (1,), params[owner_of[key]].shape)
        for key, moments in optimizer.moments.items()
        for moment in moments
    )
