"""`init`: which params a selection draws, with what, and that the draw is torch's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from verb_files import changed, mlp, opened, same, saved, written, written_module

from paramctl import seed_for
from paramctl.edit.init import init
from paramctl.edit.report import Change, Kept
from paramctl.errors import FormatError, NoMatch, UsageError
from paramctl.formats import opening

Report = list[tuple[str, str]]


def drawn(how: Callable[..., Any], shape: tuple[int, ...], path: str, dtype: torch.dtype = torch.float32,
          **arguments: Any) -> torch.Tensor:  # fmt: skip
    """Return what torch.nn.init draws for a path with seed 1."""
    tensor = torch.empty(shape, dtype=dtype)
    how(tensor, generator=torch.Generator().manual_seed(seed_for(1, path)), **arguments)
    return tensor


def report(edit: Any) -> Report:
    return [(change.path, change.how) for change in edit.changed]


@pytest.mark.parametrize("scheme", ["constant:1e40", "uniform:a=-1e38,b=3.4e38", "xavier:gain=1e39"])
def test_a_number_too_large_is_refused_before_anything_is_written(tmp_path: Path, scheme: str) -> None:
    torch.save({"0.weight": torch.ones(2, 3)}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"cannot apply to 0\.weight"):
        init(opening.open(str(tmp_path / "x.pt")), ["0"], [scheme])


def test_a_layer_gets_the_scheme_by_role(tmp_path: Path) -> None:
    net = mlp().state_dict()
    edit = init(opened(tmp_path, net), ["0", "2", "3"], ["xavier"], seed=1)
    assert edit.changed == (
        Change("0.weight", "xavier_uniform", "weight", 4, 8),
        Change("0.bias", "zeros", "bias"),
        Change("2.weight", "ones", "scale"),
        Change("2.bias", "zeros", "bias"),
        Change("3.weight", "xavier_uniform", "weight", 8, 2),
        Change("3.bias", "zeros", "bias"),
    )
    assert edit.kept == (
        Kept("2.running_mean", "running statistics are kept"),
        Kept("2.running_var", "running statistics are kept"),
        Kept("2.num_batches_tracked", "int64 values are not weights"),
    )
    assert edit.notes == ()
    after = written(tmp_path, edit)
    assert changed(net, after) == {change.path for change in edit.changed}
    assert same(after["0.weight"], drawn(nn.init.xavier_uniform_, (8, 4), "0.weight"))
    assert same(after["3.weight"], drawn(nn.init.xavier_uniform_, (2, 8), "3.weight"))
    assert same(after["2.weight"], torch.ones(8))
    assert same(after["2.bias"], torch.zeros(8))


def test_no_layer_is_the_whole_model(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    assert init(checkpoint, (), ["xavier"], seed=1)[1:] == init(checkpoint, ["0", "2", "3"], ["xavier"], seed=1)[1:]


def test_no_scheme_is_the_default_of_the_framework(tmp_path: Path) -> None:
    edit = init(opened(tmp_path, mlp()), seed=1)
    assert report(edit) == [
        ("0.weight", "kaiming_uniform:a=2.23606797749979"),
        ("0.bias", "uniform:a=-0.5,b=0.5"),
        ("2.weight", "ones"),
        ("2.bias", "zeros"),
        ("2.running_mean", "zeros"),
        ("2.running_var", "ones"),
        ("2.num_batches_tracked", "zeros"),
        ("3.weight", "kaiming_uniform:a=2.23606797749979"),
        ("3.bias", "uniform:a=-0.35355339059327373,b=0.35355339059327373"),
    ]
    assert (edit.kept, edit.notes) == ((), ())
    after = written_module(tmp_path, edit).state_dict()
    assert same(after["3.weight"], drawn(nn.init.kaiming_uniform_, (2, 8), "3.weight", a=5**0.5))


def test_without_classes_the_default_says_what_it_assumed(tmp_path: Path) -> None:
    edit = init(opened(tmp_path, mlp().state_dict()), ["3"], seed=1)
    assert report(edit) == [
        ("3.weight", "kaiming_uniform:a=2.23606797749979 (assumed)"),
        ("3.bias", "uniform:a=-0.35355339059327373,b=0.35355339059327373 (assumed)"),
    ]
    assert edit.notes == (
        "assumed: the file names no class for these layers, so they were taken for Linear, Conv or the like",
    )


def test_a_default_leaves_buffers_it_does_not_know(tmp_path: Path) -> None:
    class Normalize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((3,), 0.5))
            self.weight = nn.Parameter(torch.ones(2, 3))

    import verb_files

    Normalize.__module__, Normalize.__qualname__ = "verb_files", "Normalize"
    verb_files.Normalize = Normalize  # type: ignore[attr-defined]
    try:
        edit = init(opened(tmp_path, Normalize()), seed=1)
    finally:
        del verb_files.Normalize  # type: ignore[attr-defined]
    assert edit.kept == (Kept("mean", "a buffer is not learnt"),)


@pytest.mark.parametrize(
    ("bias", "how"),
    [
        (None, [("0.weight", "ones"), ("0.bias", "zeros")]),
        ("zeros", [("0.weight", "ones"), ("0.bias", "zeros")]),
        ("keep", [("0.weight", "ones")]),
        ("default", [("0.weight", "ones"), ("0.bias", "uniform:a=-0.5,b=0.5 (assumed)")]),
        ("normal:std=0.01", [("0.weight", "ones"), ("0.bias", "normal:std=0.01")]),
        (" constant:42 ", [("0.weight", "ones"), ("0.bias", "constant:42")]),
    ],
)
def test_what_biases_become(tmp_path: Path, bias: str | None, how: Report) -> None:
    edit = init(opened(tmp_path, mlp().state_dict()), ["0"], ["ones"], seed=1, bias=bias)
    assert report(edit) == how
    assert edit.kept == ((Kept("0.bias", "bias kept as requested"),) if bias == "keep" else ())


def test_bias_overrules_what_a_default_says_of_biases(tmp_path: Path) -> None:
    edit = init(opened(tmp_path, mlp().state_dict()), ["3"], ["keras-default"], seed=1, bias="ones")
    assert report(edit)[1] == ("3.bias", "ones")


def test_a_wrong_bias_is_refused_even_where_none_is_drawn(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    with pytest.raises(UsageError) as caught:
        init(checkpoint, ["0.weight"], ["ones"], bias="nonsuch")
    assert str(caught.value) == "no scheme 'nonsuch'; did you mean ones? (paramctl schemes lists all)"
    with pytest.raises(UsageError) as caught:
        init(checkpoint, ["0"], ["ones"], bias="xavier")
    assert str(caught.value) == (
        "xavier_uniform cannot apply to 0.bias (8): it needs 2 or more dimensions to have a fan-in and fan-out; "
        "name another scheme for it"
    )


def test_an_exact_path_gets_the_scheme_itself(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    for selection in ("0.bias", "[0][1]", "[0].bias"):
        assert report(init(checkpoint, [selection], ["constant:42"])) == [("0.bias", "constant:42")]
    listed = tmp_path / "list"
    listed.write_text("0.bias\n2.running_var\n")
    edit = init(checkpoint, [f"@{listed}"], ["constant:42"])
    assert report(edit) == [("0.bias", "constant:42"), ("2.running_var", "constant:42")]


@pytest.mark.parametrize("pattern", ["**.bias", "re:.*bias", "*.bias"])
def test_a_pattern_that_matches_no_weight_gets_the_scheme_itself(tmp_path: Path, pattern: str) -> None:
    edit = init(opened(tmp_path, mlp().state_dict()), [pattern], ["constant:3"])
    assert report(edit) == [("0.bias", "constant:3"), ("2.bias", "constant:3"), ("3.bias", "constant:3")]


def test_a_pattern_with_weights_in_it_goes_by_role(tmp_path: Path) -> None:
    edit = init(opened(tmp_path, mlp().state_dict()), ["re:[02].*"], ["normal"])
    assert report(edit) == [("0.weight", "normal"), ("0.bias", "zeros"), ("2.weight", "ones"), ("2.bias", "zeros")]


def test_a_normalisation_alone_gets_the_scheme_and_keeps_its_statistics(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    edit = init(checkpoint, ["2"], ["constant:5"])
    assert report(edit) == [("2.weight", "constant:5"), ("2.bias", "constant:5")]
    assert [kept.path for kept in edit.kept] == ["2.running_mean", "2.running_var", "2.num_batches_tracked"]
    assert report(init(checkpoint, ["**.running_var"], ["ones"])) == [("2.running_var", "ones")]


def test_schemes_pair_up_with_layers_and_the_later_one_counts(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    edit = init(checkpoint, ["0", "3"], ["xavier", "constant:42"], seed=1)
    assert report(edit) == [
        ("0.weight", "xavier_uniform"),
        ("0.bias", "zeros"),
        ("3.weight", "constant:42"),
        ("3.bias", "zeros"),
    ]
    edit = init(checkpoint, ["**", "3.bias"], ["ones", "constant:7"], seed=1)
    assert report(edit)[-2:] == [("3.weight", "ones"), ("3.bias", "constant:7")]


@pytest.mark.parametrize(("layers", "schemes"), [(["0"], ["ones", "zeros"]), (["0", "2", "3"], ["ones", "zeros"])])
def test_counts_that_do_not_pair_up(tmp_path: Path, layers: list[str], schemes: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        init(opened(tmp_path, mlp().state_dict()), layers, schemes)
    assert str(caught.value) == (
        f"{len(layers)} --layer and {len(schemes)} --scheme do not pair up; "
        "give one --scheme for all layers, or one for each --layer, in order"
    )


@pytest.mark.parametrize(
    ("layer", "scheme", "message"),
    [
        ("0.bias", "xavier", "xavier_uniform cannot apply to 0.bias (8): it needs 2 or more dimensions to have a "
         "fan-in and fan-out; name another scheme for it"),
        ("2.num_batches_tracked", "normal", "normal cannot apply to 2.num_batches_tracked (scalar): it draws "
         "fractions, and int64 holds whole numbers; name another scheme for it"),
        ("2.num_batches_tracked", "constant:1.5", "constant cannot apply to 2.num_batches_tracked (scalar): int64 "
         "cannot hold 1.5; name another scheme for it"),
        ("0", "glorot_unifrom", "no scheme 'glorot_unifrom'; did you mean xavier_uniform, xavier_normal, uniform? "
         "(paramctl schemes lists all)"),
        ("0", "normal:sdt=1", "normal has no argument 'sdt'; it takes mean, std"),
        ("0", "constant", "constant needs val; write constant:val=VALUE"),
    ],
)  # fmt: skip
def test_a_scheme_that_cannot_apply(tmp_path: Path, layer: str, scheme: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        init(opened(tmp_path, mlp().state_dict()), [layer], [scheme])
    assert str(caught.value) == message


def test_integers_can_be_named(tmp_path: Path) -> None:
    edit = init(opened(tmp_path, mlp().state_dict()), ["2.num_batches_tracked"], ["constant:9007199254740993"])
    assert written(tmp_path, edit)["2.num_batches_tracked"].item() == 9007199254740993


def test_no_match_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NoMatch) as caught:
        init(opened(tmp_path, mlp().state_dict()), ["0.wieght"], ["ones"])
    assert str(caught.value) == "no parameter or layer matches '0.wieght'; nearest: 0.weight, 2.weight, 3.weight"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_draw_is_torchs_own_in_every_dtype(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    before = {"a": torch.ones(6, 4, dtype=dtype), "b": torch.ones(3, 2, 5, dtype=dtype)}
    after = written(tmp_path, init(opened(tmp_path, before, name), (), ["kaiming_normal"], seed=1))
    for path, tensor in before.items():
        assert same(after[path], drawn(nn.init.kaiming_normal_, tuple(tensor.shape), path, dtype))


def test_a_draw_depends_on_its_path_and_the_seed_alone(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    alone = written(tmp_path, init(checkpoint, ["3.weight"], ["normal"], seed=1))["3.weight"]
    assert same(alone, written(tmp_path, init(checkpoint, (), ["normal"], seed=1))["3.weight"])
    assert not same(alone, written(tmp_path, init(checkpoint, (), ["normal"], seed=2))["3.weight"])


def test_a_seed_is_made_where_none_is_given_and_draws_the_same_again(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    first = init(checkpoint, (), ["normal"])
    assert first.seed is not None and 0 <= first.seed < 2**63
    assert first.seed != init(checkpoint, (), ["normal"]).seed
    again = written(tmp_path, init(checkpoint, (), ["normal"], seed=first.seed))
    assert changed(written(tmp_path, first), again) == set()


def test_the_global_generators_are_left_alone(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, mlp().state_dict())
    before = torch.get_rng_state()
    written(tmp_path, init(checkpoint, (), ["normal"], seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_tied_param_is_drawn_once_under_its_first_path(tmp_path: Path) -> None:
    shared = torch.ones(3, 3)
    before = {"a.weight": shared, "b.weight": torch.ones(3, 3), "c.weight": shared}
    edit = init(opened(tmp_path, before), ["c"], ["normal"], seed=1)
    assert edit.changed == (Change("a.weight", "normal", "weight", 3, 3, ("c.weight",)),)
    after = written(tmp_path, edit)
    assert changed(before, after) == {"a.weight", "c.weight"}
    assert after["a.weight"].data_ptr() == after["c.weight"].data_ptr()
    assert same(after["c.weight"], drawn(nn.init.normal_, (3, 3), "a.weight"))


@pytest.mark.parametrize("layers", [["a", "c"], ["c", "a"]])
def test_of_two_schemes_for_tied_params_the_later_one_counts(tmp_path: Path, layers: list[str]) -> None:
    shared = torch.ones(3, 3)
    checkpoint = opened(tmp_path, {"a.weight": shared, "c.weight": shared})
    edit = init(checkpoint, layers, ["constant:1", "constant:2"])
    assert edit.changed == (Change("a.weight", "constant:2", "weight", 3, 3, ("c.weight",)),)


def test_a_tied_param_that_is_named_exactly_gets_the_scheme_itself(tmp_path: Path) -> None:
    shared = torch.ones(3)
    checkpoint = opened(tmp_path, {"a.weight": torch.ones(2, 3), "a.bias": shared, "c.bias": shared})
    assert report(init(checkpoint, ["a", "c.bias"], ["constant:4"])) == [
        ("a.weight", "constant:4"),
        ("a.bias", "constant:4"),
    ]


def test_a_strided_param_is_drawn_as_a_contiguous_one(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    before = {"t": whole.t(), "apart": torch.ones(2, 2)}
    after = written(tmp_path, init(opened(tmp_path, before), ["t"], ["normal"], seed=1))
    assert after["t"].stride() == (1, 6)
    assert same(after["t"], drawn(nn.init.normal_, (6, 4), "t"))
    assert same(after["apart"], before["apart"])


def test_the_gaps_of_a_strided_param_stay(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    before = {"even": whole[:, ::2], "odd": whole[:, 1::2]}
    after = written(tmp_path, init(opened(tmp_path, before), ["even"], ["normal"], seed=1))
    assert same(after["even"], drawn(nn.init.normal_, (4, 3), "even"))
    assert same(after["odd"], before["odd"])


def test_overlapping_params_are_refused_unless_all_are_named(tmp_path: Path) -> None:
    whole = torch.ones(4, 4)
    checkpoint = opened(tmp_path, {"whole": whole, "half": whole[:2], "apart": torch.ones(2, 2)})
    with pytest.raises(UsageError) as caught:
        init(checkpoint, ["whole"], ["zeros"])
    assert str(caught.value) == (
        "whole shares some of its bytes with half; name them all, or 'paramctl untie' first"
    )
    after = written(tmp_path, init(checkpoint, ["whole", "half"], ["zeros"]))
    assert same(after["whole"], torch.zeros(4, 4))
    assert same(after["apart"], torch.ones(2, 2))


def test_what_is_kept_by_its_role_but_shares_bytes_is_said(tmp_path: Path) -> None:
    whole = torch.ones(4, 4)
    edit = init(opened(tmp_path, {"whole": whole, "row": whole[0]}), (), ["zeros"])
    assert edit.kept == (Kept("row", "neither a weight nor a bias, by its name and shape"),)
    assert edit.notes == ("row may change too: bytes shared with whole",)


def test_what_has_no_values_of_its_own_is_refused(tmp_path: Path) -> None:
    made = {
        "meta": torch.empty(2, 2, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "wide": torch.ones(1, 3).expand(2, 3),
        "empty": torch.empty(0, 3),
    }
    checkpoint = opened(tmp_path, made)
    for path, message in [
        (
            "meta",
            "meta cannot be changed: it is a meta tensor, and no values are saved for it;"
            " save it from your program after .to_empty() or with values",
        ),
        (
            "sparse",
            "sparse cannot be changed: it is a sparse_coo tensor; save it from your program after .to_dense()",
        ),
        ("wide", "wide cannot be changed: it repeats fewer values over its shape (stride 0), so its elements cannot differ; "
         "save it from your program after .clone()"),
    ]:  # fmt: skip
        with pytest.raises(UsageError) as caught:
            init(checkpoint, [path], ["ones"])
        assert str(caught.value) == message
    assert report(init(checkpoint, ["empty"], ["ones"])) == [("empty", "ones")]


def test_as_part_of_a_layer_they_are_kept(tmp_path: Path) -> None:
    before = {"wide": torch.ones(1, 3).expand(2, 3), "sparse": torch.eye(3).to_sparse(), "w": torch.ones(2, 2)}
    edit = init(opened(tmp_path, before), (), ["zeros"])
    assert report(edit) == [("w", "zeros")]
    assert edit.kept == (
        Kept("wide", "it repeats fewer values over its shape (stride 0), so its elements cannot differ"),
        Kept("sparse", "it is a sparse_coo tensor"),
    )
    after = written(tmp_path, edit)
    assert same(after["sparse"].to_dense(), torch.eye(3))
    assert same(after["w"], torch.zeros(2, 2))


def test_paths_that_print_alike(tmp_path: Path) -> None:
    before = {0: torch.ones(2, 2), "0": torch.ones(2, 2), "a.b": torch.ones(2), "a": {"b": torch.ones(2)}}
    checkpoint = opened(tmp_path, before)
    for path, positions in [("0", "[0], [1]"), ("a.b", "[2][0], [2][1]")]:
        with pytest.raises(UsageError) as caught:
            init(checkpoint, [path], ["ones"])
        assert str(caught.value) == f"several entries print as '{path}'; name one by its position: {positions}"
    edit = init(checkpoint, ["[1]"], ["normal"], seed=1)
    assert report(edit) == [("0#2", "normal")]
    after = written(tmp_path, edit)
    assert same(after["0"], drawn(nn.init.normal_, (2, 2), "0#2"))
    assert same(after[0], torch.ones(2, 2))
    assert report(init(checkpoint, ["a"], ["zeros"])) == [("a.b", "zeros"), ("a.b#2", "zeros")]


@pytest.fixture
def run_of_training(tmp_path: Path) -> Path:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    grads = {name: param.grad for name, param in net.named_parameters()}
    made = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "grads": grads, "epoch": 3}
    return saved(tmp_path, made, "run.ckpt")


def stale(names: str) -> str:
    start = "the optimizer state in this file still belongs to the old values of"
    return f"{start} {names}; --reset-optimizer resets it"


ALL = "model.0.weight, model.0.bias, model.2.weight, model.2.bias, model.3.weight and 1 more"
NOT_2 = "model.0.weight, model.0.bias, model.3.weight, model.3.bias"


@pytest.mark.parametrize(
    ("layers", "names"), [([], ALL), (["**"], ALL), (["re:.*"], ALL), (["!model.2"], NOT_2)]
)
def test_neither_optimizer_nor_gradients_are_drawn(run_of_training: Path, layers: list[str], names: str) -> None:
    edit = init(opening.open(str(run_of_training)), layers, ["normal"], seed=1)
    assert {change.path.split(".")[0] for change in edit.changed} == {"model"}
    assert edit.notes == (stale(names),)


def test_a_selection_inside_the_one_model_is_said(run_of_training: Path) -> None:
    edit = init(opening.open(str(run_of_training)), ["0"], ["ones"])
    assert report(edit) == [("model.0.weight", "ones"), ("model.0.bias", "zeros")]
    assert edit.notes == ("selected inside 'model'", stale("model.0.weight, model.0.bias"))


def test_moments_by_themselves_leave_nothing_stale(run_of_training: Path) -> None:
    edit = init(opening.open(str(run_of_training)), ["optimizer.state.0.exp_avg"], ["zeros"])
    assert report(edit) == [("optimizer.state.0.exp_avg", "zeros")]
    assert edit.notes == ()


@pytest.mark.parametrize("layer", [nn.Embedding(4, 3, padding_idx=1), nn.EmbeddingBag(4, 3, padding_idx=1)])
def test_the_default_of_an_embedding_keeps_its_padding_row_zero(tmp_path: Path, layer: nn.Module) -> None:
    edit = init(opened(tmp_path, nn.Sequential(layer)), (), ["default"], seed=1)
    assert report(edit) == [("0.weight", "normal (padding row 1 zero)")]
    after = written_module(tmp_path, edit)[0].weight  # type: ignore[index]
    torch.manual_seed(seed_for(1, "0.weight"))
    assert same(after, type(layer)(4, 3, padding_idx=1).weight)  # type: ignore[arg-type]


def script(folder: Path, body: str) -> str:
    path = folder / "my_init.py"
    path.write_text(f"import torch\n{body}\n")
    return f"{path}:f"


def test_an_own_function_changes_the_tensor_or_returns_one(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"w": torch.full((2, 3), 5.0), "v": torch.ones(2, 2)})
    after = written(tmp_path, init(checkpoint, ["w"], [script(tmp_path, "def f(t): t.mul_(2)")]))
    assert same(after["w"], torch.full((2, 3), 10.0))  # it starts from the present values
    assert same(after["v"], torch.ones(2, 2))
    after = written(tmp_path, init(checkpoint, ["w"], [script(tmp_path, "def f(t): return t.double() + 1")]))
    assert same(after["w"], torch.full((2, 3), 6.0))


def test_an_own_function_draws_from_a_seeded_generator(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"w": torch.ones(2, 3)})
    function = script(tmp_path, "def f(t): torch.nn.init.uniform_(t, 5, 10)")
    one, two = (written(tmp_path, init(checkpoint, ["w"], [function], seed=4))["w"] for _ in range(2))
    assert same(one, two)
    torch.manual_seed(seed_for(4, "w"))
    assert same(one, nn.init.uniform_(torch.empty(2, 3), 5, 10))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(t): return 3", "{f} returned a int for w; it must change the tensor in place or return one of shape "
         "(2, 3)"),
        ("def f(t): return t[0]", "{f} made a tensor of shape (3) for w; it must change the tensor in place or return "
         "one of shape (2, 3)"),
        ("def f(t): 1 / 0", "{f} failed for w: ZeroDivisionError: division by zero (line 2)"),
        ("def g(t): pass", "{file} has no function 'f'"),
        ("def f(t:", "{file} is not Python: '(' was never closed (line 2)"),
    ],
)  # fmt: skip
def test_an_own_function_that_fails_is_refused_before_anything_is_written(
    tmp_path: Path, body: str, message: str
) -> None:
    function = script(tmp_path, body)
    with pytest.raises(UsageError) as caught:
        init(opened(tmp_path, {"w": torch.ones(2, 3)}), ["w"], [function])
    assert str(caught.value) == message.format(f=function, file=function.removesuffix(":f"))


def test_an_own_function_is_called_once_for_each_param(tmp_path: Path) -> None:
    body = "calls = []\ndef f(t):\n    calls.append(t)\n    return t.fill_(len(calls))"
    before = {"a": torch.zeros(2, 3), "b": torch.zeros(3, 2).t(), "c": torch.zeros(2)}
    after = written(tmp_path, init(opened(tmp_path, before), ["a", "b", "c"], [script(tmp_path, body)]))
    assert [after[name].unique().tolist() for name in "abc"] == [[1.0], [2.0], [3.0]]


def test_an_own_function_is_not_given_corrupt_values(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.full((2, 3), 5.0)})
    data = bytearray(path.read_bytes())
    at = data.find(torch.full((2, 3), 5.0).numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        init(opening.open(os.fspath(path)), ["w"], [script(tmp_path, "def f(t): t.mul_(2)")])
    assert str(caught.value) == "storage 0 is corrupt: its bytes do not match their CRC-32"


NAMES = ["[bold]x[/bold]", "a\x1b[31mb", "with space", "a/b", "w[0]", "n = 1", "!bang", "@at", "re:x", "*", "über", "."]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["x.pt", "x.safetensors"])
def test_names_are_data(tmp_path: Path, name: str, form: str) -> None:
    before = {name: torch.ones(2, 2), "other": torch.ones(2, 2)}
    edit = init(opened(tmp_path, before, form), [name], ["constant:2"])
    assert report(edit) == [(name, "constant:2")]
    assert changed(before, {path: written(tmp_path, edit)[path] for path in before}) == {name}


def test_a_bare_tensor(tmp_path: Path) -> None:
    edit = init(opened(tmp_path, torch.ones(3, 3)), ["."], ["normal"], seed=1)
    assert edit.changed == (Change("", "normal", "weight", 3, 3),)
    assert same(written(tmp_path, edit), drawn(nn.init.normal_, (3, 3), ""))


@pytest.mark.parametrize("layer", ["0", "**.bias", "re:.*bias"])
def test_a_full_path_keeps_its_scheme_whatever_is_named_later(tmp_path: Path, layer: str) -> None:
    torch.save({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2)}, tmp_path / "x.pt")
    checkpoint = opening.open(str(tmp_path / "x.pt"))
    edit = init(checkpoint, ["0.bias", layer], ["ones", "constant:7"], seed=1)
    assert {change.path: change.how for change in edit.changed}["0.bias"] == "ones"
    again = init(checkpoint, ["0.bias", "0.bias"], ["ones", "constant:7"], seed=1)
    assert [change.how for change in again.changed] == ["constant:7"]


def test_views_of_one_storage_by_the_thousand_are_no_burden(tmp_path: Path) -> None:
    base = torch.ones(3, 500)
    columns = {str(i): base[:, i] for i in range(500)}
    edit = init(opened(tmp_path, columns), ["**", *(f"{i}" for i in range(0, 500, 2))], ["zeros"], seed=1)
    assert len(edit.changed) == 500
    after = written(tmp_path, edit)
    assert not any(tensor.any() for tensor in after.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in after.values()}) == 1
