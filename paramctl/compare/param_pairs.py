"""Compares pairs of params: dtype, shape, and how far their values are apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.compare.equal_prefix import EqualBytes
from paramctl.model.checkpoint import Checkpoint, Param, blamed
from paramctl.model.dtypes import BY_NAME, PAIRS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paramctl.compare.distance import Distance, Tolerance
    from paramctl.values.scan import Scan


class Changed(NamedTuple):
    """A tensor, or a part of a composite one, that is not the same in both.

    `kind` is that of the param in A, `what` is `shape`, `dtype` or `values`; for the first two, `before` and
    `after` say what it was and is. `figures` say how far the values are apart, where they can be compared;
    `rounds_to` names the dtype that both are the same in once they are rounded to it. `counts` says that the
    values are whole numbers or flags, which lie far apart without meaning much.
    """

    path: str
    kind: str
    what: str
    before: tuple[int, ...] | str = ""
    after: tuple[int, ...] | str = ""
    figures: Distance | None = None
    rounds_to: str = ""
    counts: bool = False


class Comparison:
    """Compares pairs of params, each pair of views once."""

    def __init__(self, a: Checkpoint, b: Checkpoint, equal: EqualBytes, tolerance: Tolerance | None = None) -> None:
        self._a, self._b = a, b
        self._tolerance = tolerance
        self._bytes = equal
        self._scans: list[tuple[Scan, Scan]] = []
        self._known: dict[object, tuple[Distance | None, str]] = {}

    def rows(self, path: str, a: Param, b: Param) -> list[Changed]:
        """What differs between two params; nothing if they are the same."""
        a, b = _unpaired(a), _unpaired(b)
        found = []
        if a.shape != b.shape:
            found.append(Changed(path, a.kind, "shape", a.shape, b.shape))
        if _type(a) != _type(b):
            compare = not found and a.storage is not None and b.storage is not None
            figures, rounds_to = self._apart(a, b) if compare else (None, "")
            found.append(Changed(path, a.kind, "dtype", _type(a), _type(b), figures, rounds_to))
        if found:
            return found
        if a.storage is None or b.storage is None:
            return self._parts(path, a, b)
        figures, _ = self._apart(a, b)
        counts = a.dtype.category in ("int", "bool")
        return [Changed(path, a.kind, "values", figures=figures, counts=counts)] if figures and figures.count else []

    def _parts(self, path: str, a: Param, b: Param) -> list[Changed]:
        """What differs between the components of two composite tensors; those without values have none."""
        pairs = zip(a.components, b.components, strict=False)
        return [row for x, y in pairs for row in self.rows(f"{path}.{x.path.rpartition('.')[2]}", x, y)]

    def _apart(self, a: Param, b: Param) -> tuple[Distance | None, str]:
        """How far the values of two params of one shape are apart, and the dtype in which they agree."""
        key = tuple((p.view, p.quantizer, *(part.view for part in p.components)) for p in (a, b))
        if key not in self._known:
            equal = self._bytes.leading(a, b)
            same = equal == a.numel and a.dtype == b.dtype
            self._known[key] = (None, "") if same else self._measured(a, b, equal)
        return self._known[key]

    def _measured(self, a: Param, b: Param, equal: int) -> tuple[Distance, str]:
        """As `_apart`, of params whose first elements are known to be `equal`."""
        from paramctl.compare.distance import Tally, Tolerance, agree, coarser
        from paramctl.values.arrays import numpy_dtype
        from paramctl.values.scan import aligned

        a, b, times = _once(a, b)
        tally = Tally(self._tolerance or Tolerance(), times, equal)
        if equal:
            a, b = (_behind(param, equal) for param in (a, b))
        coarse = coarser(a.dtype, b.dtype) if a.dtype != b.dtype else None
        agreed = coarse is not None and coarse.name != "complex32"
        for x, y, *raw in aligned(*self._streams(a, b)):
            tally.add(x, y, _other_bits(*raw) if raw else None)
            agreed = agreed and agree(x, y, numpy_dtype(coarse))  # type: ignore[arg-type]
            self._bytes.tell(x.nbytes)
        return tally.figures(), coarse.name if coarse and agreed else ""

    def _streams(self, a: Param, b: Param) -> list[Iterator[NDArray[Any]]]:
        """The values of both; where bits count, their stored elements too, as decoding may lose some."""
        streams = [self._values(0, a), self._values(1, b)]
        exact = self._tolerance is not None and self._tolerance.exact
        if exact and (a.dtype, a.flags) == (b.dtype, b.flags) and a.dtype.bits % 8 == 0:
            streams += [self._stored(0, a), self._stored(1, b)]
        return streams

    def _values(self, side: int, param: Param) -> Iterator[NDArray[Any]]:
        with blamed((self._a, self._b)[side]):
            yield from self._scan(0)[side].values(param)

    def _stored(self, side: int, param: Param) -> Iterator[NDArray[Any]]:
        with blamed((self._a, self._b)[side]):
            yield from self._scan(1)[side].stored(param)

    def _scan(self, i: int) -> tuple[Scan, Scan]:
        """One scan of each checkpoint for values, and one for stored elements: each has its own buffer."""
        from paramctl.values.scan import Scan

        while len(self._scans) <= i:
            self._scans.append((Scan(self._a), Scan(self._b)))
        return self._scans[i]


def _other_bits(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    from paramctl.compare.distance import differing_bits

    return differing_bits(one, other)


def _type(param: Param) -> str:
    """The dtype of a param, and its layout where that is not the plain one."""
    return param.dtype.name if param.layout == "strided" else f"{param.dtype.name} ({param.layout})"


def _unpaired(param: Param) -> Param:
    """A param of torch's pairs of 4-bit floats as what safetensors counts: each of them."""
    if param.dtype.name != PAIRS or param.storage is None or param.strides[-1:] != (1,):
        return param
    single = BY_NAME["float4_e2m1fn"]
    shape, strides = (*param.shape[:-1], 2 * param.shape[-1]), (*(2 * step for step in param.strides[:-1]), 1)
    return param._replace(dtype=single, shape=shape, strides=strides, offset=2 * param.offset)


def _once(a: Param, b: Param) -> tuple[Param, Param, int]:
    """Two params without the axes along which both repeat themselves, and how often they do."""
    times, shape = 1, list(a.shape)
    if a.quantizer or b.quantizer:  # whose channels lie along an axis
        return a, b, times
    for axis, steps in enumerate(zip(a.strides, b.strides, strict=True)):
        if shape[axis] > 1 and steps == (0, 0):
            times, shape[axis] = times * shape[axis], 1
    return a._replace(shape=tuple(shape)), b._replace(shape=tuple(shape)), times


def _behind(param: Param, elements: int) -> Param:
    """What of a contiguous param comes after its first elements, as one line."""
    return param._replace(shape=(param.numel - elements,), strides=(1,), offset=param.offset + elements)
