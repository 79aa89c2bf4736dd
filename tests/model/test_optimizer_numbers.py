"""Which params an optimizer's numbers stand for, and where that is not certain."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramctl.model.optimizer_numbers import Shape, Signature, certain, fits, signature

A, B, C = (4, 4), (4,), (2, 4)


def of(*groups: list[Shape | None]) -> list[list[Signature]]:
    """Groups of params of which something of these shapes is remembered; None: nothing is."""
    return [[Signature() if shape is None else Signature(frozenset({shape})) for shape in group] for group in groups]


@pytest.mark.parametrize(
    ("groups", "model", "found"),
    [
        ([[A, B, C, B]], [A, B, C, B], {(0, 0): 0, (0, 1): 1, (0, 2): 2, (0, 3): 3}),  # all, in order
        ([[A, None, None, B]], [A, B, C, B], {(0, 0): 0, (0, 1): 1, (0, 2): 2, (0, 3): 3}),  # not all were moved yet
        ([[A, C], [B, B]], [A, B, C, B], {(0, 0): 0, (0, 1): 2, (1, 0): 1, (1, 1): 3}),  # decay, and none
        ([[A, B], [C, B]], [A, B, C, B], {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}),  # a body and its head
        ([[C, B], [A, B]], [A, B, C, B], {(0, 0): 2, (0, 1): 3, (1, 0): 0, (1, 1): 1}),  # the head first
        ([[C, B]], [A, B, C, B], {(0, 0): 2, (0, 1): 3}),  # the body is frozen
        ([[A, B]], [A, B, A, B], {}),  # which layer is frozen?
        ([[A], [A]], [A, A], {}),  # the first layer first, or last
        ([[C], [A]], [A, C, A], {(0, 0): 1}),
        ([[B, A]], [A, B], {}),  # not in the order of the model
        ([[A, A, A]], [A, A], {}),  # of another model
    ],
)
def test_what_is_certain(
    groups: list[list[Shape | None]], model: list[Shape], found: dict[tuple[int, int], int]
) -> None:
    assert certain(of(*groups), model) == found


shapes = st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=6)


@given(shapes, st.data())
def test_what_is_certain_of_one_group_is_what_all_ways_to_choose_agree_on(
    model: list[Shape], data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(model), max_size=len(model)))
    group: list[Shape | None] = [shape for shape, keep in zip(model, kept, strict=True) if keep]
    ways = [way for way in combinations(range(len(model)), len(group)) if [model[i] for i in way] == group]
    agreed = {(0, j): at[0] for j, at in enumerate(zip(*ways, strict=True)) if len({*at}) == 1}
    assert certain(of(group), model) == agreed


def test_factors_of_a_second_moment() -> None:
    rows = signature([("exp_avg_sq_row", (3, 8)), ("exp_avg_sq_col", (3, 2)), ("step", ())])
    assert rows == Signature(frozenset(), frozenset({(3, 8), (3, 2)}))
    assert [fits(rows, shape) for shape in ((3, 8, 2), (3, 8), (8, 2))] == [True, False, False]
    kept = signature([("row_var", (8, 1)), ("col_var", (1, 2)), ("exp_avg", (8, 2))])
    assert [fits(kept, shape) for shape in ((8, 2), (2, 8))] == [True, False]
    assert fits(signature([("row_var", (8, 1))]), (8,)) is False


def test_work_has_an_end() -> None:
    kind = Signature(frozenset({A}))
    assert certain([[kind]] * 3000, [A] * 3000) == {}
