"""Draw params anew with named schemes, each from a generator of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from paramctl.edit import weight_norm
from paramctl.edit.guards import check_editable, check_plain, why_fixed
from paramctl.edit.layer_roles import class_of, describe, is_mask, role_of
from paramctl.edit.optimizer_reset import update_optimizers
from paramctl.edit.report import Change, Edit, Kept
from paramctl.errors import NoMatch, UsageError, some
from paramctl.files.content import Buffer, read
from paramctl.files.sources import Spool
from paramctl.model.checkpoint import Checkpoint, Param, Storage
from paramctl.model.selections.selection import Selection, model_params, select
from paramctl.model.sharing import overlaps, with_tied
from paramctl.schemes import defaults, drawing
from paramctl.schemes.drawn_param import DrawnParam
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
    direction: int | None = None  # of weight normalisation, whose norm this param becomes


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
    Raises UsageError if a scheme cannot apply, NoMatch if a layer names nothing, or nothing that can be drawn.
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
        notes += selection.notes
        named.update(selection.indices)
        exact = {checkpoint.tied_to.get(i, i) for i in selection.exact}
        choices = _choices(checkpoint, selection, spec)
        chosen.update((at, choice) for at, choice in choices.items() if at in exact or at not in settled)
        settled |= exact
    jobs, kept = _plan(checkpoint, chosen, seed, bias)
    if not jobs:
        raise _nothing_drawn(kept)
    drawn = [job.at for job in jobs]
    check_editable(checkpoint, drawn, named)
    edited = checkpoint.with_storages(_drawn_storages(checkpoint, jobs))
    edited, moments, stale = update_optimizers(checkpoint, edited, drawn, reset_optimizer)
    notes += [*_assumption_notes(jobs), *_shared_bytes_notes(checkpoint, drawn), *stale]
    changes = (*_changes(checkpoint, jobs), *moments)
    return Edit(edited, changes, tuple(kept), seed, tuple(dict.fromkeys(notes)))


def _nothing_drawn(kept: Sequence[Kept]) -> NoMatch:
    """Return the error for a selection without a param that can be drawn."""
    reasons = dict.fromkeys(f"{one.path or '.'}: {one.why}" for one in kept)
    return NoMatch(f"nothing can be drawn: {some([*reasons]) if kept else 'there are no parameters'}")


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
        by_role = not exact and ("weight" in roles or other or _is_no_matrix(checkpoint, index, spec))
        leader = checkpoint.tied_to.get(index, index)
        if leader not in found or not by_role:
            found[leader] = _Choice(index, spec, exact, by_role)
    return found


def _is_no_matrix(checkpoint: Checkpoint, at: int, spec: Spec) -> bool:
    """Return whether a param is the scale or bias of a normalisation, and the scheme is for matrices alone."""
    param = checkpoint.params[at]
    is_norm = class_of(checkpoint, param.path.rpartition(".")[0]) in defaults.NORMS
    return is_norm and drawing.why_not(spec, (param.numel,), param.dtype) is not None


def _plan(
    checkpoint: Checkpoint, chosen: Mapping[int, _Choice], seed: int, bias: str | None
) -> tuple[list[_Job], list[Kept]]:
    """Return how each chosen param is drawn or why it is kept; everything is checked before anything is drawn."""
    jobs: list[_Job] = []
    kept: list[Kept] = []
    magnitudes: list[int] = []
    siblings: dict[str, Mapping[str, tuple[int, ...]]] = {}
    for at, choice in sorted(chosen.items()):
        param = checkpoint.params[at]
        if not choice.exact and (fixed := why_fixed(param)):
            kept.append(Kept(checkpoint.labels[choice.named], f"it {fixed}"))
            continue
        check_plain(param)
        role = role_of(checkpoint, at)
        if role == "magnitude" and not choice.exact:
            magnitudes.append(at)
            continue
        spec, why = _by_role(choice.spec, role, param, bias) if choice.by_role else (choice.spec, "")
        drawn_param = describe(checkpoint, at, role, seed, siblings)
        resolved, assumed = defaults.resolve(spec, drawn_param) if spec else (None, False)
        if spec is None or (resolved is None and not choice.exact):
            kept.append(Kept(checkpoint.labels[choice.named], why or _why_kept(param)))
            continue
        jobs.append(_Job(at, drawing.check(spec, drawn_param), role, drawn_param, assumed))
    return _with_magnitudes(checkpoint, magnitudes, jobs, kept), kept


def _with_magnitudes(
    checkpoint: Checkpoint, magnitudes: Sequence[int], jobs: Sequence[_Job], kept: list[Kept]
) -> list[_Job]:
    """Return the jobs, with those of magnitudes behind them; a magnitude whose direction is kept is kept, too.

    A weight of zeros needs a magnitude of zero: no direction has the norm 0 without becoming NaN.
    """
    found = {job.at: job for job in jobs}
    behind: list[_Job] = []
    for at in magnitudes:
        direction = weight_norm.direction_of(checkpoint, at)
        job = found.get(checkpoint.tied_to.get(direction, direction)) if direction is not None else None
        if job is None:
            kept.append(Kept(checkpoint.labels[at], "its direction is kept"))
        elif job.spec.text in ("zeros", "constant:0"):
            del found[job.at]
            kept.append(Kept(checkpoint.labels[job.at], "its magnitude becomes zero"))
            behind.append(job._replace(at=at, role="magnitude"))
        else:
            behind.append(job._replace(at=at, role="magnitude", direction=job.at))
    return [*found.values(), *behind]


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


def _changes(checkpoint: Checkpoint, jobs: Sequence[_Job]) -> tuple[Change, ...]:
    """Return the report of each drawn param: its first path, and the paths tied to it."""
    labels = checkpoint.labels
    groups = {group[0]: group for group in checkpoint.groups()}
    changes = []
    for job in sorted(jobs, key=lambda job: job.at):
        shape = checkpoint.params[job.at].shape
        fan_in, fan_out = fans(shape, "torch") if len(shape) >= 2 and job.role != "magnitude" else (None, None)
        how = f"{job.spec.text} (assumed)" if job.assumed else job.spec.text
        if job.direction is not None:
            how = f"norm of {labels[job.direction]}"
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
    made: dict[int, Callable[[], Buffer]] = {}
    results: Spool | None = None
    checked: set[str] = set()
    for job in jobs:
        param = checkpoint.params[job.at]
        if not param.numel:
            continue
        make: Callable[[], Buffer] = partial(drawing.draw, job.spec, replace(job.drawn_param, shape=param.shape))
        if job.direction is not None:
            make = partial(_norm, made[job.direction], checkpoint.params[job.direction], param)
        elif isinstance(job.spec.scheme, UserFunction):
            # It may fail, and may return something else when it is called again: both must not be noticed
            # when half of the file has gone down a pipe.
            results = results or Spool("what the function made")
            make = results.keep(drawing.draw(job.spec, job.drawn_param, _current_values(checkpoint, param, checked)))
        elif job.spec.is_extreme:
            make()
        made[job.at] = make
        changes.setdefault(str(param.storage), []).append(NewValues(param, make))
    return {key: with_values(checkpoint.storages[key], *made) for key, made in changes.items()}


def _norm(drawn: Callable[[], Buffer], direction: Param, magnitude: Param) -> Buffer:
    """Return the bytes of a magnitude, from those of its direction as they are drawn."""
    return weight_norm.norm(drawn(), direction, magnitude)


def _current_values(checkpoint: Checkpoint, param: Param, checked: set[str]) -> bytes:
    """Return the present values of a param, little-endian in C order, from which a user's function starts.

    The checksum of its storage is verified, unless the storage is in `checked` already.
    """
    key, storage = str(param.storage), storage_of(checkpoint, param)
    if param.nbytes < storage.nbytes and key not in checked:
        storage.check(key)
        checked.add(key)
    return bytes(read(content_of(checkpoint, param), 0, param.nbytes))
