"""Comparing under other names, and which renaming would explain a difference."""

from __future__ import annotations

import pytest
from helpers import refused

from paramctl.errors import UsageError
from paramctl.model.path_renames import Suggestion, parse, renamed, suggestion


def after(paths: list[str], *texts: str) -> list[str]:
    return renamed(paths, [parse(text) for text in texts])


def test_a_renaming_is_re_sub() -> None:
    assert after(["module.a", "b.module.c"], r"^module\.=>") == ["a", "b.module.c"]
    assert after(["layer.10.w"], r"^layer\.(\d+)=>blocks.\1.inner") == ["blocks.10.inner.w"]
    assert after(["a"], "a=>b", "b=>c") == ["c"]
    assert after(["a=>b"], "=>=>-") == ["a-b"]
    assert after(["a", "b"], "^=>x.") == ["x.a", "x.b"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("module", r"cannot read the renaming 'module'; write 'RE=>REPL', such as '^module\.=>'"),
        ("(=>x", "cannot read the renaming '(=>x': missing ), unterminated subpattern at position 0"),
        (r"a=>\2", r"cannot read the renaming 'a=>\2': invalid group reference 2 at position 1"),
    ],
)
def test_what_cannot_be_read(text: str, why: str) -> None:
    assert refused(UsageError, parse, text) == why


def test_two_paths_do_not_become_one() -> None:
    message = refused(UsageError, after, ["a.w", "b.w", "c"], "^[ab]=>c")
    assert message == "'a.w' and 'b.w' both become 'c.w'; rename them apart"
    assert refused(UsageError, after, ["a", "b"], "a=>b") == "'a' and 'b' both become 'b'; rename them apart"


LAYERS = [f"{i}.{name}" for i in range(12) for name in ("weight", "bias")]


def hint(removed: list[str], added: list[str], kept: tuple[str, ...] = ()) -> Suggestion | None:
    return suggestion(dict.fromkeys(removed, (2,)), dict.fromkeys(added, (2,)), kept)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("module.{}", "{}", r"^module\.=>"),
        ("{}", "module.{}", "^=>module."),
        ("state_dict.model.{}", "{}", r"^state_dict\.model\.=>"),
        ("a.b.c.{}", "{}", r"^a\.b\.c\.=>"),
        ("encoder.{}", "backbone.body.{}", r"^encoder\.=>backbone.body."),
        ("model.layers.{}", "model._orig_mod.layers.{}", r"^model\.=>model._orig_mod."),
        ("a b.{}", "a\\b.{}", r"^a\ b\.=>a\\b."),
    ],
)
def test_a_prefix_is_suggested(before: str, after: str, text: str) -> None:
    found = hint([before.format(name) for name in LAYERS], [after.format(name) for name in LAYERS])
    assert found == Suggestion(text, 24, 24)
    assert renamed([before.format("x")], [parse(text)]) == [after.format("x")]


def test_a_name_within_is_suggested() -> None:
    removed = [f"model.{i}._orig_mod.{name}" for i in range(9) for name in ("weight", "bias")]
    added = [path.replace("_orig_mod.", "") for path in removed]
    assert hint(removed, added) == Suggestion(r"\b_orig_mod\.=>", 18, 18)


def test_a_training_checkpoint_and_its_model() -> None:
    removed = [f"model.{name}" for name in LAYERS] + [f"optimizer.state.{i}.step" for i in range(12)]
    assert hint(removed, LAYERS) == Suggestion(r"^model\.=>", 24, 24)


def test_what_does_not_explain_it_is_not_suggested() -> None:
    assert hint(LAYERS, ["a", "b"]) is None
    assert hint([], LAYERS) is None
    assert suggestion({"m.a": (2,), "m.b": (3,)}, {"a": (1,), "b": (1,)}, ()) is None
    assert hint(["m.a"], ["a"], kept=("a",)) is None
    assert hint(["0.weight", "0.bias"], ["1.0.weight", "7.a"]) is None  # no more than half


def test_a_million_dots_are_no_burden() -> None:
    long = "a." * 500_000
    assert hint([f"m.{long}x"], [f"{long}x"]) == Suggestion(r"^m\.=>", 1, 1)


def test_many_paths_with_one_end_are_no_burden() -> None:
    removed, added = ([f"{kind}{i}.weight" for i in range(20_000)] for kind in "ab")
    assert hint(removed, added) is None
