"""Draws against torch.nn.init itself, in every dtype it has and in those it has not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scheme_draws import FLOATS, SHAPES, TORCH, by_torch, drawn, drawn_param, raw, user_file, values
from torch.nn import init

import paramctl
from paramctl.errors import UsageError
from paramctl.model.dtypes import BY_NAME
from paramctl.schemes.drawing import draw, why_not
from paramctl.schemes.generators import seed_for
from paramctl.schemes.spec import parse


@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:mean is more than 2 std")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", TORCH)
def test_draws_bit_for_bit_what_torch_draws_and_refuses_what_torch_refuses(text: str, dtype: str) -> None:
    seed = seed_for(7, "0.weight")
    for shape in SHAPES:
        if text.startswith("orthogonal") and dtype in ("float16", "bfloat16"):
            continue
        if text.startswith("kaiming") and shape == (0,):
            continue  # torch lets a 1-d tensor pass if it is empty; we do not look at the size first
        if text.startswith("xavier") and sum(shape) == 0 and len(shape) > 1:
            continue
        expected = by_torch(text, shape, dtype, seed)
        reason = why_not(parse(text), shape, BY_NAME[dtype])
        assert (reason is None) == (expected is not None), (shape, reason)
        if expected is None:
            with pytest.raises(UsageError) as caught:
                draw(parse(text), drawn_param(shape, dtype))
            assert caught.value.exit_code == 2
        else:
            assert drawn(text, drawn_param(shape, dtype)) == expected, shape


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (4, 2, 3, 3)])
def test_orthogonal_in_half_precision_is_drawn_in_float32_and_rounded(
    dtype: str, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed_for(7, "0.weight"))
    expected = init.orthogonal_(torch.empty(shape), generator=generator).to(getattr(torch, dtype))
    assert drawn("orthogonal", drawn_param(shape, dtype)) == raw(expected)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
@pytest.mark.parametrize(
    "text", ["normal", "uniform", "trunc_normal", "xavier", "kaiming", "orthogonal", "sparse:0.3"]
)
def test_float8_is_drawn_in_float32_and_rounded(text: str, dtype: str) -> None:
    wide = drawn(text, drawn_param((8, 4)))
    expected = torch.frombuffer(bytearray(wide), dtype=torch.float32).to(getattr(torch, dtype))
    assert drawn(text, drawn_param((8, 4), dtype)) == raw(expected)


@pytest.mark.parametrize("text", ["zeros", "ones", "constant:0.5", "eye"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_constants(text: str, dtype: str) -> None:
    assert drawn(text, drawn_param((3, 2), dtype)) == by_torch_constant(text, dtype)


def by_torch_constant(text: str, dtype: str) -> bytes:
    tensor = torch.empty(3, 2)
    fill: dict[str, Callable[[torch.Tensor], object]] = {
        "zeros": init.zeros_,
        "ones": init.ones_,
        "constant:0.5": lambda t: init.constant_(t, 0.5),
        "eye": init.eye_,
    }
    fill[text](tensor)
    return raw(tensor.to(getattr(torch, dtype)))


def test_float4_packs_two_values_in_a_byte_the_first_in_the_low_bits() -> None:
    # e2m1: 1.0 is 0b0010, 0 is 0, 6.0 is 0b0111.
    assert drawn("eye", drawn_param((2, 2), "float4_e2m1fn")) == bytes([0x02, 0x20])
    assert drawn("constant:6", drawn_param((3,), "float4_e2m1fn")) == bytes([0x77, 0x07])


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(
    "text", ["uniform", "normal", "xavier_uniform", "kaiming_normal", "sparse:0.3", "constant:42", "eye"]
)
def test_complex_is_what_torch_makes_of_it(text: str, dtype: str) -> None:
    assert drawn(text, drawn_param((8, 4), dtype)) == by_torch(text, (8, 4), dtype, seed_for(7, "0.weight"))


@pytest.mark.parametrize(
    "text", ["trunc_normal", "truncated_normal", "lecun_normal", "variance_scaling", "orthogonal"]
)
def test_complex_is_refused_where_torch_refuses(text: str) -> None:
    reason = why_not(parse(text), (8, 4), BY_NAME["complex64"])
    assert reason == "torch cannot draw it in complex64"


def test_complex_uniform_variance_scaling_is_allowed() -> None:
    assert len(drawn("variance_scaling:distribution=uniform", drawn_param((8, 4), "complex64"))) == 8 * 4 * 8


def test_complex32_identity_is_drawn_wider_and_rounded() -> None:
    assert drawn("eye", drawn_param((2, 1), "complex32")) == bytes([0, 0x3C, 0, 0]) + bytes(4)


def test_nothing_but_drawing_imports_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from paramctl.model.dtypes import BY_NAME
from paramctl.schemes import drawing, drawn_param, scheme
from paramctl.schemes.spec import parse
spec = parse("xavier:gain=relu")
at = drawn_param.DrawnParam("0.weight", (8, 4), BY_NAME["float32"], 0, role="weight")
drawing.why_not(spec, (8, 4), BY_NAME["float32"])
drawing.check(parse("torch-default"), at)
parse({user_file(tmp_path, "import torch; f = print")!r})
assert len(scheme.SCHEMES) > 20 and scheme.fans((8, 4)) == (4, 8)
print(sorted({{"torch", "numpy", "ml_dtypes"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_torch_is_imported_in_one_function() -> None:
    places = []
    for path in sorted(Path(str(paramctl.__file__)).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            imports = [node for node in ast.walk(function) if isinstance(node, ast.Import)]
            places += [function.name for node in imports if any(each.name == "torch" for each in node.names)]
    assert places == ["import_torch"]


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_integers_take_constants_only(dtype: str) -> None:
    assert values("ones", (2, 2), dtype).tolist() == [[1, 1], [1, 1]]
    assert values("eye", (2, 2), dtype).tolist() == [[1, 0], [0, 1]]
    assert values("dirac", (1, 1, 3), dtype).tolist() == [[[0, 1, 0]]]
    reason = why_not(parse("normal"), (2, 2), BY_NAME[dtype])
    assert reason == f"it draws fractions, and {dtype} holds whole numbers"


def test_integers_hold_exactly_what_was_named_or_refuse() -> None:
    assert drawn("constant:9007199254740993", drawn_param((1,), "int64")) == (2**53 + 1).to_bytes(8, "little")
    assert drawn("constant:18446744073709551615", drawn_param((1,), "uint64")) == b"\xff" * 8
    for text, dtype, message in [
        ("constant:1.5", "int64", "int64 cannot hold 1.5"),
        ("constant:300", "uint8", "uint8 cannot hold 300.0"),
        ("constant:-1", "uint32", "uint32 cannot hold -1.0"),
        ("constant:2", "bool", "bool cannot hold 2.0"),
        ("constant:128", "int8", "int8 cannot hold 128.0"),
    ]:
        assert why_not(parse(text), (2,), BY_NAME[dtype]) == message


@pytest.mark.parametrize("dtype", ["qint8", "quint4x2", "bits8", "float4_e2m1fn_x2"])
def test_elements_that_are_no_numbers_are_refused(dtype: str) -> None:
    assert why_not(parse("zeros"), (2,), BY_NAME[dtype]) == f"paramctl cannot draw {dtype} elements"


def test_scales_that_are_powers_of_two() -> None:
    assert drawn("ones", drawn_param((2,), "float8_e8m0fnu")) == bytes([127, 127])
    assert drawn("constant:8", drawn_param((1,), "float8_e8m0fnu")) == bytes([130])
    for text in ("zeros", "normal", "constant:3", "constant:-2"):
        assert (
            why_not(parse(text), (2,), BY_NAME["float8_e8m0fnu"]) == "float8_e8m0fnu holds powers of two only"
        )


def test_torch_s_own_refusal_becomes_a_usage_error() -> None:
    with pytest.raises(UsageError) as caught:
        drawn("uniform:a=0,b=1e39", drawn_param((2,)))
    assert caught.value.what.startswith("uniform cannot apply to 0.weight (2): ")
    with pytest.raises(UsageError) as caught:
        drawn("constant:1e6", drawn_param((2,), "float16"))
    assert caught.value.what.startswith("constant cannot apply to 0.weight (2): value cannot be converted")


def test_a_scheme_that_cannot_apply_says_where_and_why() -> None:
    with pytest.raises(UsageError) as caught:
        drawn("xavier", drawn_param((8,), path="0.bias"))
    assert str(caught.value) == (
        "xavier_uniform cannot apply to 0.bias (8): it needs 2 or more dimensions to have a fan-in and "
        "fan-out; name another scheme for it"
    )
    with pytest.raises(UsageError) as caught:
        drawn("eye", drawn_param((), path=""))
    assert caught.value.what == "eye cannot apply to . (scalar): it needs 2 dimensions to have a diagonal"


def test_empty_tensors_draw_nothing(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): 1 / 0")
    assert drawn(text, drawn_param((0, 4))) == b""
    assert drawn("xavier", drawn_param((0, 0))) == b""
