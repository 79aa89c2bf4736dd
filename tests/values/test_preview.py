"""Values as people look at them, against what numpy prints; and that no more is read than is shown."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from paramctl.errors import FormatError, Unsupported
from paramctl.files.content import Computed, Literal
from paramctl.model.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.model.dtypes import BY_NAME
from paramctl.values.arrays import encode
from paramctl.values.preview import Preview, nested, preview, text_lines


def stored(array: NDArray[Any], dtype: str, crc32: int | None = None) -> tuple[Checkpoint, Param]:
    """An array as the only param of a checkpoint, in C order."""
    data = bytes(encode(array, BY_NAME[dtype]))
    param = Param("w", "tensor", BY_NAME[dtype], array.shape, contiguous(array.shape), "0")
    return Checkpoint("torch-zip", "x.pt", (param,), {"0": Storage((Literal(data),), len(data), crc32=crc32)}), param


def text(shown: Preview, width: int = 80) -> str:
    return "\n".join(text_lines(shown, 4, width))


def numpys(array: NDArray[Any], width: int = 80) -> str:
    """What numpy prints; floats of 16 bits as float32, and no size scientific that was not so before 2.3."""
    wide = array.astype(np.float32) if array.dtype == np.float16 else array
    printed = np.array2string(wide, width, 4, separator=", ", threshold=1000, legacy="2.2")  # type: ignore[arg-type]
    return "\n".join(line.rstrip() for line in printed.splitlines())


SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=40)
DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool", "complex64"]).map(np.dtype)
ARRAYS = DTYPES.flatmap(
    lambda dtype: npst.arrays(dtype, SHAPES, elements=npst.from_dtype(dtype), fill=st.just(dtype.type(1)))
)


@given(ARRAYS)
def test_values_print_as_numpy_prints_them(array: NDArray[Any]) -> None:
    assert text(preview(*stored(array, array.dtype.name))) == numpys(array)


WIDE = """\
[[ 0.25, -1.5 ,  2.  , -0.25,  1.5 , -2.  ,  0.25, -1.5 ,  2.  , -0.25,  1.5 ,
  -2.  ],
 [ 0.5 , -3.  ,  4.  , -0.5 ,  3.  , -4.  ,  0.5 , -3.  ,  4.  , -0.5 ,  3.  ,
  -4.  ]]"""
WIDER = """\
[[ 0.25, -1.5 ,  2.  , -0.25,  1.5 , -2.  ,  0.25, -1.5 ,  2.  , -0.25,  1.5 , -2.  ],
 [ 0.5 , -3.  ,  4.  , -0.5 ,  3.  , -4.  ,  0.5 , -3.  ,  4.  , -0.5 ,  3.  , -4.  ]]"""


def test_rows_that_are_wider_than_the_page() -> None:
    row = np.tile([0.25, -1.5, 2, -0.25, 1.5, -2], 2)
    array = np.array([row, row * 2])
    for width, expected in ((80, WIDE), (140, WIDER)):
        assert text(preview(*stored(array, "float64")), width) == numpys(array, width) == expected
    assert text(preview(*stored(array, "float64")), 5).splitlines()[:3] == ["[[ 0.25,", "  -1.5 ,", "   2.  ,"]


def test_the_edges_of_a_row() -> None:
    array = np.arange(5000.0)
    assert text(preview(*stored(array, "float64"))) == numpys(array) == (
        "[0.000e+00, 1.000e+00, 2.000e+00, ..., 4.997e+03, 4.998e+03, 4.999e+03]"
    )
    whole = np.arange(5000)
    assert text(preview(*stored(whole, "int64"))) == "[   0,    1,    2, ..., 4997, 4998, 4999]"


TALL = """\
[[   0,    1],
 [   2,    3],
 [   4,    5],
 ...,
 [1194, 1195],
 [1196, 1197],
 [1198, 1199]]"""


def test_all_of_a_short_axis() -> None:
    array = np.arange(1200).reshape(600, 2)
    assert text(preview(*stored(array, "int64"))) == numpys(array) == TALL


DEEP = """\
[[[[[0, 1]]],


  [[[2, 3]]]],



 [[[[4, 5]]],


  [[[6, 7]]]]]"""


def test_many_axes_print_as_in_numpy() -> None:
    array = np.arange(8).reshape(2, 2, 1, 1, 2)
    assert text(preview(*stored(array, "int64"))) == numpys(array) == DEEP


@given(ARRAYS)
def test_all_of_them_too(array: NDArray[Any]) -> None:
    shown = preview(*stored(array, array.dtype.name), full=True)
    np.testing.assert_array_equal(shown.values, array)
    assert shown.is_whole


SQUARE = """\
[[   0,    1,    2, ...,   37,   38,   39],
 [  40,   41,   42, ...,   77,   78,   79],
 [  80,   81,   82, ...,  117,  118,  119],
 ...,
 [1480, 1481, 1482, ..., 1517, 1518, 1519],
 [1520, 1521, 1522, ..., 1557, 1558, 1559],
 [1560, 1561, 1562, ..., 1597, 1598, 1599]]"""


def test_edges() -> None:
    array = np.arange(1600).reshape(40, 40)
    shown = preview(*stored(array, "int64"))
    assert text(shown) == SQUARE
    assert nested(shown) == [
        *([i, i + 1, i + 2, "...", i + 37, i + 38, i + 39] for i in (0, 40, 80)),
        "...",
        *([i, i + 1, i + 2, "...", i + 37, i + 38, i + 39] for i in (1480, 1520, 1560)),
    ]


def test_many_axes_keep_fewer_edges() -> None:
    shown = preview(*stored(np.zeros((9, 9, 9, 9, 9)), "float64"))
    assert shown.values.shape == (4, 4, 4, 4, 4) and shown.gaps == (2,) * 5


def test_no_values() -> None:
    assert text(preview(*stored(np.zeros((0, 3)), "float64"), full=True)) == "[]"
    assert text(preview(*stored(np.zeros((0, 3)), "float64"))) == "[]"
    assert nested(preview(*stored(np.zeros((2, 0)), "float64"))) == [[], []]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float6_e2m3fn"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 5), (50, 51)])
def test_narrow_floats(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=shape).astype(np.float32).astype(getattr(ml_dtypes, dtype))
    assert text(preview(*stored(np.asarray(array), dtype))) == numpys(np.asarray(array).astype(np.float32))


def test_json_of_complex_and_special_values() -> None:
    assert nested(preview(*stored(np.array([1 + 2j, -1j]), "complex128"))) == [[1.0, 2.0], [0.0, -1.0]]
    assert nested(preview(*stored(np.array([True, False]), "bool"))) == [True, False]
    assert nested(preview(*stored(np.array(7), "int64"))) == 7
    assert repr(nested(preview(*stored(np.array([np.nan, np.inf]), "float64")))) == "[nan, inf]"


# --- what is read ------------------------------------------------------------------------------


def unreadable(nbytes: int, allowed: int) -> Storage:
    """A storage that fails the test if much more than `allowed` bytes of it are asked for."""
    given = 0

    def chunks() -> Any:
        nonlocal given
        while True:
            given += 1 << 12
            assert given <= allowed, "read more than was needed"
            yield bytes(1 << 12)

    return Storage((Computed(nbytes, chunks),), nbytes, crc32=1)


def test_only_the_edges_are_read() -> None:
    # A computed segment is made from its start for each read, which is why only the start is asked for.
    param = Param("w", "tensor", BY_NAME["float32"], (1 << 31,), (1,), "0")
    head = Checkpoint("torch-zip", "x.pt", (param,), {"0": unreadable(1 << 33, 1 << 16)})
    shown = preview(head, param, (slice(0, 10),))
    assert shown.values.tolist() == [0.0] * 10 and shown.checked is False


def test_an_expanded_tensor_is_never_written_out() -> None:
    one = Storage((Literal(np.float32(7).tobytes()),), 4)
    param = Param("w", "tensor", BY_NAME["float32"], (1 << 30, 1 << 30), (0, 0), "0")
    some = Checkpoint("torch-zip", "x.pt", (param,), {"0": one})
    for full in (False, True):
        shown = preview(some, param, full=full)
        assert shown.values.tolist() == [[7.0] * 6] * 6 and shown.gaps == (3, 3)
    many = param._replace(shape=(2,) * 40, strides=(0,) * 40)
    with pytest.raises(Unsupported, match="w has too many axes to be shown whole; show a part of it"):
        preview(some, many)


@given(st.data())
def test_a_part_of_a_strided_view(data: st.DataObject) -> None:
    base = np.arange(2 * 3 * 50 * 40, dtype=np.float32).reshape(2, 3, 50, 40)
    some, param = stored(base, "float32")
    order = data.draw(st.permutations(range(4)))
    view = param._replace(
        shape=tuple(base.shape[i] for i in order), strides=tuple(param.strides[i] for i in order)
    )
    index = data.draw(npst.basic_indices(view.shape, allow_newaxis=False, allow_ellipsis=True))
    index = index if isinstance(index, tuple) else (index,)
    meant = base.transpose(order)[index]
    for full in (False, True):
        assert text(preview(some, view, index, full=full)).replace("\n", "")[:1] in "[0123456789"
    np.testing.assert_array_equal(preview(some, view, index, full=True).values, meant)
    if meant.ndim <= 3 and meant.size:
        assert text(preview(some, view, index)) == numpys(meant)


@given(st.data())
def test_blocks_of_a_view_are_its_values(data: st.DataObject) -> None:
    base = np.arange(11 * 13 * 12, dtype=np.int64).reshape(11, 13, 12)
    some, param = stored(base, "int64")
    order = data.draw(st.permutations(range(3)))
    view = param._replace(shape=tuple(base.shape[i] for i in order), strides=tuple(param.strides[i] for i in order))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paramctl.values.preview.BLOCK", data.draw(st.integers(1, 300)))
        patch.setattr("paramctl.values.preview.SPREAD", 1000)
        shown = preview(some, view, full=True)
        assert len(list(shown.blocks())) > 5
        np.testing.assert_array_equal(shown.values, base.transpose(order))
        assert text(shown) == _numpys_in_full(base.transpose(order))


def _numpys_in_full(array: NDArray[Any]) -> str:
    return np.array2string(array, 80, separator=", ", threshold=array.size).replace(" \n", "\n")


# --- checksums ---------------------------------------------------------------------------------


def test_a_whole_storage_is_checked_a_part_is_not() -> None:
    import zlib

    array = np.arange(2000, dtype=np.int64)
    some, param = stored(array, "int64", zlib.crc32(array.tobytes()))
    assert preview(some, param).checked is False
    assert preview(some, param, full=True).checked is True
    assert preview(some, param, (slice(0, 5),)).checked is False
    assert preview(*stored(array, "int64")).checked is None
    small, few = stored(array[:5], "int64", zlib.crc32(array[:5].tobytes()))
    assert preview(small, few).checked is True


def test_a_wrong_checksum_is_corruption() -> None:
    some, param = stored(np.arange(5), "int64", 1)
    with pytest.raises(FormatError, match="storage 0 is corrupt"):
        preview(some, param)
    assert preview(some, param, (0,)).checked is False
