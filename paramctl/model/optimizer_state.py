"""What a checkpoint holds beside its model: gradients, and what an optimizer remembers of each param."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.model.optimizer_numbers import Signature, certain, fits, signature, unambiguous

MODELS = ("state_dict", "model_state_dict", "model")
OTHER_MODELS = ("module", "net", "network", "weights", "params", "ema", "generator")
GRADIENTS = frozenset({"grad", "grads", "gradients"})
WRAPPERS = ("module", "_orig_mod")  # DistributedDataParallel and torch.compile hold the model under these names
WRAPPED = 4  # wrappers one in another that are looked through
NESTED = 4  # names below a param's own under which an optimizer keeps what it remembers
_STATE = "state."
STATISTICS = ("running_mean", "running_var")  # floats that no optimizer moves, whatever a file calls them


class Observed(NamedTuple):
    """Something stored about a param: `grad`, or an optimizer's word for it, and its position in `params`.

    `assumed` tells that it may be another param's of that shape, if the optimizer was given them in another order.
    """

    name: str
    at: int
    assumed: bool = False


def observed(checkpoint: Checkpoint) -> Mapping[int, tuple[Observed, ...]]:
    """Return, for each param by position in `params`, the gradients and moments that are stored for it."""
    found: dict[int, list[Observed]] = {}
    for gradient, owner in gradient_owners(checkpoint).items():
        found.setdefault(owner, []).append(Observed("grad", gradient))
    for moment in moments(checkpoint):
        if moment.owner is not None:
            found.setdefault(moment.owner, []).append(Observed(moment.name, moment.at, moment.assumed))
    return {owner: tuple(all_of) for owner, all_of in found.items()}


def model_inside(checkpoint: Checkpoint) -> str:
    """Return the top-level name under which the checkpoint holds its one model; "" if it holds none or several."""
    model = (param.path for param in checkpoint.params if param.kind != "optimizer")
    tops = {path.partition(".")[0] for path in model if "." in path}
    for known in (MODELS, OTHER_MODELS):
        found = [name for name in known if name in tops]
        if found:
            return found[0] if len(found) == 1 else ""
    return ""


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
            if top == inside or not inside:
                self.by_rest.setdefault(unwrapped(rest if inside else path), i)

    def find(self, path: str) -> int | None:
        """Position in `params`, or None."""
        return self.by_path.get(path, self.by_rest.get(unwrapped(path)))


def unwrapped(path: str) -> str:
    """Return a path without the names that wrappers of the whole model put before it."""
    for _ in range(WRAPPED):
        top, dot, rest = path.partition(".")
        if not dot or top not in WRAPPERS:
            break
        path = rest
    return path


def wrapped_models(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the layers under which wrappers hold the model, from the root and from the model inside."""
    return checkpoint.derived(_wrapped_models)


def _wrapped_models(checkpoint: Checkpoint) -> tuple[str, ...]:
    inside = model_inside(checkpoint)
    found: dict[str, None] = {}
    for param in checkpoint.params:
        names = param.path.split(".", WRAPPED + 1)[:-1]
        start = 1 if inside and names and names[0] == inside else 0
        deep = start
        while deep < len(names) and names[deep] in WRAPPERS:
            deep += 1
            found[".".join(names[:deep])] = None
    found.pop(inside, None)
    return tuple(sorted(found, key=lambda path: path.count(".")))


def _ungraded(path: str) -> Iterator[str]:
    """Yield the paths whose gradient may have this path: `0.weight` for `grads.0.weight` and `0.weight.grad`."""
    first, *others = path.split(".")
    if first in GRADIENTS:
        yield ".".join(others)
    if len(others) > 1 and others[0] in GRADIENTS:
        yield ".".join([first, *others[1:]])
        yield ".".join(others[1:])
    if others and others[-1] in GRADIENTS:
        yield path.rpartition(".")[0]


class Moment(NamedTuple):
    """One tensor of an optimizer's state: position in `params`, its own name, and the layer it lies in.

    `owner` is the position of the param it is remembered of, None where that is not certain; `group` is the
    path of the `param_groups` entry that param is in. `assumed` tells that shapes alone do not decide the owner, only
    the order of the model, in which an optimizer is usually given its params.
    """

    at: int
    name: str
    layer: str
    owner: int | None
    group: str
    assumed: bool = False


class _Optimizer(NamedTuple):
    """One optimizer's state: which params it moves, group after group, and what it remembers of each."""

    groups: dict[str, Sequence[object]]  # numbers, or names where the optimizer knew them, by the group's path
    names: dict[str, Sequence[object]]  # what a group calls its numbers, if it does
    moments: dict[str, list[Observed]]  # by the number or name, as it stands in the path


def moments(checkpoint: Checkpoint) -> tuple[Moment, ...]:
    """Return every tensor that an optimizer remembers of a param, with the param.

    An optimizer knows its params by name, or by number in the order it was given them. A number is taken
    for a param only where that is certain (see `numbering`).
    """
    return checkpoint.derived(_moments)


def moment_layers(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Path of each layer that holds an optimizer's moments → path of the param they are of."""
    params = checkpoint.params
    return {one.layer: params[one.owner].path for one in moments(checkpoint) if one.owner is not None}


def _moments(checkpoint: Checkpoint) -> tuple[Moment, ...]:
    if not any(param.kind == "optimizer" for param in checkpoint.params):
        return ()
    optimizers = [one for one in _optimizers(checkpoint) if one.moments]
    if not optimizers:
        return ()
    learnt = _learnt(checkpoint)
    moved = {*learnt}
    again = (i for i, leader in checkpoint.tied_to.items() if leader in moved)
    lookup = _Lookup(checkpoint, sorted([*learnt, *again]))
    found: list[Moment] = []
    for optimizer in optimizers:
        owner_of, assumed = _owner_of(checkpoint, optimizer, learnt, lookup)
        group_of = {str(key): group for group, keys in optimizer.groups.items() for key in keys}
        for key, all_of in optimizer.moments.items():
            for name, at, _ in all_of:
                layer = checkpoint.params[at].path[: -len(name) - 1]
                found.append(Moment(at, name, layer, owner_of.get(key), group_of.get(key, ""), key in assumed))
    return tuple(found)


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
        and not param.path.endswith(STATISTICS)
    ]


def _optimizers(checkpoint: Checkpoint) -> list[_Optimizer]:
    """Return every optimizer whose groups say which params it moves."""
    found: dict[str, _Optimizer] = {}
    for entry in checkpoint.entries:
        if isinstance(entry, Leaf) and isinstance(entry.value, list | tuple):
            group, _, name = entry.path.rpartition(".")
            prefix, number, _ = group.rpartition("param_groups.")
            if number and name in ("params", "param_names"):
                optimizer = found.setdefault(prefix, _Optimizer({}, {}, {}))
                (optimizer.groups if name == "params" else optimizer.names)[group] = entry.value
    known = {prefix: {str(key) for keys in one.groups.values() for key in keys} for prefix, one in found.items()}
    for i, param in enumerate(checkpoint.params):
        start = _prefix_of(param.path, known) if param.kind == "optimizer" else None
        if start is not None:
            rest = param.path[len(start) + len(_STATE) :]
            key = _key_of(rest, known[start])
            if key and key != rest:
                found[start].moments.setdefault(key, []).append(Observed(rest[len(key) + 1 :], i))
    return list(found.values())


def _prefix_of(path: str, known: Collection[str]) -> str | None:
    """Return the path, with its dot, of the optimizer whose `state` holds a path; None if none does."""
    at = path.find(_STATE)
    for _ in range(NESTED):
        if at < 0 or path[:at] in known:
            break
        at = path.find(_STATE, at + 1)
    return path[:at] if at >= 0 and path[:at] in known else None


def _key_of(path: str, known: Collection[str]) -> str:
    """Return the number or name that a path in an optimizer's state begins with; "" if it is none of those it moves."""
    first = path.partition(".")[0]
    if first in known:
        return first
    for _ in range(NESTED):
        path = path.rpartition(".")[0]
        if path in known:
            return path
    return ""


class _Owners(NamedTuple):
    """The position in `params` for each key of an optimizer's state, and the keys for which the order is assumed."""

    owner_of: dict[str, int]
    assumed: frozenset[str] = frozenset()


def _owner_of(checkpoint: Checkpoint, optimizer: _Optimizer, learnt: Sequence[int], lookup: _Lookup) -> _Owners:
    """Return the owners of an optimizer's state, as far as they can be known."""
    shapes_of = {
        key: signature((one.name, checkpoint.params[one.at].shape) for one in all_of)
        for key, all_of in optimizer.moments.items()
    }
    groups = optimizer.groups
    named = {group: optimizer.names.get(group, keys) for group, keys in groups.items()}
    are_named = all(isinstance(name, str) for names in named.values() for name in names)
    if not are_named or any(len(named[group]) != len(keys) for group, keys in groups.items()):
        return _numbered(checkpoint, [[*map(str, keys)] for keys in groups.values()], shapes_of, learnt)
    owners: dict[str, int] = {}
    for group, keys in groups.items():
        for key, name in zip(map(str, keys), map(str, named[group]), strict=True):
            at = lookup.find(name)
            if at is not None and fits(shapes_of.get(key, Signature()), checkpoint.params[at].shape):
                owners[key] = checkpoint.tied_to.get(at, at)
    return _Owners(owners)


def _numbered(
    checkpoint: Checkpoint, groups: list[list[str]], shapes_of: Mapping[str, Signature], learnt: Sequence[int]
) -> _Owners:
    """Return the owners as `_owner_of` does, for an optimizer that has only numbers."""
    count = sum(map(len, groups))
    trained = [i for i in learnt if checkpoint.params[i].requires_grad is not False]
    candidates = trained if len(trained) == count else learnt
    signatures = [[shapes_of.get(key, Signature()) for key in keys] for keys in groups]
    if all(one == Signature() for one in shapes_of.values()) or len({key for keys in groups for key in keys}) != count:
        return _Owners({})
    shapes = [checkpoint.params[i].shape for i in candidates]
    found = certain(signatures, shapes)
    owner_of = {groups[group][place]: candidates[at] for (group, place), at in found.items()}
    unique = unambiguous({signatures[group][place] for group, place in found}, shapes)
    return _Owners(owner_of, frozenset(groups[g][place] for g, place in found if signatures[g][place] not in unique))
