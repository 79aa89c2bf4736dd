"""Follow params over the checkpoints of a training run: norms, updates, gradients and moments, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.errors import NoMatch, Unsupported, UsageError, some
from paramctl.model.checkpoint import Param, blamed
from paramctl.progress import ProgressCallback, ignore
from paramctl.stats.followed_params import Followed
from paramctl.stats.running_moments import NONE, Moments, Running
from paramctl.stats.runs import Open, Run, RunFile
from paramctl.stats.stats import Summaries, magnitudes
from paramctl.values.scan import Scan, aligned, distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_REASONS = 5  # params of a checkpoint of which it is said why they are left out
QUARTER = 0.25  # of two float64, whose difference float64 can always hold
SLICE = 1 << 16  # values compared at a time: as float64 they stay in a processor's cache


@dataclass(frozen=True, slots=True)
class Step:
    """Figures of one checkpoint, of one param or, if `path` is None, of all selected ones; None if unknown.

    `norm`, `mean` and `std` (sample) are of the finite values, `nan` and `inf` count the others. `update` is the
    norm of the difference from the checkpoint before, over the params that both have; `ratio` is the update
    divided by the norm those params had before. `grad` and `moments` are norms. A norm that float64 cannot hold
    is infinite.
    """

    file: str
    step: int | float | None
    path: str | None = None
    norm: float | None = None
    update: float | None = None
    ratio: float | None = None
    grad: float | None = None
    moments: Mapping[str, float | None] = field(default_factory=dict)
    mean: float | None = None
    std: float | None = None
    nan: int = 0
    inf: int = 0


class Tracked(NamedTuple):
    """The figures of one checkpoint, and remarks on them."""

    steps: tuple[Step, ...]
    remarks: tuple[str, ...] = ()


class _Measured(NamedTuple):
    """Moments of values, of their differences from the values before, of the values before, and of stored tensors."""

    values: Moments = NONE
    update: Moments | None = None
    before: Moments = NONE
    stored: Mapping[str, Moments] = {}

    def __add__(self, other: object) -> _Measured:
        """Return what both measure, together."""
        if not isinstance(other, _Measured):
            return NotImplemented
        stored = dict(self.stored)
        for name, moments in other.stored.items():
            stored[name] = stored.get(name, NONE) + moments
        updates = [update for update in (self.update, other.update) if update is not None]
        return _Measured(
            self.values + other.values,
            sum(updates, NONE) if updates else None,
            self.before + other.before,
            stored,
        )


def track(
    run: Run, selections: Sequence[str], open: Open, *, each: bool = False, on_progress: ProgressCallback = ignore
) -> Iterator[Tracked]:
    """Yield the figures of each checkpoint of a run, for all selected params together or, with `each`, one by one.

    Without selections the whole model is followed; integers, flags and running statistics are left out beside other
    params, unless they were named one by one. Tied params count once. Two checkpoints are open at a time. The selected
    values of each are read twice, for itself and to compare the next with; gradients and moments once. Raises
    FormatError if a checksum is wrong.
    """
    before: Followed | None = None
    for run_file in run.run_files:
        checkpoint = open(run_file.file)
        try:
            with blamed(checkpoint):
                followed = Followed(checkpoint, selections)
        except NoMatch as error:
            yield Tracked((Step(run_file.file, run_file.step),), (f"{error.what}: nothing to follow here",))
            continue
        pair = _Pair(followed, before, on_progress)
        measured = {path: pair.measured(path) for path in followed.unique} if each else None
        whole = None if each else sum((pair.measured(path) for path in followed.unique), _Measured())
        rows = measured.items() if measured is not None else [(None, whole or _Measured())]
        steps = tuple(_step(run_file, path, one, run.moments) for path, one in rows)
        yield Tracked(steps, (*pair.remarks(), *_too_large(steps)))
        before = followed


def _step(run_file: RunFile, path: str | None, measured: _Measured, names: Iterable[str]) -> Step:
    """Return the figures of one checkpoint."""
    values = measured.values
    return Step(
        run_file.file,
        run_file.step,
        path,
        norm=_norm(values),
        update=_norm(measured.update),
        ratio=_ratio(measured.update, measured.before),
        grad=_norm(measured.stored.get("grad")),
        moments={name: _norm(measured.stored.get(name)) for name in names},
        mean=float(values.mean) if values.finite else None,
        std=values.std,
        nan=values.nan,
        inf=values.inf,
    )


def _norm(moments: Moments | None) -> float | None:
    """Return the norm of finite values, or None if there are none."""
    return moments.l2 if moments is not None and moments.finite else None


def _ratio(update: Moments | None, before: Moments) -> float | None:
    """Return the norm of the update divided by the norm before, even if float64 cannot hold those norms."""
    known = update is not None and update.finite and before.finite and before.norm
    return float(update.norm / before.norm) if update is not None and known else None


def _too_large(steps: Iterable[Step]) -> Iterator[str]:
    """Yield a remark for each step with norms that are infinite."""
    for step in steps:
        norms = {"norm": step.norm, "update": step.update, "grad": step.grad, **step.moments}
        if names := [name for name, norm in norms.items() if norm == inf]:
            of = "" if step.path is None else f" of {step.path or '.'}"
            yield f"larger than float64 can hold, hence infinite: {', '.join(names)}{of}"


class _Pair:
    """One checkpoint and the one before it, measured side by side."""

    def __init__(self, followed: Followed, before: Followed | None, on_progress: ProgressCallback) -> None:
        self._followed, self._before = followed, before
        self._unread: dict[str, str] = {}
        self._reshaped: list[str] = []
        self._odd: dict[str, int] = {}
        checkpoint = followed.checkpoint
        observations = [one.at for stored in followed.stored.values() for one in stored]
        alone = [i for path, i in followed.unique.items() if before is None or path not in before.at]
        self._scans = (
            Scan(checkpoint, on_progress, sum(checkpoint.params[i].nbytes for i in followed.unique.values())),
            Scan(before.checkpoint) if before is not None else None,
        )
        self._summaries = Summaries(checkpoint, [*observations, *alone], on_progress=on_progress)

    def measured(self, path: str) -> _Measured:
        """Return the figures of the param of that path."""
        at = self._followed.unique[path]
        stored: dict[str, Moments] = {}
        for one in self._followed.stored[at]:
            found = self._summarised(one.at, f"{one.name} of {path}")
            stored[one.name] = stored.get(one.name, NONE) + found
            self._odd[one.name] = self._odd.get(one.name, 0) + found.nan + found.inf
        compared = self._compared(path, at)
        if compared is None:
            return _Measured(self._summarised(at, path), stored=stored)
        return compared._replace(stored=stored)

    def _summarised(self, at: int, name: str) -> Moments:
        """Return the moments of a param alone."""
        with blamed(self._followed.checkpoint):
            summary = self._summaries.of(at)
        if summary.why:
            self._unread[name] = summary.why
        return summary.moments

    def _compared(self, path: str, at: int) -> _Measured | None:
        """Return the figures of a param and its update; None if there is nothing to compare it with."""
        other = None if self._before is None else self._before.at.get(path)
        if self._before is None or other is None:
            return None
        param, old = self._followed.checkpoint.params[at], self._before.checkpoint.params[other]
        if param.shape != old.shape:
            self._reshaped.append(path)
            return None
        try:
            return self._read(param, old)
        except (UsageError, Unsupported) as error:
            self._unread[f"the update of {path}"] = error.what
            return None

    def _read(self, param: Param, old: Param) -> _Measured:
        """Read a param and its values before, side by side."""
        import numpy as np

        param, old, times = _without_shared_repeats(param, old)
        values, update, far, before = Running(), Running(), Running(), Running()
        for x, y in map(_widened, aligned(self._numbers(0, param), self._numbers(1, old), most=SLICE)):
            with np.errstate(all="ignore"):
                apart = _magnitudes_if_complex(x - y)
                if np.isinf(apart).any():
                    _add_any(far, _magnitudes_if_complex(x * QUARTER - y * QUARTER))
                else:
                    _add_any(update, apart)
            _add_any(values, _magnitudes_if_complex(x))
            _add_any(before, _magnitudes_if_complex(y))
        moved = update.moments + far.moments.scaled(1 / QUARTER)
        return _Measured(values.moments.times(times), moved.times(times), before.moments.times(times))

    def _numbers(self, side: int, param: Param) -> Iterator[Array]:
        """Yield the values of a param in C order."""
        followed, scan = (self._followed, self._before)[side], self._scans[side]
        assert followed is not None and scan is not None
        if param.dtype.category == "bits" or param.layout.startswith("sparse"):
            raise Unsupported(f"a {param.layout} tensor of {param.dtype.name} is not compared")
        with blamed(followed.checkpoint):
            yield from scan.values(param)

    def remarks(self) -> Iterator[str]:
        """Yield remarks on the figures: params that are not in both checkpoints, and params that could not be read."""
        if self._before is not None:
            new = [path for path in self._followed.unique if path not in self._before.at]
            gone = [path for path in self._before.unique if path not in self._followed.at]
            apart = {"new": new, "missing": gone, "of another shape": self._reshaped}
            for what, paths in apart.items():
                if paths:
                    yield f"{what}: {some(paths)}; the update covers the others"
        for name, why in islice(self._unread.items(), MAX_REASONS):
            yield f"left out: {name} ({why})"
        if len(self._unread) > MAX_REASONS:
            yield f"left out: {len(self._unread) - MAX_REASONS:,} more"
        for name, count in self._odd.items():
            if count:
                yield f"NaN or infinite in {name}: {count:,}"


def _without_shared_repeats(a: Param, b: Param) -> tuple[Param, Param, int]:
    """Return two params without the axes that both repeat, and the number of repeats."""
    axes = [[step == 0 for step in param.strides] for param in (a, b)]
    if axes[0] != axes[1] or a.quantizer or b.quantizer:
        return a, b, 1
    (a, times), (b, _) = distinct(a), distinct(b)
    return a, b, times


def _widened(parts: Iterable[Array]) -> Iterator[Array]:
    """Return the values as float64, or complex128."""
    import numpy as np

    return (part.astype(np.complex128 if part.dtype.kind == "c" else np.float64) for part in parts)


def _magnitudes_if_complex(values: Array) -> Array:
    """Return real values as they are, and the magnitudes of complex ones."""
    return magnitudes(values) if values.dtype.kind == "c" else values


def _add_any(running: Running, values: Array) -> None:
    """Add float64 values that may contain NaN or infinities."""
    import numpy as np

    finite = running.without_odd(values)
    if finite.size:
        zeros = finite.size - int(np.count_nonzero(finite))
        running.add(finite, float(finite.min()), float(finite.max()), zeros)
