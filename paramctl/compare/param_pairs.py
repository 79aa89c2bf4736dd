"""Compare pairs of params: dtype, shape, and how far their values are apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.compare.equal_prefix import EqualPrefix
from paramctl.model.checkpoint import Checkpoint, Param, blamed
from paramctl.model.dtypes import BY_NAME, PAIRS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paramctl.compare.distance import Distance, Tolerance
    from paramctl.values.scan import Scan


class Changed(NamedTuple):
    """A tensor, or a component of a composite one, that differs.

    `kind` is its kind in A, `what` is `shape`, `dtype` or `values`; for the first two, `before` and `after` are
    the old and the new one. `figures` measure how far the values are apart, if they can be compared; `rounds_to`
    names the dtype in which both are equal after rounding. `counts` tells that the values are integers or flags, whose
    distances mean little.
    """

    path: str
    kind: str
    what: str
    before: tuple[int, ...] | str = ""
    after: tuple[int, ...] | str = ""
    figures: Distance | None = None
    rounds_to: str = ""
    counts: bool = False


class ParamComparison:
    """Compare pairs of params, each pair of views once."""

    def __init__(self, a: Checkpoint, b: Checkpoint, equal: EqualPrefix, tolerance: Tolerance | None = None) -> None:
        self._a, self._b = a, b
        self._tolerance = tolerance
        self._bytes = equal
        self._scans: list[tuple[Scan, Scan]] = []
        self._known: dict[object, tuple[Distance | None, str]] = {}

    def rows(self, path: str, a: Param, b: Param) -> list[Changed]:
        """Return the differences between two params; none if they are equal."""
        a, b = _single_floats(a), _single_floats(b)
        found = []
        if a.shape != b.shape:
            found.append(Changed(path, a.kind, "shape", a.shape, b.shape))
        if _type(a) != _type(b):
            compare = not found and a.storage is not None and b.storage is not None
            figures, rounds_to = self._distance(a, b) if compare else (None, "")
            found.append(Changed(path, a.kind, "dtype", _type(a), _type(b), figures, rounds_to))
        if found:
            return found
        if a.storage is None or b.storage is None:
            return self._parts(path, a, b)
        figures, _ = self._distance(a, b)
        counts = a.dtype.category in ("int", "bool")
        return [Changed(path, a.kind, "values", figures=figures, counts=counts)] if figures and figures.count else []

    def _parts(self, path: str, a: Param, b: Param) -> list[Changed]:
        """Return the differences between the components of two composite tensors."""
        pairs = zip(a.components, b.components, strict=False)
        return [row for x, y in pairs for row in self.rows(f"{path}.{x.path.rpartition('.')[2]}", x, y)]

    def _distance(self, a: Param, b: Param) -> tuple[Distance | None, str]:
        """Return the distance of two params of one shape, and the dtype in which they agree or ""."""
        key = tuple((p.view, p.quantizer, *(part.view for part in p.components)) for p in (a, b))
        if key not in self._known:
            equal = self._bytes.equal_elements(a, b)
            same = equal == a.numel and a.dtype == b.dtype
            self._known[key] = (None, "") if same else self._measure(a, b, equal)
        return self._known[key]

    def _measure(self, a: Param, b: Param, equal: int) -> tuple[Distance, str]:
        """Return the same as `_distance`, for params whose first `equal` elements are equal."""
        from paramctl.compare.distance import Tally, Tolerance, coarser, equal_when_rounded
        from paramctl.values.rounding import numpy_dtype
        from paramctl.values.scan import aligned

        a, b, times = _without_shared_repeats(a, b)
        tally = Tally(self._tolerance or Tolerance(), times, equal)
        if equal:
            a, b = (_rest_of(param, equal) for param in (a, b))
        coarse = coarser(a.dtype, b.dtype) if a.dtype != b.dtype else None
        agreed = coarse is not None and coarse.name != "complex32"
        for x, y, *raw in aligned(*self._streams(a, b)):
            tally.add(x, y, _other_bits(*raw) if raw else None)
            agreed = agreed and equal_when_rounded(x, y, numpy_dtype(coarse))  # type: ignore[arg-type]
            self._bytes.advance(x.nbytes)
        return tally.figures(), coarse.name if coarse and agreed else ""

    def _streams(self, a: Param, b: Param) -> list[Iterator[NDArray[Any]]]:
        """Return the values of both; for an exact comparison also the stored elements, as decoding may lose bits."""
        streams = [self._values(0, a), self._values(1, b)]
        exact = self._tolerance is not None and self._tolerance.exact
        if exact and (a.dtype, a.flags) == (b.dtype, b.flags) and a.dtype.bits % 8 == 0:
            streams += [self._stored(0, a), self._stored(1, b)]
        return streams

    def _values(self, side: int, param: Param) -> Iterator[NDArray[Any]]:
        """Yield the values of a param of one side."""
        with blamed((self._a, self._b)[side]):
            yield from self._scan(0)[side].values(param)

    def _stored(self, side: int, param: Param) -> Iterator[NDArray[Any]]:
        """Yield the stored elements of a param of one side."""
        with blamed((self._a, self._b)[side]):
            yield from self._scan(1)[side].stored(param)

    def _scan(self, i: int) -> tuple[Scan, Scan]:
        """Return one scan of each checkpoint: number 0 for values, 1 for stored elements; each has its own buffer."""
        from paramctl.values.scan import Scan

        while len(self._scans) <= i:
            self._scans.append((Scan(self._a), Scan(self._b)))
        return self._scans[i]


def _other_bits(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Return where two arrays hold different bits."""
    from paramctl.compare.distance import differing_bits

    return differing_bits(one, other)


def _type(param: Param) -> str:
    """Return the dtype of a param, and its layout if that is not strided."""
    return param.dtype.name if param.layout == "strided" else f"{param.dtype.name} ({param.layout})"


def _single_floats(param: Param) -> Param:
    """Return a param of torch's pairs of 4-bit floats as one of single floats, as safetensors counts them."""
    if param.dtype.name != PAIRS or param.storage is None or param.strides[-1:] != (1,):
        return param
    single = BY_NAME["float4_e2m1fn"]
    shape, strides = (*param.shape[:-1], 2 * param.shape[-1]), (*(2 * step for step in param.strides[:-1]), 1)
    return param._replace(dtype=single, shape=shape, strides=strides, offset=2 * param.offset)


def _without_shared_repeats(a: Param, b: Param) -> tuple[Param, Param, int]:
    """Return two params without the axes along which both repeat, and the number of repeats."""
    times, shape = 1, list(a.shape)
    if a.quantizer or b.quantizer:  # whose channels lie along an axis
        return a, b, times
    for axis, steps in enumerate(zip(a.strides, b.strides, strict=True)):
        if shape[axis] > 1 and steps == (0, 0):
            times, shape[axis] = times * shape[axis], 1
    return a._replace(shape=tuple(shape)), b._replace(shape=tuple(shape)), times


def _rest_of(param: Param, elements: int) -> Param:
    """Return the elements of a contiguous param after the first ones, as one dimension."""
    return param._replace(shape=(param.numel - elements,), strides=(1,), offset=param.offset + elements)
