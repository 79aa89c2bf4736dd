"""JSON text: what it says of numbers, and how deep it may be."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramctl.cli import json_text, output


def test_json_has_words_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    output.json({"values": [1.5, math.nan, [math.inf, -math.inf]], "huge": 10**5000})
    assert json.loads(capsys.readouterr().out) == {
        "values": [1.5, "NaN", ["Infinity", "-Infinity"]],
        "huge": "an integer of 16,610 bits",
    }


floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | floats | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=30,
)


@given(json_values)
def test_json_says_what_it_was_given(value: object) -> None:
    text = "\n".join(json_text.json_document(value))
    assert text.isascii()
    assert json.loads(text) == value


def test_json_does_not_recurse(capsys: pytest.CaptureFixture[str]) -> None:
    value: object = []
    for _ in range(900):
        value = [value]
    output.json(value)
    assert capsys.readouterr().out.count("[") == 901
