"""JSON whose objects name no key twice, held against a parser that looks at every pair."""

from __future__ import annotations

import json

import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from paramctl.errors import FormatError
from paramctl.formats.containers.strict_json import parse

words = st.text(st.sampled_from('ab":\\ \n\t,{}é\ud800'), max_size=3)
atoms = st.none() | st.booleans() | st.integers(-9, 9) | words


class Pairs(list[tuple[str, object]]):
    """The pairs of an object, as they will be spelled."""


def pairs(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Objects as lists of pairs, of which some have the same key."""
    return st.lists(st.tuples(words, inner), max_size=4).map(Pairs)


values = st.recursive(atoms, lambda inner: st.lists(inner, max_size=3) | pairs(inner), max_leaves=12)


def spelled(value: object, draw: st.DrawFn) -> str:
    def space() -> str:
        return draw(st.sampled_from(["", "", " ", "\n", "\t "]))

    if isinstance(value, Pairs):
        return "{" + ",".join(f"{word(key)}{space()}:{space()}{spelled(item, draw)}" for key, item in value) + space() + "}"
    if isinstance(value, list):
        return "[" + ",".join(f"{space()}{spelled(item, draw)}" for item in value) + "]"
    return word(value)


def word(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@st.composite
def texts(draw: st.DrawFn) -> str:
    return spelled(draw(pairs(values)), draw) + draw(st.sampled_from(["", "  ", "\n"]))


class Twice(Exception):
    """An object names a key twice."""


def by_the_book(text: str) -> object:
    def unique(found: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(found)) < len(found):
            raise Twice
        return dict(found)

    return json.loads(text, object_pairs_hook=unique)


@given(texts())
def test_no_key_that_is_there_twice_is_missed_and_no_other_is_refused(text: str) -> None:
    try:
        meant = by_the_book(text)
    except Twice:
        assert " twice" in refused(FormatError, parse, text, "header")
    else:
        assert parse(text, "header") == meant


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "index is not JSON: "),
        (b"\xff\xff{}", "index is not JSON: "),
        ("[" * 100_000, "index is nested too deep"),
        ('{"a" : 1, "a": 3}', "index names 'a' twice"),
        (r'{"\":": 1, "\":": 2, "": 0}', "index names '\":' twice"),
        ('{"a": {"b": {"c": 1, "c": 2}}, "d": 1}', "index names 'c' twice"),
    ],
)
def test_what_it_refuses(text: str | bytes, message: str) -> None:
    assert refused(FormatError, parse, text, "index").startswith(message)
