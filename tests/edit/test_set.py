"""`set`: statements, values, broadcasting, and arithmetic that is torch's own."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from verb_files import changed, mlp, opened, same, saved, written

from paramctl.edit.report import Change
from paramctl.edit.set import set
from paramctl.errors import FileError, FormatError, NoMatch, ParamctlError, Unsupported, UsageError
from paramctl.files import targets
from paramctl.formats import opening, saving

GRID = torch.arange(12.0).reshape(3, 4)


def refused(kind: type[ParamctlError], *args: Any) -> str:
    """Return the message with which `set` refuses."""
    with pytest.raises(kind) as caught:
        set(*args)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize(
    ("statement", "how", "expected"),
    [
        ("w = 42", "= 42", torch.full((3, 4), 42.0)),
        ("w=-1e-3", "= -1e-3", torch.full((3, 4), -1e-3)),
        ("  w   +=   1  ", "+= 1", GRID + 1),
        ("w -= 1", "-= 1", GRID - 1),
        ("w *= 3", "*= 3", GRID * 3),
        ("w /= 3", "/= 3", GRID / 3),
        ("w = inf", "= inf", torch.full((3, 4), torch.inf)),
        ("w = true", "= true", torch.ones(3, 4)),
    ],
)
def test_operators(tmp_path: Path, statement: str, how: str, expected: torch.Tensor) -> None:
    edit = set(opened(tmp_path, {"w": GRID}), statement)
    assert edit.changed == (Change("w", how),)
    assert (edit.kept, edit.seed, edit.notes) == ((), None, ())
    assert same(written(tmp_path, edit)["w"], expected)


@pytest.mark.parametrize(
    ("index", "how"),
    [
        ("[0,0]", "[0, 0]"),
        ("[-1]", "[-1]"),
        ("[:, 1]", "[:, 1]"),
        ("[..., -1]", "[..., -1]"),
        ("[1:, ::2]", "[1:, ::2]"),
        ("[::-1]", "[::-1]"),
        ("[0][1]", "[0, 1]"),
        ("[3:]", "[3:]"),
    ],
)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_an_index(tmp_path: Path, index: str, how: str, name: str) -> None:
    other = {"apart": torch.ones(3)}
    edit = set(opened(tmp_path, {"w": GRID, **other}, name), f"w{index} += 100")
    assert edit.changed == (Change("w", f"{how} += 100"),)
    expected = GRID.numpy().copy()
    expected[eval(f"np.s_{how}")] += 100  # what numpy takes the index for
    after = written(tmp_path, edit)
    assert same(after["w"], torch.from_numpy(expected))
    assert same(after["apart"], other["apart"])


def test_statements_are_done_in_order(tmp_path: Path) -> None:
    statements = ("w = 1", "b = w[0]", "w[0] *= 6", "w[1] = w[0]", "b -= w[1]")
    edit = set(opened(tmp_path, {"w": GRID, "b": torch.ones(4)}), *statements)
    assert [change.path for change in edit.changed] == ["w", "b", "w", "w", "b"]
    after = written(tmp_path, edit)
    assert after["w"].tolist() == [[6.0] * 4, [6.0] * 4, [1.0] * 4]
    assert after["b"].tolist() == [-5.0] * 4


def test_a_value_may_be_another_path(tmp_path: Path) -> None:
    before = {"w": GRID, "row": torch.tensor([5.0, 6, 7, 8]), "half": torch.tensor(0.5, dtype=torch.float16)}
    checkpoint = opened(tmp_path, before)
    assert same(written(tmp_path, set(checkpoint, "w = row"))["w"], before["row"].expand(3, 4))
    assert same(written(tmp_path, set(checkpoint, "w[:, 0] = w[:, 1]"))["w"][:, 0], GRID[:, 1])
    assert same(written(tmp_path, set(checkpoint, "w *= half"))["w"], GRID * 0.5)
    assert same(written(tmp_path, set(checkpoint, "w += w"))["w"], GRID + GRID)


@pytest.mark.parametrize(
    ("statement", "kind", "message"),
    [
        ("w", UsageError, "'w' is not an assignment; say PATH[INDEX] = VALUE, or with +=, -=, *=, /="),
        ("", UsageError, "'' is not an assignment; say PATH[INDEX] = VALUE, or with +=, -=, *=, /="),
        ("w = ", UsageError, "there is no value right of the operator; give a number, @file.npy or a PATH"),
        ("w = @", UsageError, "'@' names no file; say @FILE.npy"),
        ("v = 1", NoMatch, "no parameter or layer matches 'v'; 'paramctl ls' lists them all"),
        ("w = v", NoMatch, "no parameter or layer matches 'v'; 'paramctl ls' lists them all"),
        ("w = j", NoMatch, "no parameter or layer matches 'j'; 'paramctl ls' lists them all"),
        ("layer = 1", UsageError, "'layer' is a layer, not a single parameter; name one, such as layer.b"),
        ("epoch = 1", UsageError, "epoch is not a tensor, and set changes tensors only"),
        ("w[3] = 1", UsageError, "index 3 is out of range for axis 0 of w (3 × 4)"),
        ("w[0,0,0] = 1", UsageError, "w (3 × 4) has 2 axes, and the index [0, 0, 0] has 3"),
        ("w[a] = 1", UsageError,
         "'a' in the index [a] is no index; use whole numbers, slices such as 0:5 or ::2, and '...'"),
        ("w = layer.b", UsageError, "layer.b (3) does not broadcast to w (3 × 4)"),
        ("layer.b = w", UsageError, "w (3 × 4) does not broadcast to layer.b (3)"),
        ("w = 1j", UsageError, "w = 1j: complex values do not fit float32"),
        ("w = 1e39", UsageError, "w = 1e39: the value does not fit float32"),
        ("h = -70000", UsageError, "h = -70000: the value does not fit float16"),
        ("h = 1" + "0" * 30, UsageError, "h = 1" + "0" * 30 + ": the value does not fit float16"),
        ("i = 1.5", UsageError, "i = 1.5: uint8 holds whole numbers only"),
        ("i = nan", UsageError, "i = nan: uint8 holds whole numbers only"),
        ("i = 256", UsageError, "i = 256: values from 256 to 256 do not fit uint8"),
        ("i -= 8", UsageError, "i -= 8: values from -1 to 242 do not fit uint8"),
        ("i += 0.5", UsageError, "i += 0.5: uint8 holds whole numbers only"),
        ("i *= inf", UsageError, "i *= inf: uint8 holds whole numbers only"),
        ("i /= 2", UsageError, "i /= 2: uint8 holds whole numbers only"),
        ("i /= 0", UsageError, "i /= 0: division by zero"),
        ("i = h[:2]", UsageError, "i = h[:2]: uint8 holds whole numbers only"),
        ("wide = 1", UsageError, "wide cannot be changed: it repeats fewer values over its shape (stride 0), so its elements cannot "
         "differ; save it from your program after .clone()"),
        (
            "sparse = 1", UsageError,
            "sparse cannot be changed: it is a sparse_coo tensor; save it from your program after .to_dense()",
        ),
        ("w = sparse", UsageError, "sparse is sparse_coo: its values are in sparse.indices, sparse.values"),
        (
            "nested = 1", UsageError,
            "nested cannot be changed: it is a nested tensor; save what it is made of from your program",
        ),
        ("w = nested", UsageError, "nested is nested: its values are in nested.buffer, nested.sizes, nested.strides, "
         "nested.offsets"),
        ("w[0] = q", UsageError, "q is a quantized tensor, and its stored numbers are not its values"),
        (
            "meta = 1", UsageError,
            "meta cannot be changed: it is a meta tensor, and no values are saved for it;"
            " save it from your program after .to_empty() or with values",
        ),
        ("part = 1", UsageError,
         "part shares some of its bytes with whole; give it bytes of its own with 'paramctl untie' first"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # torch: nested and quantized tensors are on their way out
def test_what_is_refused(tmp_path: Path, statement: str, kind: type[ParamctlError], message: str) -> None:
    whole = torch.ones(4)
    made = {
        "w": GRID, "h": torch.tensor([0.5, 1.5, 2.5], dtype=torch.float16), "layer": {"b": torch.ones(3)}, "epoch": 3,
        "i": torch.tensor([7, 250], dtype=torch.uint8), "wide": torch.ones(1, 3).expand(2, 3), "whole": whole,
        "part": whole[1:3], "sparse": torch.eye(3).to_sparse(), "meta": torch.ones(2, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]),
        "q": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    }  # fmt: skip
    assert refused(kind, opened(tmp_path, made), statement) == message


def test_nothing_to_set(tmp_path: Path) -> None:
    assert refused(UsageError, opened(tmp_path, {"w": GRID})) == "nothing to set; say for example '0.weight[0,0] = 42'"


def test_one_wrong_statement_refuses_all(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": GRID})
    before = path.read_bytes()
    assert refused(UsageError, opening.open(os.fspath(path)), "w = 1", "w[9] = 1") == (
        "index 9 is out of range for axis 0 of w (3 × 4)"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("n = 1", "n = 1 = 5"),
        ("n = 1", "n = 1[0] = 5"),
        ("a+=b", "a+=b=5"),
        ("w[0]", "w[0] = 5"),
        ("w[0]", "w[0][0] = 5"),
        ("[bold]x[/bold]", "[bold]x[/bold] = 5"),
        ("a\x1b[31mb", "a\x1b[31mb = 5"),
        ("with space", " with space = 5"),
        ("a/b", "a/b /= 0.2"),
        ("1", "1 = 5"),
        ("@x", "@x = 5"),
        ("=", "= = 5"),
    ],
)
@pytest.mark.parametrize("form", ["x.pt", "x.safetensors"])
def test_names_are_data(tmp_path: Path, name: str, statement: str, form: str) -> None:
    before = {name: torch.ones(1), "other": torch.ones(1)}
    edit = set(opened(tmp_path, before, form), statement)
    assert [change.path for change in edit.changed] == [name]
    after = written(tmp_path, edit)
    assert (after[name].item(), after["other"].item()) == (5.0, 1.0)


def test_of_two_readings_the_one_whose_both_sides_exist_counts(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"n": torch.ones(1), "n = 1": torch.ones(1)})
    assert [(change.path, change.how) for change in set(checkpoint, "n = 1 = 5", "n = n = 1").changed] == [
        ("n = 1", "= 5"),
        ("n", "= n = 1"),
    ]


def test_paths_that_print_alike(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {0: torch.ones(2), "0": torch.ones(2)})
    message = refused(UsageError, checkpoint, "0 = 1")
    assert message == "several entries print as '0'; name one by its position: [0], [1]"
    edit = set(checkpoint, "[1] = 7")
    assert edit.changed == (Change("0#2", "= 7"),)
    after = written(tmp_path, edit)
    assert (after[0].tolist(), after["0"].tolist()) == ([1.0, 1.0], [7.0, 7.0])


def test_inside_the_one_model(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"model": {"w": GRID}, "epoch": 1})
    assert set(checkpoint, "w[0] = 7", "[0][0] += 1").changed == (
        Change("model.w", "[0] = 7"),
        Change("model.w", "+= 1"),
    )


def test_a_bare_tensor(tmp_path: Path) -> None:
    edit = set(opened(tmp_path, GRID), ".[0, 0] = 5")
    assert edit.changed == (Change("", "[0, 0] = 5"),)
    assert written(tmp_path, edit)[0, 0].item() == 5.0


@pytest.mark.parametrize(("path", "other"), [("a", "b"), ("b", "a")])
def test_tied_params_change_together(tmp_path: Path, path: str, other: str) -> None:
    edit = set(opened(tmp_path, {"a": GRID, "b": GRID}), f"{path}[0,0] = 100", f"{other} += 1")
    assert edit.changed == (Change(path, "[0, 0] = 100", also=(other,)), Change(other, "+= 1", also=(path,)))
    after = written(tmp_path, edit)
    assert after["a"].data_ptr() == after["b"].data_ptr()
    assert after["a"][0, :2].tolist() == [101.0, 2.0]


def test_stale_moments_are_said(tmp_path: Path) -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    checkpoint = opened(tmp_path, {"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    assert set(checkpoint, "0.bias = 1").notes == (
        "the optimizer state in this file still belongs to the old values of model.0.bias; --reset-optimizer resets it",
    )
    assert set(checkpoint, "optimizer.state.0.exp_avg = 0").notes == ()


@pytest.mark.parametrize(
    ("statement", "path"),
    [
        (" a = 1", " a"), (" a=1", " a"), (" a[0] = 1", " a"), ("a = 1", "a"), ("a=1", "a"), ("\ta = 1", "a"),
        ("a  = 1", "a "), ("b = 1", "b "), (" 0.bias   = 1 ", "0.bias"), ("  c = 1", "c"),
    ],
)  # fmt: skip
def test_spaces_around_a_name_count_where_there_is_such_a_name(tmp_path: Path, statement: str, path: str) -> None:
    checkpoint = opened(tmp_path, {name: torch.zeros(2) for name in ("a", " a", "a ", "b ", "0.bias", "c")})
    assert [change.path for change in set(checkpoint, statement).changed] == [path]


def test_no_such_name_with_or_without_spaces(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"a": torch.zeros(2), " a": torch.zeros(3)})
    with pytest.raises(NoMatch) as missing:
        set(checkpoint, "  b = 1")
    assert str(missing.value) == "no parameter or layer matches 'b'; 'paramctl ls' lists them all"
    with pytest.raises(UsageError) as outside:
        set(checkpoint, " a[3] = 1")
    assert str(outside.value) == "index 3 is out of range for axis 0 of  a (3)"


def test_a_gradient_says_nothing_of_the_optimizer(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    grads = {name: param.grad for name, param in net.named_parameters()}
    made = {"model": net.state_dict(), "grads": grads, "optimizer": optimizer.state_dict()}
    checkpoint = opened(tmp_path, made)
    assert set(checkpoint, "grads.weight = 0").notes == ()
    assert set(checkpoint, "grads.weight = 0", "bias = 0").notes == (
        "the optimizer state in this file still belongs to the old values of model.bias; --reset-optimizer resets it",
    )


TORCHS: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "+=": torch.Tensor.add_,
    "-=": torch.Tensor.sub_,
    "*=": torch.Tensor.mul_,
    "/=": torch.Tensor.div_,
    "=": lambda tensor, value: tensor.copy_(torch.as_tensor(value, dtype=torch.float64)),
}


@pytest.mark.parametrize("op", TORCHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", [0.1, 3, -1 / 3, 1e-5])
def test_arithmetic_with_numbers_is_torchs(tmp_path: Path, op: str, dtype: torch.dtype, number: float) -> None:
    before = torch.randn(1000, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    after = written(tmp_path, set(opened(tmp_path, {"w": before.clone()}), f"w {op} {number!r}"))["w"]
    assert same(after, TORCHS[op](before.clone(), number))


@pytest.mark.parametrize("op", list(TORCHS)[:4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("other", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_arithmetic_with_params_is_torchs(tmp_path: Path, op: str, dtype: torch.dtype, other: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    before = (torch.randn(20, 30, generator=generator, dtype=torch.float64) * 9).to(dtype)
    value = (torch.rand(30, generator=generator, dtype=torch.float64) * 9 + 1).to(other)
    checkpoint = opened(tmp_path, {"w": before.clone(), "v": value, "one": value[3].clone()})
    assert same(written(tmp_path, set(checkpoint, f"w {op} v"))["w"], TORCHS[op](before.clone(), value))
    assert same(written(tmp_path, set(checkpoint, f"w {op} one"))["w"], TORCHS[op](before.clone(), value[3]))


def test_complex_values(tmp_path: Path) -> None:
    before = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64)
    after = written(tmp_path, set(opened(tmp_path, {"c": before}), "c *= 1+2j", "c[0] = -1j"))["c"]
    assert after.tolist() == [-1j, 5 + 5j]


@pytest.mark.parametrize(
    ("dtype", "statement", "expected"),
    [
        (torch.int64, "i += 1", [2**62 + 2, 6]),
        (torch.int64, "i += 1.0", [2**62 + 2, 6]),
        (torch.int64, "i -= 4611686018427387904", [1, 5 - 2**62]),
        (torch.int64, "i = -9223372036854775808", [-(2**63)] * 2),
        (torch.int64, "i[1] *= 1.6", [2**62 + 1, 8]),
        (torch.int64, "i[1] /= 5", [2**62 + 1, 1]),
        (torch.int64, "i /= 1", [2**62 + 1, 5]),
        (torch.uint64, "i = 18446744073709551615", [2**64 - 1] * 2),
        (torch.uint64, "i *= 2", [2**63 + 2, 10]),
        (torch.bool, "i = false", [False, False]),
    ],
)
def test_integers_are_exact(tmp_path: Path, dtype: torch.dtype, statement: str, expected: list[int]) -> None:
    checkpoint = opened(tmp_path, {"i": torch.tensor([2**62 + 1, 5], dtype=dtype)})
    assert written(tmp_path, set(checkpoint, statement))["i"].tolist() == expected


@pytest.mark.parametrize("statement", ["i *= 2", "i -= 9223372036854775807", "i *= 9223372036854775807"])
def test_integers_do_not_wrap(tmp_path: Path, statement: str) -> None:
    checkpoint = opened(tmp_path, {"i": torch.tensor([2**62 + 1, -5])})
    assert refused(UsageError, checkpoint, statement).startswith(f"{statement}: values from -")


def test_steps_of_one_batch_may_pass_through_other_values(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"i": torch.tensor([7, 250], dtype=torch.uint8)})
    assert written(tmp_path, set(checkpoint, "i[1] -= 9", "i += 10", "i[0] = 0"))["i"].tolist() == [0, 251]


def test_an_expanded_row_of_a_strided_param(tmp_path: Path) -> None:
    base = torch.zeros(4, 6)
    after = written(tmp_path, set(opened(tmp_path, {"t": base.t(), "x": torch.ones(2)}), "t[1:3, 2] = 9", "t[0] += 1"))
    expected = torch.zeros(6, 4)
    expected[1:3, 2] = 9
    expected[0] += 1
    assert same(after["t"], expected)


def test_no_other_byte_changes(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": GRID, "v": torch.ones(5), "n": {"epoch": 3}})
    out = tmp_path / "y.pt"
    saving.save(set(opening.open(os.fspath(path)), "w[1, 1] = 77").checkpoint, targets.NewFile(out))
    before, after = path.read_bytes(), out.read_bytes()
    differ = sum(a != b for a, b in zip(before, after, strict=True))
    assert 0 < differ <= 4 + 3 * 4  # the value, and its record's checksum wherever the archive has it


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
        np.arange(4, dtype=">f4"),
        np.array(3),
        np.array([[True], [False], [True]]),
    ],
)
def test_a_value_from_a_file(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    np.save(tmp_path / "a b.npy", array)
    edit = set(opened(tmp_path, {"w": torch.zeros(3, 4)}), f"w = @{tmp_path}/a b.npy")
    assert np.array_equal(written(tmp_path, edit)["w"].numpy(), np.broadcast_to(array, (3, 4)))


def pickled() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (None, FileError, "no such file; check the path"),
        (b"", FormatError, "is no .npy file; write one with numpy.save"),
        (b"\x80\x04N.", FormatError, "is no .npy file; write one with numpy.save"),
        (pickled(), Unsupported, "holds Python objects, which are pickled and never loaded"),
        (npy(np.array(["a"])), Unsupported, "holds <U1, which are no plain numbers"),
        (npy(np.ones(4))[:-8], FormatError, "holds 24 bytes of values, and its shape takes 32"),
        (npy(np.ones(4)).replace(b"(4,), ", b"(9**9,"), FormatError, "is no .npy file: EOF in multi-line statement"),
        (npy(np.ones(4)).replace(b"(4,)", b"(999999999999,)"), FormatError,
         "holds 43 bytes of values, and its shape takes 7,999,999,999,992"),
        (npy(np.ones(3)), UsageError, "@{path} (3) does not broadcast to w (3 × 4)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(
    tmp_path: Path, data: bytes | None, kind: type[ParamctlError], message: str
) -> None:
    path = tmp_path / "a.npy"
    if data is not None:
        path.write_bytes(data)
    text = refused(kind, opened(tmp_path, {"w": GRID}), f"w = @{path}")
    where = "" if kind is UsageError else f"{path}: "
    assert text.startswith(where + message.format(path=path))


def test_set_then_nothing_is_changed_but_the_named(tmp_path: Path) -> None:
    before = mlp().state_dict()
    after = written(tmp_path, set(opened(tmp_path, before), "0.weight += 1", "2.num_batches_tracked = 3"))
    assert changed(before, after) == {"0.weight", "2.num_batches_tracked"}


def test_statements_by_the_thousand_are_no_burden(tmp_path: Path) -> None:
    base = torch.zeros(20_000)
    before = {"all": torch.zeros(2), **{str(i): base[4 * i : 4 * i + 4] for i in range(5000)}}
    turns = (text for i in range(2000) for text in (f"{i}[0] = {i}", "all += 1", f"{i}[1] = {i + 2000}[0]"))
    after = written(tmp_path, set(opened(tmp_path, before), *turns))
    assert after["all"].tolist() == [2000, 2000]
    assert [after[str(i)].tolist() for i in range(5000)] == [[i if i < 2000 else 0, 0, 0, 0] for i in range(5000)]


def test_statements_about_tied_params_see_one_another(tmp_path: Path) -> None:
    tied = torch.ones(2)
    edit = set(opened(tmp_path, {"a": tied, "b": tied, "c": torch.zeros(2)}), "a += 1", "c = 5", "b *= 3", "a[0] = c[1]")
    after = written(tmp_path, edit)
    assert (after["a"].tolist(), after["b"].tolist(), after["c"].tolist()) == ([5, 6], [5, 6], [5, 5])


def test_statements_that_read_what_others_wrote_are_no_burden(tmp_path: Path) -> None:
    before = {"a": torch.ones(4, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}
    after = written(tmp_path, set(opened(tmp_path, before), *["a[::2] += b[::2]", "b += a"] * 35))
    a, b = 1.0, 0.0
    for _ in range(35):
        a += b
        b += a
    assert after["a"].tolist() == [a, 1, a, 1]
    assert after["b"][0].item() == b


def test_slices_of_a_large_storage_are_checked_together(tmp_path: Path) -> None:
    base = torch.zeros(2000, 5000)
    rows = {str(i): base[i] for i in range(2000)}
    edit = set(opened(tmp_path, rows), *(f"{i} += {i}" for i in range(2000)))
    after = written(tmp_path, edit)
    assert torch.equal(after["1999"], torch.full((5000,), 1999.0))
    assert torch.equal(after["3"], torch.full((5000,), 3.0))


def test_pairs_of_small_floats_take_no_numbers(tmp_path: Path) -> None:
    pairs = torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    made = {"w": pairs, "v": pairs.clone()}
    what = "w holds pairs of 4-bit floats, and a single number is not a pair; 'paramctl convert' it to .safetensors first"
    assert refused(UsageError, opened(tmp_path, made), "w = 1").startswith(what)
    assert set(opened(tmp_path, made), "w[0] = v[1]").checkpoint.edited


NARROW = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "bfloat16", "float16"]


@pytest.mark.parametrize("name", NARROW)
def test_what_is_too_large_for_a_narrow_dtype_becomes_what_torch_makes_of_it(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    large = torch.tensor([1000.0, -1000.0, 500.0, 1e5, 1e38, 3.0])
    torch.save({"a": torch.full((6,), 3.0).to(dtype), "b": large}, tmp_path / "x.pt")
    checkpoint = opening.open(str(tmp_path / "x.pt"))

    def made(statement: str) -> torch.Tensor:
        saving.save(set(checkpoint, statement).checkpoint, targets.NewFile(tmp_path / "y.pt", True))
        found: torch.Tensor = torch.load(tmp_path / "y.pt")["a"]
        return found.float()

    assert torch.equal(made("a = b").nan_to_num(7), large.to(dtype).float().nan_to_num(7))
    theirs = (torch.full((6,), 3.0).to(dtype).float() * 1e5).to(dtype).float()
    assert torch.equal(made("a *= 1e5").nan_to_num(7), theirs.nan_to_num(7))
    if torch.tensor(float("inf")).to(dtype).float().isinf():
        assert made("a = inf").isinf().all()
    else:
        what = refused(UsageError, checkpoint, "a = inf")
        assert what == f"a = inf: the value does not fit {name}"
    if torch.tensor(1000.0).to(dtype).float().isfinite():
        assert torch.equal(made("a = 1000"), torch.full((6,), 1000.0).to(dtype).float())
    else:
        assert refused(UsageError, checkpoint, "a = 1000").endswith(f"does not fit {name}")


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1e400j"])
def test_a_number_that_no_float_holds_is_refused(number: str, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2, dtype=torch.float64)}, tmp_path / "x.pt")
    checkpoint = opening.open(str(tmp_path / "x.pt"))
    what = refused(UsageError, checkpoint, f"w = {number}")
    assert what == f"{number} is larger than any float64; say inf for infinity"
