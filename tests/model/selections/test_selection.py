"""Selections: what names what, and what is said where nothing is named."""

from __future__ import annotations

import gc
import re
import time
import unicodedata
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramctl.errors import FileError, NoMatch, UsageError
from paramctl.formats import opening
from paramctl.model.checkpoint import Checkpoint, Entry, Kind, Leaf, Module, Param
from paramctl.model.dtypes import BY_NAME
from paramctl.model.selections.positions import positions
from paramctl.model.selections.selection import Selection, find, find_part, layer_members, model_params, select
from paramctl.model.selections.suggestions import nearest


def param(path: str, kind: Kind = "tensor") -> Param:
    return Param(path, kind, BY_NAME["float32"], (2,), (1,), path)


def checkpoint(*entries: str | Entry, modules: dict[str, Module] | None = None) -> Checkpoint:
    made = tuple(param(entry) if isinstance(entry, str) else entry for entry in entries)
    return Checkpoint("torch-zip", "x.pt", made, {}, modules=modules or {})


NET = checkpoint("0.weight", "0.bias", "2.weight", "2.bias")
RGNET = checkpoint(
    *(f"0.block {b}.{n}.{name}" for b in range(4) for n in (0, 2) for name in ("weight", "bias")),
    "1.weight",
    "1.bias",
)


def paths(checkpoint: Checkpoint, *patterns: str) -> list[str]:
    return [checkpoint.params[i].path for i in select(checkpoint, patterns).indices]


# --- what patterns name ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "indices", "exact"),
    [
        ([], (0, 1, 2, 3), ()),
        (["0.weight"], (0,), (0,)),
        (["0"], (0, 1), ()),
        (["2", "0.bias"], (1, 2, 3), (1,)),
        (["*.weight"], (0, 2), ()),
        (["**.bias"], (1, 3), ()),
        (["**"], (0, 1, 2, 3), ()),
        (["*"], (0, 1, 2, 3), ()),
        (["re:.*bias"], (1, 3), ()),
        (["re:0[.]w.*"], (0,), ()),
        (["!0"], (2, 3), ()),
        (["0", "2", "!**.bias"], (0, 2), ()),
        (["!**.bias", "0"], (0,), ()),
        (["0.weight", "!0.weight", "2"], (2, 3), ()),
        (["[0][1]"], (1,), (1,)),
        (["[0]"], (0, 1), ()),
        (["[1].weight"], (2,), (2,)),
        (["0[1]"], (1,), (1,)),
        (["[-1][-1]"], (3,), (3,)),
    ],
)
def test_patterns(patterns: list[str], indices: tuple[int, ...], exact: tuple[int, ...]) -> None:
    assert select(NET, patterns) == Selection(indices, frozenset(exact))


def test_positions_and_paths_name_the_same() -> None:
    assert find(RGNET, "[0][1][0].bias") == find(RGNET, "0.block 1.0.bias") == 5
    assert positions(RGNET, {5}) == {5: "[0][1][0][1]"}


def test_positions_count_layers_without_params() -> None:
    relu = checkpoint(*NET.entries, modules={name: Module("Module", "Module") for name in ("", "0", "1", "2")})
    assert positions(relu, {3}) == {3: "[2][1]"}
    assert find(relu, "[2].bias") == 3


def test_a_star_stays_within_one_name() -> None:
    deep = checkpoint("a.b.weight", "a.weight", "weight")
    assert paths(deep, "*.weight") == ["a.weight"]
    assert paths(deep, "a.*") == ["a.weight"]
    assert paths(deep, "**.weight") == ["a.b.weight", "a.weight", "weight"]
    assert paths(deep, "a.**.weight") == ["a.b.weight", "a.weight"]
    assert paths(deep, "a**") == ["a.b.weight", "a.weight"]


def test_a_glob_that_matches_no_param_names_layers() -> None:
    assert paths(RGNET, "0.block*1") == [f"0.block 1.{n}.{name}" for n in (0, 2) for name in ("weight", "bias")]
    assert paths(RGNET, "1*") == ["1.weight", "1.bias"]


def test_only_stars_are_special_in_a_glob() -> None:
    odd = checkpoint("a?b", "axb", "[ab]", "a+")
    assert paths(odd, "a?*") == ["a?b"]
    assert paths(odd, "[a*") == ["[ab]"]
    assert paths(odd, "*+") == ["a+"]


def test_an_exact_path_wins_over_what_it_looks_like() -> None:
    odd = checkpoint("*", "!a", "re:a", "@a", "[0]", "a", "w[0]", ".")
    for path in ("*", "!a", "re:a", "@a", "[0]", "w[0]", "."):
        assert paths(odd, path) == [path]


def test_a_param_wins_over_the_layer_of_its_name() -> None:
    both = checkpoint("w", "w.scale")
    assert paths(both, "w") == ["w"]
    assert paths(both, "w.**") == ["w.scale"]


@pytest.mark.parametrize("name", ["0.block 1", "a/b", "[red]x[/red]", "a\x1b[31m", "a\nb", "‮x", "é", "\ud800", "-x"])
def test_names_are_data(name: str) -> None:
    odd = checkpoint(f"{name}.w", "x")
    assert paths(odd, f"{name}.w") == paths(odd, name) == [f"{name}.w"]
    assert paths(odd, "**.w") == [f"{name}.w"]


def test_unicode_in_either_form() -> None:
    composed, apart = "caf\u00e9.w", "cafe\u0301.w"
    assert paths(checkpoint(composed, "x"), apart) == [composed]
    assert paths(checkpoint(apart, "x"), composed) == paths(checkpoint(apart), "caf\u00e9") == [apart]
    assert paths(checkpoint(composed, apart), apart) == [apart]
    assert paths(checkpoint(apart, "x"), "caf\u00e9.*") == [apart]


def test_a_bare_tensor_is_a_dot() -> None:
    bare = checkpoint("")
    assert select(bare, ["."]) == Selection((0,), frozenset({0}))
    assert find(bare, ".") == find(bare, "[0]") == 0


# --- the model inside --------------------------------------------------------------------------

TRAINING = checkpoint(
    Leaf("epoch", 3),
    "model.0.weight",
    "model.0.bias",
    param("optimizer.state.0.exp_avg", "optimizer"),
    "grads.0.weight",
)


@pytest.mark.parametrize("pattern", ["0.weight", "*.weight", "[0].weight"])
def test_selections_are_tried_in_the_model_inside(pattern: str) -> None:
    found = select(TRAINING, [pattern])
    if pattern == "*.weight":
        assert (found.indices, found.under) == ((0,), "model")
    elif pattern == "0.weight":
        assert found == Selection((0,), frozenset({0}), "model")
    else:
        assert found.under == "model"


def test_the_root_comes_first() -> None:
    assert select(TRAINING, ["model"]) == Selection((0, 1), frozenset())
    assert paths(TRAINING, "**.weight") == ["model.0.weight", "grads.0.weight"]


def test_of_several_models_none_is_the_one() -> None:
    with pytest.raises(NoMatch):
        select(checkpoint("net.w", "generator.w"), ["w"])
    assert select(checkpoint("net.w", "model.w"), ["w"]).under == "model"
    assert select(checkpoint("generator.w", "other.w"), ["w"]).under == "generator"


def test_model_params_are_neither_moments_nor_gradients() -> None:
    assert model_params(TRAINING) == (0, 1)


def test_globs_can_be_kept_to_the_model() -> None:
    model = model_params(TRAINING)
    assert select(TRAINING, ["**.weight"], among=model).indices == (0,)
    assert select(TRAINING, ["!0.weight"], among=model).indices == (1,)
    assert select(TRAINING, ["**.exp_avg"], among=model).indices == (2,)
    assert select(TRAINING, ["optimizer"], among=model).indices == (2,)


@pytest.mark.parametrize(
    ("start", "under"),
    [
        ("module.", "module"),
        ("_orig_mod.", "_orig_mod"),
        ("module._orig_mod.", "module._orig_mod"),
        ("model.module.", "model.module"),
        ("state_dict._orig_mod.module.", "state_dict._orig_mod.module"),
    ],
)
def test_the_names_of_wrappers_need_not_be_said(start: str, under: str) -> None:
    wrapped = checkpoint(f"{start}0.weight", f"{start}0.bias", f"{start}caf\u00e9.bias")
    assert select(wrapped, ["0.weight"]) == Selection((0,), frozenset({0}), under)
    assert select(wrapped, ["0"]) == Selection((0, 1), frozenset(), under)
    assert select(wrapped, ["cafe\u0301"]) == Selection((2,), frozenset(), under)
    assert select(wrapped, ["re:0\\..*"]).under == under
    assert find(wrapped, "0.bias") == 1
    assert layer_members(wrapped, "0") == [("weight", 0), ("bias", 1)]
    assert nearest(wrapped, "0.wieght")[0] == f"{start}0.weight"


def test_positions_within_wrappers() -> None:
    wrapped = checkpoint("model.module.a.weight", "model.module.a.bias", "epoch")
    assert find(wrapped, "a[1]") == 1
    assert select(wrapped, ["a[0]"]) == Selection((0,), frozenset({0}), "model.module")


def test_a_path_from_the_root_or_the_model_wins_over_one_within_a_wrapper() -> None:
    assert find(checkpoint("module.0.w", "0.w"), "0.w") == 1
    assert find(checkpoint("model.module.0.w", "model.0.w"), "0.w") == 1
    assert find(checkpoint("module.0.w", "model.0.w"), "0.w") == 1


# --- paths that print alike --------------------------------------------------------------------

ALIKE = checkpoint("a.b", "a.b", "c")


def test_paths_that_print_alike_are_refused_with_their_positions() -> None:
    message = "several entries print as 'a.b'; name one by its position: [0][0], [0][1]"
    for refused in (lambda: select(ALIKE, ["a.b"]), lambda: find(ALIKE, "a.b"), lambda: layer_members(ALIKE, "a")):
        with pytest.raises(UsageError) as error:
            refused()
        assert str(error.value) == message
    assert select(ALIKE, ["[0][1]"]) == Selection((1,), frozenset({1}))


def test_paths_that_print_alike_can_be_looked_at() -> None:
    assert select(ALIKE, ["a.b"], alike=True).indices == (0, 1)
    assert select(ALIKE, ["a"]).indices == (0, 1)


# --- lists -------------------------------------------------------------------------------------


def test_a_list_holds_exact_paths(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("2.bias\r\n\n0\n")
    assert select(NET, [f"@{names}"]) == Selection((0, 1, 3), frozenset({3}))
    assert select(NET, [f"!@{names}"]).indices == (2,)
    names.write_text("2.bias\n*.weight\n")
    with pytest.raises(NoMatch, match=re.escape(f"{names}: line 2: no parameter or layer matches '*.weight'")):
        select(NET, [f"@{names}"])


def test_a_list_may_name_what_is_in_the_model(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("0.weight\n0.bias\n")
    assert select(TRAINING, [f"@{names}"]) == Selection((0, 1), frozenset({0, 1}), "model")


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(NoMatch, match="lists no paths"):
        select(NET, [f"@{tmp_path / 'empty'}"])
    with pytest.raises(FileError, match="cannot read: No such file or directory"):
        select(NET, [f"@{tmp_path / 'missing'}"])
    with pytest.raises(UsageError, match="'@' names no list of paths"):
        select(NET, ["@"])
    piped = Checkpoint("torch-zip", "-", NET.entries, {})
    with pytest.raises(UsageError, match="standard input cannot be both"):
        select(piped, ["@-"])


def test_a_list_of_60_000_paths_takes_no_time(tmp_path: Path) -> None:
    large = checkpoint(*(f"model.layers.{i // 10}.{i % 10}.weight" for i in range(60_000)))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(param.path for param in large.params))
    before = time.process_time()
    assert len(select(large, [f"@{names}"]).indices) == 60_000
    assert time.process_time() - before < 5  # a tenth of that, but not 60,000 squared


# --- what is said where nothing is named -------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("0.wieght", "no parameter or layer matches '0.wieght'; nearest: 0.weight, 2.weight"),
        ("!0.wieght", "no parameter or layer matches '0.wieght'; nearest: 0.weight, 2.weight"),
        ("9", "no parameter or layer matches '9'; 'paramctl ls' lists them all"),
        ("[7]", "no parameter or layer matches '[7]'; 'paramctl ls' lists them all"),
        ("re:x", "no parameter or layer matches 're:x'; 'paramctl ls' lists them all"),
    ],
)
def test_no_match(pattern: str, message: str) -> None:
    with pytest.raises(NoMatch) as error:
        select(NET, [pattern])
    assert str(error.value) == message


def test_no_match_says_what_is_there_instead() -> None:
    other = checkpoint("0.weight", Leaf("epoch", 3), modules={"1": Module("ReLU", "ReLU")})
    with pytest.raises(NoMatch, match=re.escape("the layer '1' (ReLU) has no parameters")):
        select(other, ["1"])
    with pytest.raises(NoMatch, match="there is no tensor in 'epoch'; 'paramctl show' prints other values"):
        select(other, ["epoch"])
    with pytest.raises(NoMatch, match="nothing is left of the selection"):
        select(NET, ["0", "!0"])


def test_a_wrong_pattern_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as error:
        select(NET, ["re:("])
    assert str(error.value) == "'(' is no regular expression: missing ), unterminated subpattern at position 0"


def test_nearest_looks_into_the_model_and_at_layers() -> None:
    assert nearest(TRAINING, "0.wieght")[0] == "model.0.weight"
    assert nearest(checkpoint("encoder.0.w", "decoder.0.w"), "encodr", 1) == ["encoder"]


# --- one entry, and layers ---------------------------------------------------------------------


def test_find_one_entry() -> None:
    assert find(TRAINING, "epoch") == find(TRAINING, "[0]") == Leaf("epoch", 3)
    assert find(TRAINING, "0.bias") == 1
    with pytest.raises(UsageError) as error:
        find(NET, "0")
    assert str(error.value) == "'0' is a layer, not a single parameter; name one, such as 0.weight, 0.bias"


def test_find_with_an_index() -> None:
    assert find_part(NET, "0.weight[0,:5]") == (0, (0, slice(None, 5)))
    assert find_part(NET, "0.weight[0][1]") == (0, (0, 1))
    assert find_part(NET, "[0][1][1:]") == (1, (slice(1, None),))
    assert find_part(NET, "[0][1][0]") == (1, (0,))
    assert find_part(checkpoint("w[0]"), "w[0]") == (0, ())
    assert find_part(checkpoint("w[0]"), "w[0][0]") == (0, (0,))
    with pytest.raises(NoMatch, match=r"matches '0.wieght'; nearest: 0.weight"):
        find_part(NET, "0.wieght[0]")
    with pytest.raises(UsageError, match="has several indices; write them as one"):
        find_part(NET, "0.weight[1:3][0]")


def test_layer_members() -> None:
    assert layer_members(NET, "2") == layer_members(NET, "[1]") == [("weight", 2), ("bias", 3)]
    assert layer_members(NET, "2.bias") == layer_members(NET, "[1].bias") == [("", 3)]
    assert layer_members(TRAINING, "0") == [("weight", 0), ("bias", 1)]
    assert layer_members(RGNET, "0.block 1")[1] == ("0.bias", 5)
    with pytest.raises(NoMatch, match="no parameter or layer matches '7'"):
        layer_members(NET, "7")


# --- laws --------------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from("ab01.[]*!@ é\u0301\n\\") | st.characters(), max_size=8)
CHECKPOINTS = st.lists(NAMES, min_size=1, max_size=8).map(lambda names: checkpoint(*names))


@given(CHECKPOINTS)
def test_every_param_is_found_by_its_path(some: Checkpoint) -> None:
    for param in some.params:
        found = select(some, [param.path], alike=True)
        assert set(found.indices) == {i for i, p in enumerate(some.params) if p.path == param.path}


@given(CHECKPOINTS)
def test_every_param_has_a_position_of_its_own(some: Checkpoint) -> None:
    found = positions(some, {*range(len(some.params))})
    assert len({*found.values()}) == len(found) == len(some.params)
    taken = {param.path for param in some.params}
    for i, position in found.items():
        if not any(path == position or path.startswith(f"{position}.") for path in taken):
            assert i in select(some, [position], alike=True).indices


@given(CHECKPOINTS)
def test_two_stars_match_everything_and_nothing_is_left_without_it(some: Checkpoint) -> None:
    everything = tuple(range(len(some.params)))
    if any(f"{param.path}.".startswith(("**.", "!**.")) for param in some.params):
        return  # names win over patterns
    assert select(some, ["**"]).indices == everything
    with pytest.raises(NoMatch):
        select(some, ["!**"])


@given(CHECKPOINTS, NAMES)
def test_a_layer_and_what_is_not_in_it_are_everything(some: Checkpoint, layer: str) -> None:
    try:
        inside = select(some, [layer], alike=True)
        outside = select(some, [f"!{layer}"], alike=True)
    except (NoMatch, UsageError, FileError):
        return
    if not any(p.path.startswith(f"!{layer}") for p in some.params) and not layer.startswith("!"):
        assert sorted(inside.indices + outside.indices) == list(range(len(some.params)))


@given(st.lists(st.sampled_from(["a", "b", "ab", "*", "**"]), min_size=1, max_size=4), CHECKPOINTS)
def test_globs_agree_with_a_plain_reading(names: list[str], some: Checkpoint) -> None:
    glob = ".".join(names)
    meant = [i for i, p in enumerate(some.params) if _matches(names, p.path.split("."))]
    if meant and not any(p.path == glob or p.path.startswith(f"{glob}.") for p in some.params) and "*" in glob:
        assert list(select(some, [glob]).indices) == meant


def _matches(glob: list[str], names: list[str]) -> bool:
    if not glob:
        return not names
    if glob[0] == "**":
        least = 0 if len(glob) > 1 else 1
        return any(_matches(glob[1:], names[n:]) for n in range(least, len(names) + 1))
    return bool(names) and glob[0] in ("*", names[0]) and _matches(glob[1:], names[1:])


@given(NAMES)
def test_composed_and_decomposed_names_are_the_same_to_people(name: str) -> None:
    stored = unicodedata.normalize("NFD", f"x{name}é")
    assert paths(checkpoint(stored, "other"), unicodedata.normalize("NFC", stored)) == [stored]


# --- many names ----------------------------------------------------------------------------------


def test_many_paths_of_many_params_are_no_burden(tmp_path: Path) -> None:
    many = checkpoint(*(f"{i}.w" for i in range(20_000)))
    for i in range(20_000):
        assert find(many, f"{i}.w") == i
        assert find_part(many, f"[{i}][0][1:3]") == (i, (slice(1, 3),))
        assert select(many, [f"[{i}]"], among=range(20_000)).indices == (i,)
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{i}\n" for i in range(20_000)) * 2)
    assert len(select(many, [f"@{listed}"]).indices) == 20_000


def test_a_layer_listed_over_and_over_is_taken_once(tmp_path: Path) -> None:
    many = checkpoint(*(f"a.{i}" for i in range(20_000)))
    listed = tmp_path / "list.txt"
    listed.write_text("a\n" * 20_000)
    assert len(select(many, [f"@{listed}"]).indices) == 20_000
    listed.write_text("a\na\nb\n")
    with pytest.raises(NoMatch) as caught:
        select(many, [f"@{listed}"])
    assert str(caught.value).startswith(f"{listed}: line 3: ")


def test_what_was_looked_for_keeps_no_file_open(tmp_path: Path) -> None:
    torch.save({"a.b": torch.zeros(1), "c": torch.zeros(1)}, tmp_path / "x.pt")
    opened = opening.open(str(tmp_path / "x.pt"))
    assert find(opened, "[0][0]") == find(opened, "a.b") == 0
    source = weakref.ref(opened.sources[0])
    gc.disable()
    try:
        del opened
        assert source() is None
    finally:
        gc.enable()
