"""Which views overlap: exact where that is cheap to know, and never more work than the file allows."""

from __future__ import annotations

from paramctl import ties
from paramctl.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.dtypes import BY_NAME


def view(
    shape: tuple[int, ...],
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
    storage: str = "s",
    dtype: str = "float32",
) -> Param:
    return Param("", "parameter", BY_NAME[dtype], shape, strides or contiguous(shape), storage, offset)


def checkpoint(*params: Param) -> Checkpoint:
    return Checkpoint("torch-zip", "x.pt", params, {"s": Storage((), 1 << 40), "t": Storage((), 1 << 40)})


def test_neighbours_do_not_overlap() -> None:
    assert ties.overlaps(checkpoint(view((4,)), view((4,), 4), view((4,), storage="t"))) == ()


def test_ranges_that_intersect_overlap() -> None:
    saved = checkpoint(view((6,)), view((6,), 4), view((6,), 20))
    assert ties.overlaps(saved) == ((0, 1),)
    assert ties.overlapping(saved, 1) == (0,)
    assert ties.overlapping(saved, 2) == ()


def test_tied_params_do_not_overlap_but_belong_to_the_group() -> None:
    saved = checkpoint(view((6,)), view((6,)), view((6,), 4))
    assert ties.overlaps(saved) == ((0, 1, 2),)
    assert ties.overlapping(saved, 0) == (2,)
    assert ties.overlaps(checkpoint(view((6,)), view((6,)))) == ()


def test_columns_of_a_matrix_interleave_without_sharing() -> None:
    columns = [view((5,), i, (2,)) for i in range(2)]
    assert ties.overlaps(checkpoint(*columns)) == ()
    assert ties.overlaps(checkpoint(*columns, view((2, 5)))) == ((0, 1, 2),)


def test_a_transposed_view_shares_all() -> None:
    assert ties.overlaps(checkpoint(view((3, 4)), view((4, 3), 0, (1, 4)))) == ((0, 1),)


def test_other_dtypes_of_the_same_bytes_overlap() -> None:
    saved = checkpoint(view((4,)), view((4,), 2, dtype="float16"), view((4,), 8, dtype="float16"))
    assert ties.overlaps(saved) == ((0, 1),)


def test_expanded_and_empty_views() -> None:
    saved = checkpoint(view((1 << 40, 2), 0, (0, 1)), view((1,), 1), view((0,), 0), view((1,), 2))
    assert ties.overlaps(saved) == ((0, 1),)


def test_views_join_through_others() -> None:
    saved = checkpoint(view((4,)), view((4,), 6), view((4,), 3), view((1,), 50))
    assert ties.overlaps(saved) == ((0, 1, 2),)


def test_columns_by_the_thousand_are_no_burden() -> None:
    saved = checkpoint(*(view((10,), i, (300,)) for i in range(300)))
    assert ties.overlaps(saved) == ()


def test_patience_ends_on_the_safe_side() -> None:
    views = [view((50, 2, 3), 7 * i, (1000, 450, 2)) for i in range(3000)]
    (group,) = ties.overlaps(checkpoint(*views))
    assert len(group) > 2000
