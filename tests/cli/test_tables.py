"""Tables: columns that align and fit a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paramctl.cli import tables
from paramctl.cli.tables import Column

columns = st.lists(
    st.builds(
        lambda key, cells, least: Column(key, key, cells, least=least),
        st.sampled_from("abcdef"),
        st.lists(st.text("xyz ", max_size=30), min_size=2, max_size=2),
        st.none() | st.integers(1, 20),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda column: column.key,
)


def width_of(table: list[Column]) -> int:
    return sum(column.width for column in table) + 2 * (len(table) - 1)


@given(columns, st.lists(st.sampled_from("abcdef"), unique=True), st.integers(1, 120))
def test_a_table_loses_no_more_than_it_must_to_fit(table: list[Column], spare: list[str], width: int) -> None:
    kept, dropped = tables.without_spare(table, spare, width)
    order = [key for key in spare if any(column.key == key for column in table)]
    assert [column for column in table if column.key not in dropped] == kept
    assert dropped == order[: len(dropped)]
    shown = tables.with_short_texts(kept, width)
    assert all(new == old for new, old in zip(shown, kept, strict=True) if old.least is None)
    if width_of(shown) > width:  # nothing is left to drop, and texts are as short as they may be
        assert dropped == order or not kept
        assert all(column.width <= max(column.least, 1) for column in shown if column.least is not None)
    if dropped:  # with the last one it would not have fitted
        before, _ = tables.without_spare(table, order[: len(dropped) - 1], width)
        narrowest = [
            column if column.least is None else column._replace(title="", cells=["x" * min(column.width, column.least)])
            for column in before
        ]
        assert width_of(narrowest) > width


@given(columns)
def test_off_a_terminal_nothing_is_cut(table: list[Column]) -> None:
    assert tables.without_spare(table, [column.key for column in table], None) == (table, [])
    assert tables.with_short_texts(table, None) == table


def test_wide_characters_align() -> None:
    table = [Column("name", "", ["重み", "e\u0301", "abc"], "<"), Column("number", "", ["1", "20", "3"])]
    lines = ["".join(line.cells) for line in tables.rows(table)]
    assert lines == ["重み   1", "e\u0301     20", "abc    3"]


def test_names_that_would_look_the_same_keep_their_ends() -> None:
    names = ["model.layers.0.attention.weight", "model.layers.1.attention.weight", "model.embed", "short"]
    table = [Column("name", "", names, "<", least=16), Column("number", "", ["1"] * 4)]
    lines = tables.rows(tables.fitted(table, (), 27).columns)
    assert ["".join(line.cells).rstrip() for line in lines] == [
        "…yers.0.attention.weight  1", "…yers.1.attention.weight  1",
        "model.embed               1", "short                     1",
    ]  # fmt: skip
