"""Summarise the values of params in one pass: moments, extremes, NaN and infinities, and a histogram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.errors import Unsupported, UsageError
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.dtypes import BY_NAME, PAIRS, DType
from paramctl.progress import ProgressCallback, ignore
from paramctl.stats.histogram import EMPTY, Binning, Histogram
from paramctl.stats.running_moments import NONE, Moments, Running, RunningIntegers, moments_of_counts, moments_of_few
from paramctl.values.float_bits import BITWISE, Widened
from paramctl.values.scan import Scan, distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

COUNTED = 16  # bits of an element up to which it is cheaper to count each of its values than to add them up
FEW = 32  # elements
HALF = "float4_e2m1fn"
HOLDERS = ("values", "buffer")  # the component of a composite tensor that its values are in


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of many values; `why` is the reason if there are none."""

    moments: Moments = NONE
    histogram: Histogram = EMPTY
    why: str = ""

    @property
    def figures(self) -> Figures:
        """The printed figures."""
        moments = self.moments
        if self.why and not moments.count:  # a layer has those of its other tensors
            return Figures(*[None] * 9)
        mean = low = high = l2 = None
        if moments.finite:
            low, high = moments.low + 0, moments.high + 0  # not -0
            mean, l2 = float(moments.mean), moments.l2
        return Figures(moments.count, mean, moments.std, low, high, l2, moments.zeros, moments.nan, moments.inf)

    def __add__(self, other: Summary) -> Summary:
        """Return the summary of the values of both."""
        return Summary(self.moments + other.moments, self.histogram + other.histogram, self.why or other.why)


class Figures(NamedTuple):
    """The printed figures of many values; None if there is none. All but `count`, `nan` and `inf` are of finite values.

    `std` is the sample standard deviation (n − 1), `l2` the Euclidean norm.
    """

    count: int | None  # type: ignore[assignment]  # the figure of that name, not how often a tuple holds something
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    l2: float | None
    zeros: int | None
    nan: int | None
    inf: int | None


class Row(NamedTuple):
    """The summary of one param, at its position in `params`, or of all own params of a layer."""

    path: str
    at: int | None
    summary: Summary
    tensors: int = 1


def stats(
    checkpoint: Checkpoint,
    indices: Iterable[int] | None = None,
    *,
    by_layer: bool = False,
    histograms: bool = False,
    on_progress: ProgressCallback = ignore,
) -> Iterator[Row]:
    """Yield a row for each param at `indices`, or for each layer with own params there, in the file's order.

    Complex values count by their magnitude, quantized ones by their dequantized value. Values that an expanded tensor
    repeats count each time; values that a sparse tensor does not store are zero. In a layer, tied params count once,
    and integers, such as `num_batches_tracked`, count only where there is nothing else.
    Raises FormatError if a checksum is wrong.
    """
    chosen = range(len(checkpoint.params)) if indices is None else sorted(indices)
    reader = Summaries(checkpoint, chosen, histograms=histograms, on_progress=on_progress)
    if not by_layer:
        yield from (Row(checkpoint.params[i].path, i, reader.of(i)) for i in chosen)
        return
    among = set(chosen)
    for layer, members in checkpoint.own_params.items():
        own = _without_counters(checkpoint, [i for i in members if i in among])
        once = {checkpoint.tied_to.get(i, i): i for i in own}
        if own:
            summed = sum((reader.of(i) for i in once.values()), Summary())
            yield Row(layer, None, summed, len(own))


def _without_counters(checkpoint: Checkpoint, indices: list[int]) -> list[int]:
    """Return the params of a layer without integers and flags, unless there is nothing else."""
    learnt = [i for i in indices if checkpoint.params[i].dtype.category not in ("int", "bool")]
    return learnt or indices


class Summaries:
    """Summaries of params of one checkpoint; values of tied params are read once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        indices: Iterable[int],
        *,
        histograms: bool = False,
        on_progress: ProgressCallback = ignore,
    ) -> None:
        self._checkpoint = checkpoint
        self._histograms = histograms
        views = {checkpoint.tied_to.get(i, i) for i in indices}
        total = sum(_value_tensor(checkpoint.params[i]).nbytes for i in views)
        self._scan = Scan(checkpoint, on_progress, total)
        self._known: dict[int, Summary] = {}

    def of(self, index: int) -> Summary:
        """Return the summary of the param at a position. Raises FormatError if a checksum is wrong."""
        leader = self._checkpoint.tied_to.get(index, index)
        if leader not in self._known:
            try:
                self._known[leader] = self._read(self._checkpoint.params[leader])
            except (UsageError, Unsupported) as error:
                self._known[leader] = Summary(why=error.what)
        return self._known[leader]

    def _read(self, param: Param) -> Summary:
        """Return the summary of a param. Raises Unsupported if its values have no meaning as numbers."""
        held = _value_tensor(param)
        if held.dtype.category == "bits" and held.dtype.name != PAIRS:
            raise Unsupported(f"{param.path or '.'} is {held.dtype.name}, whose bits have no defined meaning")
        if held.dtype.category == "quantized" and held.quantizer is None:
            raise Unsupported(f"{param.path or '.'} is {held.dtype.name} with an unknown quantizer")
        view, times = distinct(held)
        moments, histogram = self._moments(view)
        if times > 1:
            moments, histogram = moments.times(times), histogram.times(times)
        if implied := max(prod(param.shape) - held.numel, 0) if param.layout.startswith("sparse") else 0:
            zero = 0 if held.dtype.category in ("int", "bool") else 0.0
            moments += Moments(implied, implied, low=zero, high=zero, zeros=implied)
            histogram += _zeros(implied) if self._histograms else EMPTY
        return Summary(moments, histogram)

    def _moments(self, param: Param) -> tuple[Moments, Histogram]:
        """Return the moments and the histogram of a param, computed in the cheapest way for its dtype."""
        small = param.dtype.bits <= COUNTED and param.dtype.category not in ("complex", "quantized")
        plain = not param.flags and not self._histograms and param.dtype.name != PAIRS
        if param.numel <= FEW and plain and (small or param.dtype.name in BITWISE):
            return self._from_few(param), EMPTY
        if param.dtype.name in BITWISE and not param.flags and not (small and self._histograms):
            return self._from_floats(param)
        return self._from_counts(param) if small else self._from_converted(param)

    def _from_few(self, param: Param) -> Moments:
        """Return the moments of few elements, each converted by itself."""
        dtype, floats = param.dtype, BITWISE.get(param.dtype.name)
        values: list[float] = []
        for block in self._scan.stored(param, in_order=False):
            values += floats.listed(block) if floats else _every_value(dtype)[block].tolist()
        moments = moments_of_few(values)
        return _with_integer_extremes(moments) if dtype.category in ("int", "bool") else moments

    def _from_floats(self, param: Param) -> tuple[Moments, Histogram]:
        """Return moments and histogram of IEEE floats, whose bits tell extremes and NaN at once."""
        import numpy as np

        floats = BITWISE[param.dtype.name]
        widened, collector = Widened(floats), _Collector(self._histograms)
        for block in self._scan.stored(param, in_order=False):
            ends = floats.extremes(block)
            if ends is not None:
                collector.add(widened.values(block), *ends)
                continue
            with np.errstate(invalid="ignore"):  # signalling NaNs
                collector.add_any(widened.values(block))
        return collector.found

    def _from_counts(self, param: Param) -> tuple[Moments, Histogram]:
        """Return moments and histogram of elements so small that each possible value is counted."""
        import numpy as np

        bits = param.dtype.bits
        counts = np.zeros(1 << bits, np.int64)
        for block in self._scan.stored(param, in_order=False):
            counts += np.bincount(block, minlength=len(counts))
        dtype = param.dtype
        if dtype.name == PAIRS:
            table = counts.reshape(16, 16)
            counts, dtype = table.sum(axis=0) + table.sum(axis=1), BY_NAME[HALF]
        values = _every_value(dtype)
        if "neg" in param.flags:
            values = -values
        moments = moments_of_counts(values, counts)
        binning = Binning()
        if self._histograms and moments.finite:
            held = np.isfinite(values) & (counts > 0)
            binning.add(values[held], float(moments.low), float(moments.high), counts[held])
        return _with_integer_extremes(moments) if dtype.category in ("int", "bool") else moments, binning.histogram

    def _from_converted(self, param: Param) -> tuple[Moments, Histogram]:
        """Return moments and histogram of all other values: large integers, complex and quantized ones."""
        import numpy as np

        collector, whole = _Collector(self._histograms), RunningIntegers()
        for block in self._scan.values(param, in_order=False):
            if block.dtype.kind in "iu":
                whole.add(block)
                collector.bin(block)
            else:
                collector.add_any(magnitudes(block) if block.dtype.kind == "c" else block.astype(np.float64))
        moments, histogram = collector.found
        return moments + whole.moments, histogram


class _Collector:
    """Moments and, if wanted, the histogram of values, added an array at a time."""

    def __init__(self, histograms: bool) -> None:
        self._running = Running()
        self._binning = Binning() if histograms else None

    def add(self, values: Array, low: float, high: float, zeros: int) -> None:
        """Add finite float64 `values`, given their extremes and number of zeros; `values` may be overwritten."""
        if self._binning is not None:
            self._binning.add(values, low, high)
        self._running.add(values, low, high, zeros)

    def bin(self, values: Array) -> None:
        """Add integers to the histogram only."""
        import numpy as np

        if self._binning is not None and values.size:
            rounded = values.astype(np.float64)
            self._binning.add(rounded, float(rounded.min()), float(rounded.max()))

    def add_any(self, values: Array) -> None:
        """Add float64 `values` that may contain NaN or infinities."""
        import numpy as np

        finite = self._running.without_odd(values)
        if finite.size:
            self.add(finite, float(finite.min()), float(finite.max()), finite.size - int(np.count_nonzero(finite)))

    @property
    def found(self) -> tuple[Moments, Histogram]:
        """The moments and the histogram of all added values."""
        return self._running.moments, self._binning.histogram if self._binning is not None else EMPTY


def _with_integer_extremes(moments: Moments) -> Moments:
    """Return the moments of integers, with their extremes as integers."""
    return replace(moments, low=int(moments.low), high=int(moments.high)) if moments.finite else moments


def magnitudes(values: Array) -> Array:
    """Return the magnitudes of complex values, as float64; NaN if either part is NaN."""
    import numpy as np

    with np.errstate(all="ignore"):
        found: Array = np.abs(values.astype(np.complex128))
    found[np.isnan(values)] = np.nan  # numpy takes inf + nan·i for infinite
    return found


def _value_tensor(param: Param) -> Param:
    """Return the tensor that holds a param's values: the param itself, or a component of a composite one."""
    for part in param.components:
        if part.path.rpartition(".")[2] in HOLDERS and param.storage is None:
            return part
    return param


@lru_cache
def _every_value(dtype: DType) -> Array:
    """Return the value of each bit pattern of a small dtype, as float64."""
    import numpy as np

    from paramctl.values.arrays import raw_dtype
    from paramctl.values.rounding import numpy_dtype

    patterns = np.arange(1 << dtype.bits).astype(raw_dtype(dtype))
    if dtype.category == "bool":
        whether: Array = (patterns != 0).astype(np.float64)
        return whether
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values: Array = patterns.view(numpy_dtype(dtype)).astype(np.float64)
    return values


def _zeros(count: int) -> Histogram:
    """Return the histogram of `count` zeros."""
    import numpy as np

    binning = Binning()
    binning.add(np.zeros(1), 0.0, 0.0, np.array([count]))
    return binning.histogram
