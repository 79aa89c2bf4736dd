"""Draw chosen params anew with named schemes, each from a generator of its own."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paramctl import schemes
from paramctl.changes import Change, Edit, Kept, also_tied, check_editable, stale_moments
from paramctl.checkpoint import Checkpoint, Param, Storage
from paramctl.errors import UsageError
from paramctl.paths import Selection, model_params, select
from paramctl.schemes import Role, Spec, Target
from paramctl.segments import Buffer
from paramctl.values import with_values

MAX_SEED = 2**63  # seeds that are drawn; any whole number may be given


class _Job(NamedTuple):
    """The param at one position of `checkpoint.params`, and what becomes of it."""

    at: int
    spec: Spec
    role: str
    target: Target
    assumed: bool  # that the layer is a Linear or a Conv, since the file names no class


def init(
    checkpoint: Checkpoint,
    layers: Sequence[str] = (),
    scheme: Sequence[str] = ("default",),
    *,
    seed: int | None = None,
    bias: str | None = None,
) -> Edit:
    """Draw the params of `layers` with `scheme`: one for all of them, or one for each.

    Without layers the whole model is drawn. On a layer its weights (2 or more dimensions) get the
    scheme, biases become zeros (or what `bias` says: `zeros`, `keep`, `default` or a scheme), the scale of
    a normalisation becomes ones; a param named by its full path gets the scheme itself. Each param's
    generator is seeded with `schemes.seed_for(seed, path)`. Raises UsageError where a scheme cannot
    apply, NoMatch where a layer names nothing.
    """
    if seed is None:
        seed = secrets.randbelow(MAX_SEED)
    chosen: dict[int, tuple[Spec, bool]] = {}
    notes: list[str] = []
    model = model_params(checkpoint)
    for patterns, text in _pairs(layers, scheme):
        spec = _parsed(text, checkpoint)
        selection = select(checkpoint, patterns, among=model) if patterns else Selection(model, frozenset())
        if selection.under:
            notes.append(f"selected inside '{selection.under}'")
        roles = _roles_apply(checkpoint, selection)
        for index in selection.indices:
            chosen[index] = spec, roles and index not in selection.exact
    jobs, kept = _plan(checkpoint, chosen, seed, None if bias is None else bias.strip())
    changes = tuple(_change(checkpoint, job) for job in jobs)
    return Edit(
        checkpoint.with_storages(_drawn(checkpoint, jobs)),
        changes,
        tuple(kept),
        seed,
        (*dict.fromkeys(notes), *(stale_moments(checkpoint) if jobs else ())),
    )


def _pairs(layers: Sequence[str], scheme: Sequence[str]) -> list[tuple[list[str], str]]:
    """Selections with their schemes. Raises UsageError where they do not pair up."""
    scheme = scheme or ("default",)
    if len(scheme) == 1:
        return [(list(layers), scheme[0])]
    if len(scheme) != len(layers):
        raise UsageError(
            f"{len(layers)} --layer and {len(scheme)} --scheme do not pair up",
            hint="give one --scheme for all layers, or one for each --layer, in order",
        )
    return [([layer], text) for layer, text in zip(layers, scheme, strict=True)]


def _roles_apply(checkpoint: Checkpoint, selection: Selection) -> bool:
    """Whether what was named is a layer with weights, and not, say, all the biases."""
    return any(role_of(checkpoint.params[i]) == "weight" for i in selection.indices if i not in selection.exact)


def role_of(param: Param) -> str:
    """`weight`, `bias`, `scale`, or `other`, which an initialisation of its layer leaves alone."""
    name = param.path.rsplit(".", 1)[-1]
    if not param.dtype.is_float and param.dtype.category != "complex":
        return "other"
    if param.kind == "buffer":
        return "other"
    if len(param.shape) >= 2:
        return "weight"
    if len(param.shape) == 1 and name in ("weight", "gamma", "scale"):
        return "scale"
    return "bias" if name.startswith("bias") or name == "beta" else "other"


def _plan(
    checkpoint: Checkpoint, chosen: dict[int, tuple[Spec, bool]], seed: int, bias: str | None
) -> tuple[list[_Job], list[Kept]]:
    """What becomes of each chosen param, all of it checked before anything is drawn."""
    jobs: dict[int, _Job] = {}
    kept: list[Kept] = []
    for index, (spec, by_role) in sorted(chosen.items()):
        leader = checkpoint.tied_to.get(index, index)
        param = checkpoint.params[leader]
        label = checkpoint.labels[index] or "."
        role = role_of(param)
        if by_role:
            own, why = _by_role(spec, role, param, bias)
            if own is None:
                kept.append(Kept(label, why))
                continue
            spec = own
        target = _target(checkpoint, leader, role, seed)
        resolved, assumed = schemes.resolve(spec, target)
        if resolved is None and by_role:
            kept.append(Kept(label, _why_kept(param)))
            continue
        concrete = schemes.check(spec, target)
        check_editable(checkpoint, leader, chosen)
        jobs[leader] = _Job(leader, concrete, role, target, assumed)
    return list(jobs.values()), kept


def _by_role(spec: Spec, role: str, param: Param, bias: str | None) -> tuple[Spec | None, str]:
    """The scheme for one param of a layer, or why it is kept."""
    if role == "other" and not spec.is_default:
        return None, _why_kept(param)
    if role == "bias":
        choice = bias or ("" if spec.is_default else "zeros")
        if choice == "keep":
            return None, "bias kept, as asked"
        if choice == "default":
            return schemes.parse("torch-default"), ""
        return (schemes.parse(choice), "") if choice else (spec, "")
    if role == "scale" and not spec.is_default:
        return schemes.parse("ones"), ""
    return spec, ""


def _why_kept(param: Param) -> str:
    if not param.dtype.is_float and param.dtype.category != "complex":
        return f"{param.dtype.name} values are no weights"
    if param.kind == "buffer":
        return "a buffer is not learnt"
    return "neither weight nor bias by its name and shape"


def _parsed(text: str, checkpoint: Checkpoint) -> Spec:
    return schemes.default_for(checkpoint.format) if text == "default" else schemes.parse(text)


def _target(checkpoint: Checkpoint, index: int, role: str, seed: int) -> Target:
    """What a scheme needs to know: the param, and what is known of its layer."""
    param = checkpoint.params[index]
    layer, _, _ = param.path.rpartition(".")
    module = checkpoint.modules.get(layer)
    return Target(
        checkpoint.labels[index],
        param.shape,
        param.dtype,
        seed,
        role=_ROLES[role],
        module=module.type if module else "",
        siblings=_siblings(checkpoint, layer),
    )


_ROLES: dict[str, Role] = {"weight": "weight", "bias": "bias", "scale": "scale", "other": "tensor"}


def _siblings(checkpoint: Checkpoint, layer: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's own params by their last names."""
    at = len(layer) + 1 if layer else 0
    return {checkpoint.params[i].path[at:]: checkpoint.params[i].shape for i in checkpoint.own_params.get(layer, ())}


def _change(checkpoint: Checkpoint, job: _Job) -> Change:
    param = checkpoint.params[job.at]
    fan_in, fan_out = schemes.fans(param.shape, "torch") if len(param.shape) >= 2 else (None, None)
    label = checkpoint.labels[job.at]
    how = f"{job.spec.text} (layer's class assumed)" if job.assumed else job.spec.text
    return Change(label, how, job.role, fan_in, fan_out, also_tied(checkpoint, job.at))


def _drawn(checkpoint: Checkpoint, jobs: list[_Job]) -> dict[str, Storage]:
    """The storages of the drawn params; each is drawn only when its bytes are written."""
    storages: dict[str, Storage] = {}
    for job in jobs:
        param = checkpoint.params[job.at]
        if not param.numel:
            continue
        key = str(param.storage)
        storage = storages.get(key) or checkpoint.storages[key]
        storages[key] = with_values(storage, param, _Draw(job.spec, job.target))
    return storages


@dataclass(frozen=True)
class _Draw:
    """One draw, done anew each time its bytes are needed, and the same each time."""

    spec: Spec
    target: Target

    def __call__(self) -> Buffer:
        return schemes.draw(self.spec, self.target)
