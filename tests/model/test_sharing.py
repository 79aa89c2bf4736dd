"""Which views overlap: exact where that is cheap to know, and never more work than the file allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramctl.edit.guards import check_editable
from paramctl.errors import UsageError
from paramctl.model import sharing
from paramctl.model.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.model.dtypes import BY_NAME


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
    assert sharing.overlaps(checkpoint(view((4,)), view((4,), 4), view((4,), storage="t"))) == ()


def test_ranges_that_intersect_overlap() -> None:
    saved = checkpoint(view((6,)), view((6,), 4), view((6,), 20))
    assert sharing.overlaps(saved) == ((0, 1),)
    assert sharing.overlapping(saved, 1) == (0,)
    assert sharing.overlapping(saved, 2) == ()


def test_tied_params_do_not_overlap_but_belong_to_the_group() -> None:
    saved = checkpoint(view((6,)), view((6,)), view((6,), 4))
    assert sharing.overlaps(saved) == ((0, 1, 2),)
    assert sharing.overlapping(saved, 0) == (2,)
    assert sharing.overlaps(checkpoint(view((6,)), view((6,)))) == ()


def test_columns_of_a_matrix_interleave_without_sharing() -> None:
    columns = [view((5,), i, (2,)) for i in range(2)]
    assert sharing.overlaps(checkpoint(*columns)) == ()
    assert sharing.overlaps(checkpoint(*columns, view((2, 5)))) == ((0, 1, 2),)


def test_a_transposed_view_shares_all() -> None:
    assert sharing.overlaps(checkpoint(view((3, 4)), view((4, 3), 0, (1, 4)))) == ((0, 1),)


def test_other_dtypes_of_the_same_bytes_overlap() -> None:
    saved = checkpoint(view((4,)), view((4,), 2, dtype="float16"), view((4,), 8, dtype="float16"))
    assert sharing.overlaps(saved) == ((0, 1),)


def test_expanded_and_empty_views() -> None:
    saved = checkpoint(view((1 << 40, 2), 0, (0, 1)), view((1,), 1), view((0,), 0), view((1,), 2))
    assert sharing.overlaps(saved) == ((0, 1),)


def test_views_join_through_others() -> None:
    saved = checkpoint(view((4,)), view((4,), 6), view((4,), 3), view((1,), 50))
    assert sharing.overlaps(saved) == ((0, 1, 2),)


def test_columns_by_the_thousand_are_no_burden() -> None:
    saved = checkpoint(*(view((10,), i, (300,)) for i in range(300)))
    assert sharing.overlaps(saved) == ()


def test_patience_ends_on_the_safe_side() -> None:
    views = [view((50, 2, 3), 7 * i, (1000, 450, 2)) for i in range(3000)]
    (group,) = sharing.overlaps(checkpoint(*views))
    assert len(group) > 2000


def views() -> st.SearchStrategy[Param]:
    """Views of one of two storages, with and without gaps."""
    shapes = st.lists(st.integers(0, 3), min_size=1, max_size=2).map(tuple)
    strides = st.tuples(st.integers(1, 4), st.integers(1, 4))
    return st.builds(
        lambda shape, steps, *rest: view(shape, rest[0], steps[: len(shape)], rest[1], rest[2]),
        shapes, strides, st.integers(0, 20), st.sampled_from("st"), st.sampled_from(["float32", "float16"]),
    )  # fmt: skip


def bytes_of(param: Param) -> set[tuple[str | None, int]]:
    size = param.dtype.itemsize
    elements = {param.offset}
    for n, step in zip(param.shape, param.strides, strict=True):
        elements = {element + k * step for element in elements for k in range(n)}
    return {(param.storage, element * size + byte) for element in elements for byte in range(size)}


@given(params=st.lists(views(), max_size=12), data=st.data())
def test_what_overlaps_shares_bytes(params: list[Param], data: st.DataObject) -> None:
    saved = checkpoint(*params)
    held = [bytes_of(param) for param in params]
    shared = {
        i: {j for j, other in enumerate(params) if held[i] & held[j] and other.view != param.view}
        for i, param in enumerate(params)
    }
    assert {i: set(sharing.overlapping(saved, i)) for i in shared} == shared
    joined = {i for group in sharing.overlaps(saved) for i in group}
    assert joined == {i for i in shared if shared[i]}
    named = data.draw(st.sets(st.integers(0, len(params) - 1))) if params else set()
    chosen = {i for i, param in enumerate(params) if param.view in {params[n].view for n in named if params[n].numel}}
    outside = sharing.Outside(saved, sorted(named), chosen)
    assert {i: set(outside.overlapping(i)) for i in named} == {i: shared[i] - chosen for i in named}


def test_a_chain_of_views_by_the_thousand_is_no_burden() -> None:
    saved = checkpoint(*(view((6,), 4 * i) for i in range(20_000)))
    (group,) = sharing.overlaps(saved)
    assert len(group) == 20_000
    assert sharing.overlapping(saved, 7) == (6, 8)
    with pytest.raises(UsageError):
        check_editable(saved, range(19_999), range(19_999))
    check_editable(saved, group, group)


def test_columns_by_the_ten_thousand_end_patience_soon() -> None:
    saved = checkpoint(*(view((10,), i, (20_000,)) for i in range(20_000)))
    assert len(sharing.overlaps(saved)) <= 1


def test_params_tied_by_the_ten_thousand_are_no_burden() -> None:
    saved = checkpoint(*(view((4,), 4 * (i % 10_000)) for i in range(20_000)))
    for i in range(10_000):
        check_editable(saved, [i], [i])
    assert saved.groups_by_first[7] == (7, 10_007)
