"""Quantised tensors, against what torch makes of them."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from paramctl.errors import FormatError, UsageError
from paramctl.files.file_writer import NewFile
from paramctl.formats import opening, saving
from paramctl.model.checkpoint import Checkpoint, Param, Quantizer
from paramctl.model.selections.indexing import Index
from paramctl.values import arrays
from paramctl.values.preview import preview
from paramctl.values.quantized import as_float32, dequantized, narrowed

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor", "ignore:TypedStorage")

Array = NDArray[Any]


def saved(file: Path, tensor: object) -> tuple[Checkpoint, Param]:
    torch.save({"q": tensor}, file)
    checkpoint = opening.open(str(file))
    (param,) = checkpoint.params
    return checkpoint, param


def read(checkpoint: Checkpoint, param: Param, index: Index = ()) -> Array:
    return dequantized(checkpoint, param, arrays.read_index(checkpoint, param, index), index)


def same(found: Array, expected: torch.Tensor) -> None:
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.numpy().view(np.uint32))


INTEGERS = {"qint8": torch.int8, "quint8": torch.uint8, "qint32": torch.int32}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(("scale", "zero_point"), [(0.1, 10), (1 / 3, 0), (1e-8, 127), (12345.678, 5), (1e38, 1)])
def test_per_tensor(tmp_path: Path, name: str, scale: float, zero_point: int) -> None:
    info = torch.iinfo(INTEGERS[name])
    whole = torch.randint(info.min, info.max + 1, (6, 5), dtype=INTEGERS[name])
    whole[0, 0], whole[0, 1] = info.min, info.max
    tensor = torch._make_per_tensor_quantized_tensor(whole, scale, zero_point)
    checkpoint, param = saved(tmp_path / "q.pt", tensor)
    assert param.quantizer == Quantizer("per_tensor_affine", scale, zero_point, None)
    same(read(checkpoint, param), tensor.dequantize())


# torch itself ends by an illegal instruction for qint32 whose zero points are fractions.
@pytest.mark.parametrize(
    ("name", "fractions"),
    [("qint8", False), ("quint8", False), ("qint32", False), ("qint8", True), ("quint8", True)],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel(tmp_path: Path, name: str, fractions: bool, axis: int) -> None:
    torch.manual_seed(axis)
    info = torch.iinfo(INTEGERS[name])
    whole = torch.randint(info.min, info.max + 1, (4, 3, 5), dtype=INTEGERS[name])
    n = whole.shape[axis]
    zero_points = torch.rand(n) if fractions else torch.randint(0, 100, (n,))
    make = torch._make_per_channel_quantized_tensor
    tensor = make(whole, torch.rand(n).double(), zero_points, axis)
    checkpoint, param = saved(tmp_path / "q.pt", tensor)
    assert param.quantizer == Quantizer(str(tensor.qscheme()).removeprefix("torch."), None, None, axis)
    same(read(checkpoint, param), tensor.dequantize())


@pytest.mark.parametrize("name", ["quint4x2", "quint2x4"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5), 0), ((3, 5), 1), ((2, 8), 0), ((2, 3, 5), 1), ((7,), 0)])
def test_several_in_a_byte(tmp_path: Path, name: str, shape: tuple[int, ...], axis: int) -> None:
    torch.manual_seed(0)
    n = shape[axis]
    tensor = torch.quantize_per_channel(
        torch.randn(shape), torch.rand(n) + 0.1, torch.rand(n), axis, getattr(torch, name)
    )
    checkpoint, param = saved(tmp_path / "q.pt", tensor)
    assert (param.shape, param.dtype.name) == (shape, name)
    same(read(checkpoint, param), tensor.dequantize())
    shown = preview(checkpoint, param, (..., -1))
    same(shown.values, tensor.dequantize()[..., -1].contiguous())


def test_a_view(tmp_path: Path) -> None:
    tensor = torch.quantize_per_tensor(torch.randn(4, 6), 0.1, 3, torch.qint8)
    checkpoint, param = saved(tmp_path / "q.pt", tensor.t()[1:, ::2])
    same(read(checkpoint, param), tensor.dequantize().t()[1:, ::2].contiguous())


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Checkpoint, Param, Array]]:
    """The same values with channels along each axis."""
    made = []
    for axis in range(3):
        shape = (5, 4, 6)
        tensor = torch.quantize_per_channel(
            torch.randn(shape), torch.rand(shape[axis]) + 0.1, torch.arange(shape[axis]), axis, torch.qint8
        )
        checkpoint, param = saved(tmp_path_factory.mktemp("q") / "q.pt", tensor)
        made.append((checkpoint, param, tensor.dequantize().numpy()))
    return made


@given(st.integers(0, 2), npst.basic_indices((5, 4, 6), allow_newaxis=False))
def test_any_index(channels: list[tuple[Checkpoint, Param, Array]], axis: int, index: Any) -> None:
    checkpoint, param, expected = channels[axis]
    index = index if isinstance(index, tuple) else (index,)
    np.testing.assert_array_equal(read(checkpoint, param, index), expected[index])
    np.testing.assert_array_equal(preview(checkpoint, param, index, full=True).values, expected[index])


@given(st.integers(0, 2), st.data())
def test_a_part_of_a_part(channels: list[tuple[Checkpoint, Param, Array]], axis: int, data: st.DataObject) -> None:
    checkpoint, param, expected = channels[axis]
    for _ in range(2):
        if not expected.ndim:
            break
        index = data.draw(npst.basic_indices(expected.shape, allow_newaxis=False))
        index = index if isinstance(index, tuple) else (index,)
        param, expected = narrowed(param, index), expected[index]
    np.testing.assert_array_equal(read(checkpoint, param), expected)


def test_only_the_channels_that_are_needed_are_read(channels: list[tuple[Checkpoint, Param, Array]]) -> None:
    _, param, _ = channels[1]
    assert [part.shape for part in narrowed(param, (0, slice(1, 3))).components] == [(2,), (2,)]
    assert [part.shape for part in narrowed(param, (..., 2, slice(None))).components] == [(), ()]
    assert narrowed(param, (0,)).quantizer == Quantizer("per_channel_affine", None, None, 0)


def test_as_a_plain_tensor(channels: list[tuple[Checkpoint, Param, Array]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramctl.values.quantized.PIECE", 7)
    for checkpoint, param, expected in channels:
        for index in ((), (1,), (slice(None, None, -1), ..., slice(0, 3))):
            own, plain = as_float32(checkpoint, narrowed(param, index))
            assert (plain.dtype.name, plain.layout, plain.components) == ("float32", "strided", ())
            np.testing.assert_array_equal(arrays.read_values(own, plain), expected[index])


def test_repeated_values_are_not_written_out(channels: list[tuple[Checkpoint, Param, Array]]) -> None:
    checkpoint, param, _ = channels[0]
    repeated = param._replace(shape=(1 << 30,), strides=(0,), quantizer=Quantizer("per_tensor_affine", 0.1, 0))
    with pytest.raises(UsageError, match=re.escape("q repeats few bytes over 1,073,741,824 values (stride 0)")):
        as_float32(checkpoint, repeated)


# --- what is in the file -----------------------------------------------------------------------


class Rebuilt:
    """Pickled as a quantised tensor of two integers with any quantizer."""

    def __init__(self, *quantizer: object, shape: tuple[int, ...] = (2,)) -> None:
        self.quantizer, self.shape = quantizer, shape

    def __reduce__(self) -> tuple[Any, ...]:
        tensor = torch.quantize_per_tensor(torch.ones(self.shape), 0.5, 0, torch.qint8)
        storage = tensor._typed_storage()  # type: ignore[no-untyped-call]
        args: tuple[Any, ...] = (storage, 0, self.shape, (1,) * len(self.shape), self.quantizer, False, OrderedDict())
        return torch._utils._rebuild_qtensor, args


TENSOR, CHANNEL = torch.per_tensor_affine, torch.per_channel_affine
NUMBER = "quantized tensor 'q' has a scale or zero point that is no number"
EACH = "quantized tensor 'q' has no scale and zero point for each of its channels"
AXIS = "quantized tensor 'q' has channels along an axis it does not have"


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ((TENSOR, "0.1", 0), NUMBER),
        ((TENSOR, True, 0), NUMBER),
        ((TENSOR, 0.1, 0.5), NUMBER),
        ((TENSOR, 0.1, False), NUMBER),
        ((TENSOR, 0.1, 1 << 31), NUMBER),
        ((TENSOR, torch.ones(1), 0), NUMBER),
        ((TENSOR, 0.1), "tensor 'q' has too few arguments for torch._utils._rebuild_qtensor"),
        ((CHANNEL, torch.ones(2), torch.zeros(2), 1), AXIS),
        ((CHANNEL, torch.ones(2), torch.zeros(2), -1), AXIS),
        ((CHANNEL, torch.ones(2), torch.zeros(2), "0"), AXIS),
        ((CHANNEL, torch.ones(3), torch.zeros(2), 0), EACH),
        ((CHANNEL, torch.ones(2), torch.zeros(2, 1), 0), EACH),
        ((CHANNEL, torch.ones(2).bool(), torch.zeros(2), 0), EACH),
        ((CHANNEL, torch.ones(2).long(), torch.zeros(2), 0), EACH),
        ((CHANNEL, torch.ones(2), torch.zeros(2) + 0j, 0), EACH),
        ((CHANNEL, torch.ones(2), torch.zeros(2, device="meta"), 0), EACH),
        ((CHANNEL, torch.ones(2), 0, 0), EACH),
        ((CHANNEL, torch.ones(2), torch.zeros(2)), "tensor 'q' has too few arguments for torch._utils._rebuild_qtensor"),
    ],
)
def test_a_quantizer_that_says_nothing(tmp_path: Path, quantizer: tuple[object, ...], message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        saved(tmp_path / "q.pt", Rebuilt(*quantizer))


@pytest.mark.parametrize("quantizer", [(CHANNEL, [0.5, 0.25], [0, 1], 0), (torch.per_tensor_symmetric, 0.5)])
def test_a_quantizer_that_is_not_followed(tmp_path: Path, quantizer: tuple[object, ...]) -> None:
    checkpoint, param = saved(tmp_path / "q.pt", Rebuilt(*quantizer))
    assert (param.layout, param.quantizer) == ("quantized", None)
    assert preview(checkpoint, param).values.tolist() == [2, 2]


@pytest.mark.parametrize("name", ["qint8", "quint4x2"])
def test_an_untouched_file_stays_as_it_is(tmp_path: Path, name: str) -> None:
    zero_points = torch.zeros(2, dtype=torch.float if name == "quint4x2" else torch.long)
    tensor = torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), zero_points, 0, getattr(torch, name))
    checkpoint, _ = saved(tmp_path / "q.pt", tensor)
    saving.save(checkpoint, NewFile(tmp_path / "again.pt", False))
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "q.pt").read_bytes()
