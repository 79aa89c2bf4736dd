"""What is printed: escapes, numbers, JSON, colour, encodings."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from paramctl.cli import json_text, output, tables
from paramctl.cli import text as cli_text
from paramctl.model.checkpoint import dims

Spawn = Callable[..., subprocess.CompletedProcess[bytes]]


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


def test_wide_characters_align() -> None:
    rows = [("重み", "1"), ("e\u0301", "20"), ("abc", "3")]
    lines = ["".join(line.cells) for line in tables.aligned(rows, "<>", ("", ""))]
    assert lines == ["重み   1", "e\u0301     20", "abc    3"]


@pytest.mark.parametrize(
    ("when", "env", "colour"),
    [
        ("auto", {}, False), ("always", {}, True), ("never", {"FORCE_COLOR": "1"}, False),
        ("auto", {"FORCE_COLOR": "1"}, True), ("auto", {"FORCE_COLOR": "0"}, False),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ("always", {"NO_COLOR": "1"}, True),
    ],
)  # fmt: skip
def test_colour(when: output.When, env: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert output.use_color(when) is colour


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_any_encoding_will_do(spawn: Spawn, tmp_path: Path, encoding: str) -> None:
    save_file({"重み.w": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    done = spawn("tree", tmp_path / "x.safetensors", env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding)
    assert ("重み" if encoding == "utf-8" else "\\u91cd\\u307f") in out
    assert {"ascii": "`-- w  float32  2 x 2", "latin-1": "`-- w  float32  2 × 2"}.get(encoding, "w") in out


def test_surrogates_in_a_file_name_are_printed(spawn: Spawn, tmp_path: Path) -> None:
    done = spawn("tree", str(tmp_path / "\udcff.pt"))
    assert done.returncode == 3
    assert done.stderr.endswith(b"/\\udcff.pt: no such file; check the path\n")


@pytest.mark.parametrize(
    "spread, mean, digits",
    [(1.0, -1e8, 12), (1.0, 0.5, 4), (1.0, None, 4), (0.0, 3.0, 4), (None, 3.0, 4), (1e-300, 1e300, 4), (1e-9, 1e9, 17)],
)
def test_as_many_digits_as_tell_values_apart(spread: float | None, mean: float | None, digits: int) -> None:
    assert cli_text.digits_for(spread, mean) == digits


def test_names_that_would_look_the_same_keep_their_ends() -> None:
    names = ["model.layers.0.attention.weight", "model.layers.1.attention.weight", "model.embed", "short"]
    lines = list(tables.aligned([[name, "1"] for name in names], "<>", ["", ""], 24))
    assert ["".join(line.cells).rstrip() for line in lines] == [
        "…rs.0.attention.weight  1", "…rs.1.attention.weight  1", "model.embed             1", "short                   1"
    ]  # fmt: skip
