"""Draw params anew with named schemes, each from a generator of its own."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from paramctl.edit.guards import check_editable, check_plain, why_fixed
from paramctl.edit.optimizer_reset import update_optimizers
from paramctl.edit.report import Change, Edit, Kept
from paramctl.errors import UsageError
from paramctl.files.content import Buffer, read
from paramctl.files.sources import Spool
from paramctl.model.checkpoint import Checkpoint, Param, Storage
from paramctl.model.selections.selection import Selection, model_params, select
from paramctl.model.sharing import overlaps, with_tied
from paramctl.schemes import defaults, drawing
from paramctl.schemes.drawn_param import DrawnParam, Role
from paramctl.schemes.scheme import fans
from paramctl.schemes.spec import Spec, parse
from paramctl.schemes.user_function import UserFunction
from paramctl.values.arrays import NewValues, content_of, storage_of, with_values

MAX_SEED = 2**63  # seeds that are drawn; any whole number may be given


class _Choice(NamedTuple):
    """The scheme requested for one param."""

    named: int  # its position, or that of the one tied to it that was selected
    spec: Spec
    exact: bool  # named by its own path: it is drawn or an error says why not
    by_role: bool  # as part of a layer, which gives each role its own


class _Job(NamedTuple):
    """One param that is drawn: its position in `checkpoint.params`, and how."""

    at: int
    spec: Spec
    role: str
    drawn_param: DrawnParam
    assumed: bool  # that the layer is a Linear or a Conv, since the file names no class


def init(
    checkpoint: Checkpoint,
    layers: Sequence[str] = (),
    scheme: Sequence[str] = ("default",),
    *,
    seed: int | None = None,
    bias: str | None = None,
    reset_optimizer: bool = False,
) -> Edit:
    """Draw the params of `layers` with `scheme`: one scheme for all layers, or one for each.

    Without layers the whole model is drawn. Of a layer, the weights (2 or more dimensions) get the scheme, biases
    become zeros (or what `bias` says: `zeros`, `keep`, `default` or a scheme), and the scale of a normalisation
    becomes ones; a param named by its full path gets the scheme itself. Each param's generator is seeded with
    `generators.seed_for(seed, path)`. With `reset_optimizer` the optimizer state of the drawn params is reset.
    Raises UsageError if a scheme cannot apply, NoMatch if a layer names nothing.
    """
    if seed is None:
        seed = secrets.randbelow(MAX_SEED)
    if type(seed) is not int:
        raise UsageError(f"the seed {seed!r} is not a whole number")
    bias = _checked_bias(bias)
    model = model_params(checkpoint)
    chosen: dict[int, _Choice] = {}
    named: set[int] = set()
    notes: list[str] = []
    settled: set[int] = set()  # named by their full path: no layer takes that back
    for patterns, text in _paired(layers, scheme):
        spec = _spec_of(text, checkpoint)
        selection = select(checkpoint, patterns, among=model) if patterns else Selection(model, frozenset())
        if selection.under:
            notes.append(f"selected inside '{selection.under}'")
        named.update(selection.indices)
        exact = {checkpoint.tied_to.get(i, i) for i in selection.exact}
        choices = _choices(checkpoint, selection, spec)
        chosen.update((at, choice) for at, choice in choices.items() if at in exact or at not in settled)
        settled |= exact
    jobs, kept = _plan(checkpoint, chosen, seed, bias)
    drawn = [job.at for job in jobs]
    check_editable(checkpoint, drawn, named)
    edited = checkpoint.with_storages(_drawn_storages(checkpoint, jobs))
    edited, moments, stale = update_optimizers(checkpoint, edited, drawn, reset_optimizer)
    notes += [*_assumption_notes(jobs), *_shared_bytes_notes(checkpoint, drawn), *stale]
    changes = (*_changes(checkpoint, jobs), *moments)
    return Edit(edited, changes, tuple(kept), seed, tuple(dict.fromkeys(notes)))


def _checked_bias(bias: str | None) -> str | None:
    """Return `bias` without spaces around it. Raises UsageError if it names no scheme."""
    text = None if bias is None else bias.strip()
    if text is not None and text not in ("keep", "default"):
        parse(text)
    return text


def _paired(layers: Sequence[str], scheme: Sequence[str]) -> list[tuple[list[str], str]]:
    """Return selections with their schemes. Raises UsageError if their numbers differ."""
    scheme = scheme or ("default",)
    if len(scheme) == 1:
        return [(list(layers), scheme[0])]
    if len(scheme) != len(layers):
        raise UsageError(
            f"{len(layers)} --layer and {len(scheme)} --scheme do not pair up",
            hint="give one --scheme for all layers, or one for each --layer, in order",
        )
    return [([layer], text) for layer, text in zip(layers, scheme, strict=True)]


def _choices(checkpoint: Checkpoint, selection: Selection, spec: Spec) -> dict[int, _Choice]:
    """Return the requested scheme of each selected param, by the first position of its group of ties.

    If no weight is selected (only biases, or a normalisation), the params get the scheme itself, except statistics and
    integers, unless nothing else was named.
    """
    roles = {role_of(checkpoint, i) for i in selection.indices if i not in selection.exact}
    found: dict[int, _Choice] = {}
    for index in selection.indices:
        other = roles != {"other"} and role_of(checkpoint, index) == "other"
        exact = index in selection.exact
        by_role = not exact and ("weight" in roles or other)
        leader = checkpoint.tied_to.get(index, index)
        if leader not in found or not by_role:
            found[leader] = _Choice(index, spec, exact, by_role)
    return found


def role_of(checkpoint: Checkpoint, at: int) -> str:
    """Return the role of a param: `weight`, `bias`, `scale`, or `other`, which drawing a layer leaves alone.

    What a known class says wins over the number of dimensions.
    """
    param = checkpoint.params[at]
    layer, _, name = param.path.rpartition(".")
    if not param.dtype.is_float and param.dtype.category != "complex":
        return "other"
    if param.kind == "buffer" or is_mask(param):
        return "other"
    if _class_of(checkpoint, layer) in defaults.NORMS:
        return {"weight": "scale", "bias": "bias"}.get(name, "other")
    if len(param.shape) >= 2:
        return "weight"
    if len(param.shape) == 1 and name in ("weight", "gamma", "scale"):
        return "scale"
    return "bias" if name.startswith("bias") or name == "beta" else "other"


def is_mask(param: Param) -> bool:
    """Return whether a param is the causal mask of an attention layer, which some models save as `bias`."""
    layer, _, name = param.path.rpartition(".")
    if len(param.shape) < 2:
        return False
    return name == "masked_bias" or (name == "bias" and _ATTENTION(layer.rpartition(".")[2]) is not None)


_ATTENTION = re.compile(r"(?:.*_)?(?:attn|attention)", re.IGNORECASE).fullmatch


def _class_of(checkpoint: Checkpoint, layer: str) -> str:
    """Return the class of a layer, if it is one of torch.nn's that are known; else ""."""
    module = checkpoint.modules.get(layer)
    if module:
        return defaults.known_class(module.full_name)
    above, _, name = layer.rpartition(".")
    held = checkpoint.own_params.get(above, ()) if name == "out_proj" else ()
    names = {checkpoint.params[i].path.rpartition(".")[2] for i in held}
    return "NonDynamicallyQuantizableLinear" if names & {"in_proj_weight", "q_proj_weight"} else ""


def _is_in_transformer(checkpoint: Checkpoint, layer: str) -> bool:
    """Return whether a `torch.nn.Transformer` is a layer, or holds it."""
    above = [layer[:i] for i, c in enumerate(layer) if c == "."]
    found = (checkpoint.modules.get(path) for path in ("", *above, layer))
    return any(module is not None and module.full_name == defaults.TRANSFORMER for module in found)


def _plan(
    checkpoint: Checkpoint, chosen: Mapping[int, _Choice], seed: int, bias: str | None
) -> tuple[list[_Job], list[Kept]]:
    """Return how each chosen param is drawn or why it is kept; everything is checked before anything is drawn."""
    jobs: list[_Job] = []
    kept: list[Kept] = []
    siblings: dict[str, Mapping[str, tuple[int, ...]]] = {}
    for at, choice in sorted(chosen.items()):
        param = checkpoint.params[at]
        if not choice.exact and (fixed := why_fixed(param)):
            kept.append(Kept(checkpoint.labels[choice.named], f"it {fixed}"))
            continue
        check_plain(param)
        role = role_of(checkpoint, at)
        spec, why = _by_role(choice.spec, role, param, bias) if choice.by_role else (choice.spec, "")
        drawn_param = _drawn_param(checkpoint, at, role, seed, siblings)
        resolved, assumed = defaults.resolve(spec, drawn_param) if spec else (None, False)
        if spec is None or (resolved is None and choice.by_role):
            kept.append(Kept(checkpoint.labels[choice.named], why or _why_kept(param)))
            continue
        jobs.append(_Job(at, drawing.check(spec, drawn_param), role, drawn_param, assumed))
    return jobs, kept


def _by_role(spec: Spec, role: str, param: Param, bias: str | None) -> tuple[Spec | None, str]:
    """Return the scheme for one param of a layer, or None and why it is kept."""
    if role == "other" and not (spec.is_default and _has_default(param)):
        return None, _why_kept(param)
    if role == "bias":
        choice = bias or ("" if spec.is_default else "zeros")
        if choice == "keep":
            return None, "bias kept as requested"
        if choice == "default":
            return parse("torch-default"), ""
        return (parse(choice), "") if choice else (spec, "")
    if role == "scale" and not spec.is_default:
        return parse("ones"), ""
    return spec, ""


def _has_default(param: Param) -> bool:
    """Return whether a framework's default may know the param: of buffers, only statistics of a normalisation."""
    return param.kind != "buffer" or param.path.rsplit(".", 1)[-1] in defaults.STATE


def _why_kept(param: Param) -> str:
    """Return the reason why a param is kept."""
    if not param.dtype.is_float and param.dtype.category != "complex":
        return f"{param.dtype.name} values are not weights"
    if is_mask(param):
        return "a causal mask is not learnt"
    if param.kind == "buffer":
        return "a buffer is not learnt"
    if param.path.rsplit(".", 1)[-1] in defaults.RUNNING:
        return "running statistics are kept"
    return "neither a weight nor a bias, by its name and shape"


def _spec_of(text: str, checkpoint: Checkpoint) -> Spec:
    """Return the spec of a scheme's text; `default` depends on the format of the file."""
    return defaults.default_for(checkpoint.format) if text == "default" else parse(text)


def _drawn_param(
    checkpoint: Checkpoint, index: int, role: str, seed: int, siblings: dict[str, Mapping[str, tuple[int, ...]]]
) -> DrawnParam:
    """Return the description of a param for its scheme; `siblings` caches the shapes of a layer's params."""
    param = checkpoint.params[index]
    layer, _, _ = param.path.rpartition(".")
    module = checkpoint.modules.get(layer)
    if layer not in siblings:
        siblings[layer] = _siblings(checkpoint, layer)
    return DrawnParam(
        checkpoint.labels[index],
        param.shape,
        param.dtype,
        seed,
        role=_ROLES[role],
        module=_class_of(checkpoint, layer),
        is_in_transformer=_is_in_transformer(checkpoint, layer),
        padding_idx=module.padding_idx if module else None,
        siblings=siblings[layer],
    )


_ROLES: dict[str, Role] = {"weight": "weight", "bias": "bias", "scale": "scale", "other": "tensor"}


def _siblings(checkpoint: Checkpoint, layer: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's own params by their last names."""
    at = len(layer) + 1 if layer else 0
    return {checkpoint.params[i].path[at:]: checkpoint.params[i].shape for i in checkpoint.own_params.get(layer, ())}


def _changes(checkpoint: Checkpoint, jobs: Sequence[_Job]) -> tuple[Change, ...]:
    """Return the report of each drawn param: its first path, and the paths tied to it."""
    labels = checkpoint.labels
    groups = {group[0]: group for group in checkpoint.groups()}
    changes = []
    for job in jobs:
        shape = checkpoint.params[job.at].shape
        fan_in, fan_out = fans(shape, "torch") if len(shape) >= 2 else (None, None)
        how = f"{job.spec.text} (assumed)" if job.assumed else job.spec.text
        also = tuple(labels[i] for i in groups.get(job.at, ())[1:])
        changes.append(Change(labels[job.at], how, job.role, fan_in, fan_out, also))
    return tuple(changes)


def _assumption_notes(jobs: Sequence[_Job]) -> list[str]:
    """Return a note if the class of a layer was assumed."""
    if not any(job.assumed for job in jobs):
        return []
    return ["assumed: the file names no class for these layers, so they were taken for Linear, Conv or the like"]


def _shared_bytes_notes(checkpoint: Checkpoint, drawn: Sequence[int]) -> list[str]:
    """Return notes on params that are kept but share bytes with a drawn one."""
    changed = with_tied(checkpoint, drawn)
    labels = checkpoint.labels
    return [
        f"{', '.join(labels[i] for i in group if i not in changed)} may change too: bytes shared with"
        f" {', '.join(labels[i] for i in group if i in changed)}"
        for group in overlaps(checkpoint)
        if 0 < len(changed.intersection(group)) < len(group)
    ]


def _drawn_storages(checkpoint: Checkpoint, jobs: Sequence[_Job]) -> dict[str, Storage]:
    """Return the storages of the drawn params; values are drawn when their bytes are written."""
    changes: dict[str, list[NewValues]] = {}
    results: Spool | None = None
    checked: set[str] = set()
    for job in jobs:
        param = checkpoint.params[job.at]
        if not param.numel:
            continue
        make: Callable[[], Buffer] = partial(drawing.draw, job.spec, job.drawn_param)
        if isinstance(job.spec.scheme, UserFunction):
            # It may fail, and may return something else when it is called again: both must not be noticed
            # when half of the file has gone down a pipe.
            results = results or Spool("what the function made")
            make = results.keep(drawing.draw(job.spec, job.drawn_param, _current_values(checkpoint, param, checked)))
        elif job.spec.is_extreme:
            make()
        changes.setdefault(str(param.storage), []).append(NewValues(param, make))
    return {key: with_values(checkpoint.storages[key], *made) for key, made in changes.items()}


def _current_values(checkpoint: Checkpoint, param: Param, checked: set[str]) -> bytes:
    """Return the present values of a param, little-endian in C order, from which a user's function starts.

    The checksum of its storage is verified, unless the storage is in `checked` already.
    """
    key, storage = str(param.storage), storage_of(checkpoint, param)
    if param.nbytes < storage.nbytes and key not in checked:
        storage.check(key)
        checked.add(key)
    return bytes(read(content_of(checkpoint, param), 0, param.nbytes))
