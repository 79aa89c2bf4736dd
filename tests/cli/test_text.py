"""Names and numbers as text that is safe on a terminal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramctl.cli import text as cli_text
from paramctl.model.checkpoint import dims


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("0.block 1.weight", "0.block 1.weight"),
        ("重み ×", "重み ×"),
        ("\x00\t\n\r\x1b\x7f\x9b", "\\x00\\t\\n\\r\\x1b\\x7f\\x9b"),
        ("\u200b\u200e\u202e\u2066\ufeff\u00ad", "\\u200b\\u200e\\u202e\\u2066\\ufeff\\xad"),
        ("\u2028\u2029\u0085", "\\u2028\\u2029\\x85"),
        ("\udc80\ud800", "\\udc80\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("[bold]", "[bold]"),
    ],
)
def test_escape(raw: str, shown: str) -> None:
    assert cli_text.escape(raw) == shown


@given(st.text(st.characters()))
def test_what_is_escaped_is_visible_and_can_be_encoded(text: str) -> None:
    shown = cli_text.escape(text, None)
    assert shown.isprintable()
    shown.encode()


@given(st.text(st.characters(max_codepoint=126)), st.integers(1, 40))
def test_elided_text_fits(text: str, width: int) -> None:
    assert len(cli_text.elide(text, width)) <= width


def test_long_names_lose_their_middle_unless_asked_not_to() -> None:
    assert cli_text.escape("a" * 600 + "b") == "a" * 249 + "…" + "a" * 249 + "b"
    assert cli_text.escape("a" * 600, None) == "a" * 600


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"), (128, "128 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4915, "4.8 KiB"), (1024**2 - 1, "1.0 MiB"),
        (int(1.2 * 1024**3), "1.2 GiB"), (1024**6, "1.0 EiB"), (2**63 * 1024, "8,192.0 EiB"),
    ],
)  # fmt: skip
def test_bytes_for_people(n: int, text: str) -> None:
    assert cli_text.human_bytes(n) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (0, "0"), (1234, "1,234"), (-1234.0, "-1,234"), (10**9, "1e+09"), (12345.5, "1.235e+04"),
        (0.027862, "0.02786"), (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert cli_text.number(value) == text


def test_totals() -> None:
    assert cli_text.totals_text(5, 4, 1234, 4936) == "5 tensors (4 unique), 1,234 values, 4.8 KiB"
    assert cli_text.totals_text(1, 1, 4, 16) == "1 tensor, 4 values, 16 B"
    assert cli_text.totals_text(1, 1, 1, 4) == "1 tensor, 1 value, 4 B"


def test_shapes() -> None:
    assert dims((8, 4)) == "8 × 4"
    assert dims(()) == "scalar"


@pytest.mark.parametrize(
    "spread, mean, digits",
    [(1.0, -1e8, 12), (1.0, 0.5, 4), (1.0, None, 4), (0.0, 3.0, 4), (None, 3.0, 4), (1e-300, 1e300, 4), (1e-9, 1e9, 17)],
)
def test_as_many_digits_as_tell_values_apart(spread: float | None, mean: float | None, digits: int) -> None:
    assert cli_text.digits_for(spread, mean) == digits
