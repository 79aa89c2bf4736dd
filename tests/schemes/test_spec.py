"""Schemes against torch.nn.init itself, against literals, and against their own definitions."""

from __future__ import annotations

import ast
import hashlib
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import init

import paramctl
from paramctl.errors import UsageError
from paramctl.model.dtypes import BY_NAME
from paramctl.schemes import defaults, scheme
from paramctl.schemes.defaults import resolve
from paramctl.schemes.drawing import check, draw, why_not
from paramctl.schemes.drawn_param import DrawnParam, Role
from paramctl.schemes.generators import seed_for
from paramctl.schemes.scheme import ALIASES, SCHEMES, fans
from paramctl.schemes.spec import find, parse

FLOATS = ("float64", "float32", "float16", "bfloat16")
SHAPES = ((), (3,), (0,), (17,), (8, 4), (4, 8), (1, 1), (33, 7), (0, 4), (4, 0), (5, 3, 2), (4, 2, 3, 3),
          (6, 4, 1, 1), (2, 2, 2, 2, 2), (1, 2, 1, 2, 1, 2))  # fmt: skip

# Each spec beside the call of torch.nn.init it stands for.
TORCH: dict[str, Callable[[torch.Tensor, torch.Generator], object]] = {
    "zeros": lambda t, g: init.zeros_(t),
    "ones": lambda t, g: init.ones_(t),
    "constant:42": lambda t, g: init.constant_(t, 42),
    "constant:-1e-3": lambda t, g: init.constant_(t, -1e-3),
    "uniform": lambda t, g: init.uniform_(t, generator=g),
    "uniform:a=-0.07,b=0.07": lambda t, g: init.uniform_(t, -0.07, 0.07, generator=g),
    "normal": lambda t, g: init.normal_(t, generator=g),
    "normal:mean=3,std=0.01": lambda t, g: init.normal_(t, 3, 0.01, generator=g),
    "trunc_normal": lambda t, g: init.trunc_normal_(t, generator=g),
    "trunc_normal:std=0.02,a=0.05,b=0.1": lambda t, g: init.trunc_normal_(t, 0, 0.02, 0.05, 0.1, generator=g),
    "trunc_normal:a=3,b=4": lambda t, g: init.trunc_normal_(t, a=3, b=4, generator=g),
    "xavier_uniform": lambda t, g: init.xavier_uniform_(t, generator=g),
    "xavier:gain=relu": lambda t, g: init.xavier_uniform_(t, init.calculate_gain("relu"), generator=g),
    "xavier_normal": lambda t, g: init.xavier_normal_(t, generator=g),
    "xavier_normal:gain=0.3": lambda t, g: init.xavier_normal_(t, 0.3, generator=g),
    "kaiming_uniform": lambda t, g: init.kaiming_uniform_(t, generator=g),
    "kaiming_uniform:a=0.2,mode=fan_out": lambda t, g: init.kaiming_uniform_(t, 0.2, "fan_out", generator=g),
    "kaiming_normal": lambda t, g: init.kaiming_normal_(t, generator=g),
    "kaiming_normal:mode=fan_out,nonlinearity=relu": lambda t, g: init.kaiming_normal_(
        t, mode="fan_out", nonlinearity="relu", generator=g
    ),
    "orthogonal": lambda t, g: init.orthogonal_(t, generator=g),
    "orthogonal:gain=-1.5": lambda t, g: init.orthogonal_(t, -1.5, generator=g),
    "sparse:0.3": lambda t, g: init.sparse_(t, 0.3, generator=g),
    "sparse:sparsity=0.9,std=1": lambda t, g: init.sparse_(t, 0.9, 1, generator=g),
    "eye": lambda t, g: init.eye_(t),
    "dirac": lambda t, g: init.dirac_(t),
    "dirac:groups=2": lambda t, g: init.dirac_(t, 2),
}


def drawn_param(
    shape: tuple[int, ...], dtype: str = "float32", path: str = "0.weight", seed: int = 7, **more: Any
) -> DrawnParam:
    return DrawnParam(path, shape, BY_NAME[dtype], seed, **more)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def values(text: str, shape: tuple[int, ...], dtype: str = "float32", **more: Any) -> np.ndarray[Any, Any]:
    """What a scheme draws, as float64."""
    at = drawn_param(shape, dtype, **more)
    buffer = bytearray(draw(parse(text), at))
    return torch.frombuffer(buffer, dtype=getattr(torch, dtype)).reshape(shape).double().numpy()


def drawn(text: str, at: DrawnParam) -> bytes:
    return bytes(draw(parse(text), at))


def by_torch(text: str, shape: tuple[int, ...], dtype: str, seed: int) -> bytes | None:
    """The bytes torch.nn.init itself makes, or None where it refuses."""
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            TORCH[text](tensor, torch.Generator().manual_seed(seed))
    except ValueError:
        return None
    return raw(tensor)


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


@pytest.mark.parametrize("name", get_args(scheme.Nonlinearity))
@pytest.mark.parametrize("slope", [0.0, 0.01, 0.2, math.sqrt(5), -3.0])
def test_gains_are_torch_s(name: Any, slope: float) -> None:
    assert scheme.calculate_gain(name, slope) == init.calculate_gain(name, slope)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple))
def test_fans_are_torch_s(shape: tuple[int, ...]) -> None:
    assert fans(shape) == init._calculate_fan_in_and_fan_out(torch.empty(shape, device="meta"))
    out, into, *field = shape
    assert fans((*field, into, out), "keras") == fans(shape)


def test_fans_need_two_dimensions() -> None:
    with pytest.raises(UsageError) as caught:
        fans((8,))
    assert str(caught.value) == "a tensor of shape (8) has no fan-in and fan-out"


def test_seed_is_the_head_of_a_sha256() -> None:
    assert seed_for(0, "0.weight") == int.from_bytes(hashlib.sha256(b"0/0.weight").digest()[:8], "little")
    assert seed_for(42, "block 1.bias") == 10571847995387310222
    assert seed_for(1, "\udcff") == int.from_bytes(hashlib.sha256(b"1/\xed\xb3\xbf").digest()[:8], "little")


def test_torch_takes_any_64_bit_seed() -> None:
    assert torch.Generator().manual_seed(2**64 - 1).initial_seed() == 2**64 - 1


def test_draws_differ_by_path_and_seed_and_by_nothing_else() -> None:
    first = drawn("normal", drawn_param((64,)))
    assert first == drawn("normal", drawn_param((64,), module="Linear", role="weight"))
    assert first != drawn("normal", drawn_param((64,), path="1.weight"))
    assert first != drawn("normal", drawn_param((64,), seed=8))


@pytest.mark.parametrize("text", ["normal", "sparse:0.5", "orthogonal", "truncated_normal", "USER"])
def test_global_random_state_is_left_alone(text: str, tmp_path: Path) -> None:
    if text == "USER":
        text = user_file(tmp_path, "import torch, random, numpy\n"
                         "def f(w): w.normal_(); random.random(); numpy.random.rand()")  # fmt: skip
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    draw(parse(text), drawn_param((8, 4)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert repr(np.random.get_state()) == before[2]


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


def moments(text: str, shape: tuple[int, ...] = (300, 200), **more: Any) -> tuple[float, float, float]:
    """Mean, standard deviation and largest absolute value of a draw."""
    drawn = values(text, shape, **more)
    return float(drawn.mean()), float(drawn.std()), float(np.abs(drawn).max())


@pytest.mark.parametrize(
    ("text", "std", "limit"),
    [
        ("lecun_uniform", math.sqrt(1 / 200), math.sqrt(3 / 200)),
        ("lecun_normal", math.sqrt(1 / 200), 2 * math.sqrt(1 / 200) / 0.8796),
        ("truncated_normal", 0.05 * 0.8796, 0.1),
        ("truncated_normal:stddev=2", 2 * 0.8796, 4),
        ("variance_scaling", math.sqrt(1 / 200), 2 * math.sqrt(1 / 200) / 0.8796),
        ("variance_scaling:scale=2,mode=fan_out,distribution=untruncated_normal", math.sqrt(2 / 300), 1),
        ("variance_scaling:mode=fan_avg,distribution=uniform", math.sqrt(1 / 250), math.sqrt(3 / 250)),
        ("msra_prelu", math.sqrt(2 / (1 + 0.25**2) / 250), 1),
        ("msra_prelu:factor_type=in,slope=0", math.sqrt(2 / 200), 1),
    ],
)
@pytest.mark.parametrize("kernel", ["torch", "keras"])
def test_distribution(text: str, std: float, limit: float, kernel: str) -> None:
    mean, deviation, largest = moments(text, (300, 200) if kernel == "torch" else (200, 300), kernel=kernel)
    assert abs(mean) < 5 * std / math.sqrt(300 * 200)
    assert deviation == pytest.approx(std, rel=0.02)
    assert largest <= limit * (1 + 1e-4)
    assert largest > 0.97 * limit or limit == 1


@pytest.mark.parametrize("name", ["xavier", "kaiming_normal", "lecun_uniform"])
def test_fans_follow_the_kernel_s_layout(name: str) -> None:
    shape = (3, 3, 20, 50)
    assert moments(name, shape, kernel="keras")[1] == pytest.approx(
        moments(name, (50, 20, 3, 3))[1], rel=0.05
    )
    assert moments(name, shape)[1] != pytest.approx(moments(name, shape, kernel="keras")[1], rel=0.05)


def test_bilinear() -> None:
    # k = 4: f = 2, c = 0.75, so 1 − |x / 2 − 0.75| = 1/4, 3/4, 3/4, 1/4.
    tent = [0.25, 0.75, 0.75, 0.25]
    expected = [[x * y for x in tent] for y in tent]
    assert values("bilinear", (2, 1, 4, 4)).tolist() == [[expected], [expected]]
    # k = 3: f = 2, c = 0.75 again, so 1/4, 3/4, 3/4: MXNet's formula means k = 2f − f mod 2.
    assert values("bilinear", (1, 1, 3, 3))[0, 0].tolist() == [row[:3] for row in expected[:3]]
    assert values("bilinear", (4, 4, 1, 2), kernel="keras")[:, :, 0, 1].tolist() == expected
    assert why_not(parse("bilinear"), (2, 1, 4, 3), BY_NAME["float32"]) == "its kernel is 4 × 3, not square"


def test_lstm_bias() -> None:
    assert values("lstm_bias", (8,)).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert values("lstm_bias:2.5", (4,)).tolist() == [0, 2.5, 0, 0]
    assert why_not(parse("lstm_bias"), (6,), BY_NAME["float32"]) == "its 6 values do not divide into 4 gates"


def test_identity() -> None:
    assert values("identity:gain=-2", (2, 3)).tolist() == [[-2, 0, 0], [0, -2, 0]]
    assert values("eye", (3, 2), "uint16").tolist() == [[1, 0], [0, 1], [0, 0]]


def test_dirac_in_either_layout() -> None:
    torch_order = values("dirac:groups=2", (4, 2, 3, 5))
    assert np.argwhere(torch_order).tolist() == [[0, 0, 1, 2], [1, 1, 1, 2], [2, 0, 1, 2], [3, 1, 1, 2]]
    keras = values("dirac:groups=2", (3, 5, 2, 4), kernel="keras")
    assert np.array_equal(keras.transpose(3, 2, 0, 1), torch_order)
    reason = why_not(parse("dirac:groups=3"), (4, 2, 3), BY_NAME["float32"])
    assert reason == "its 4 output channels do not divide into 3 groups"


@pytest.mark.parametrize(("kernel", "shape"), [("torch", (6, 2, 3, 3)), ("keras", (3, 3, 2, 6))])
def test_orthogonal_rows_or_columns_by_layout(kernel: str, shape: tuple[int, ...]) -> None:
    q = values("orthogonal", shape, kernel=kernel)
    matrix = q.reshape(6, -1) if kernel == "torch" else q.reshape(-1, 6).T
    assert np.allclose(matrix @ matrix.T, np.eye(6), atol=1e-5)


def test_sparse_in_keras_layout_zeroes_inputs_of_a_unit_alike() -> None:
    assert (values("sparse:0.5", (10, 20)) == 0).sum(axis=0).tolist() == [5] * 20
    assert (values("sparse:0.5", (20, 10), kernel="keras") == 0).sum(axis=1).tolist() == [5] * 20


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


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("xavier", "xavier_uniform"),
        ("glorot", "xavier_uniform"),
        ("GlorotUniform", "xavier_uniform"),
        ("xavier_uniform_", "xavier_uniform"),
        ("glorot_normal", "xavier_normal"),
        ("kaiming", "kaiming_uniform"),
        ("he", "kaiming_uniform"),
        ("HeUniform", "kaiming_uniform"),
        ("he_normal", "kaiming_normal"),
        ("msra", "kaiming_normal"),
        ("MSRAPrelu", "msra_prelu"),
        ("TruncatedNormal", "truncated_normal"),
        ("trunc_normal_", "trunc_normal"),
        ("VarianceScaling", "variance_scaling"),
        ("LecunNormal", "lecun_normal"),
        ("LSTMBias", "lstm_bias"),
        ("One", "ones"),
        ("zero", "zeros"),
        ("Identity", "identity"),
        ("torch_default", "torch-default"),
        ("pytorch-default", "torch-default"),
    ],
)
def test_aliases(name: str, canonical: str) -> None:
    assert find(name).name == canonical


def test_every_initialiser_of_torch_has_its_name() -> None:
    for name in (each for each in init.__all__ if each.endswith("_")):
        assert find(name).origin == f"torch.nn.init.{name}"


def test_names_and_aliases_mean_one_scheme_each() -> None:
    names = [name.replace("_", "").replace("-", "") for name in (*SCHEMES, *ALIASES)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_explains_itself(name: str) -> None:
    each = SCHEMES[name]
    assert each.summary.endswith(".") and "\n" not in each.summary
    assert each.formula and each.origin and each.shapes
    assert all(argument.doc for argument in each.arguments)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("xavier", "xavier_uniform"),
        ("normal:std=0.01", "normal:std=0.01"),
        ("normal: mean = 0 , std = 1e-2", "normal:std=0.01"),
        ("normal:0", "normal"),
        ("constant:42", "constant:42"),
        ("constant:val=-1.5", "constant:-1.5"),
        ("constant:0", "constant:0"),
        ("sparse:sparsity=.5,std=2", "sparse:sparsity=0.5,std=2"),
        ("he:mode=FAN_OUT", "kaiming_uniform:mode=fan_out"),
        ("xavier:tanh", "xavier_uniform:gain=1.6666666666666667"),
        ("dirac:groups=2", "dirac:groups=2"),
        ("default", "default"),
    ],
)
def test_text_of_a_spec(text: str, written: str) -> None:
    assert parse(text).text == written
    assert parse(written) == parse(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_their_text(number: float) -> None:
    spec = parse(f"constant:{number!r}")
    assert spec.arguments["val"] == number
    assert parse(spec.text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "xavir",
            "no scheme 'xavir'; did you mean xavier_uniform, xavier_normal? (paramctl schemes lists all)",
        ),
        ("qqqq", "no scheme 'qqqq'; 'paramctl schemes' lists all"),
        ("", "no scheme ''; 'paramctl schemes' lists all"),
        ("normal:stdd=1", "normal has no argument 'stdd'; it takes mean, std"),
        ("zeros:val=1", "zeros has no argument 'val'; it takes no arguments"),
        ("zeros:1", "zeros takes no arguments, but '1' was given"),
        ("normal:std=big", "normal: std must be a number, not 'big'"),
        ("normal:std=inf", "normal: std must be a number, not 'inf'"),
        ("normal:std=-1", "normal: std must be 0 or more, not '-1'"),
        ("normal:", "normal: mean must be a number, not ''"),
        ("normal:std=1,std=2", "normal: std is given twice"),
        ("uniform:-1,1", "uniform: '-1' has no name; write a=-1, say"),
        ("uniform:a=1,b=0", "uniform: a (1) is greater than b (0)"),
        ("uniform:a=2", "uniform: a (2) is greater than b (1)"),
        ("constant", "constant needs val; write constant:val=VALUE"),
        ("constant:1_x", "constant: val must be a number, not '1_x'"),
        ("sparse", "sparse needs sparsity; write sparse:sparsity=VALUE"),
        ("sparse:1.5", "sparse: sparsity must be between 0 and 1, not '1.5'"),
        ("trunc_normal:std=0", "trunc_normal: std must be more than 0, not '0'"),
        ("trunc_normal:a=2,b=1", "trunc_normal: a (2) is greater than b (1)"),
        ("trunc_normal:a=3,b=1e9", "trunc_normal: almost no value of N(0, 1²) lies in [3, 1e+09]"),
        ("trunc_normal:std=0.01,a=5,b=6", "trunc_normal: almost no value of N(0, 0.01²) lies in [5, 6]"),
        ("he:mode=fan", "kaiming_uniform: mode must be one of fan_in, fan_out, not 'fan'"),
        ("he:a=1e200", "kaiming_uniform: a must be between -1e+100 and 1e+100, not '1e200'"),
        ("xavier:gain=-1", "xavier_uniform: gain must be 0 or more, not '-1'"),
        ("dirac:groups=0", "dirac: groups must be 1 or more, not '0'"),
        ("dirac:groups=1.5", "dirac: groups must be a whole number, not '1.5'"),
        ("my.py", "my.py needs the name of a function in it; write my.py:FUNCTION"),
        ("/nowhere/my.py:f", "cannot read /nowhere/my.py: No such file or directory"),
    ],
)
def test_what_cannot_be_parsed(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == message


LINEAR = {"weight": (8, 4), "bias": (8,)}
LSTM = {"weight_ih_l0": (12, 5), "weight_hh_l0": (12, 3), "bias_ih_l0": (12,), "bias_hh_l0": (12,)}


def resolved(
    text: str, path: str, shape: tuple[int, ...], role: Role, **more: Any
) -> tuple[str | None, bool]:
    spec, assumed = resolve(parse(text), drawn_param(shape, path=path, role=role, **more))
    return None if spec is None else spec.text, assumed


HE_ROOT_5 = "kaiming_uniform:a=2.23606797749979"
THIRD = "uniform:a=-0.5773502691896258,b=0.5773502691896258"  # 1 / √3


@pytest.mark.parametrize(
    ("path", "shape", "role", "more", "expected", "assumed"),
    [
        ("0.weight", (8, 4), "weight", {"module": "Linear"}, HE_ROOT_5, False),
        ("0.weight", (8, 4), "weight", {}, HE_ROOT_5, True),
        ("0.bias", (8,), "bias", {"module": "Linear", "siblings": LINEAR}, "uniform:a=-0.5,b=0.5", False),
        ("0.bias", (8,), "bias", {}, "zeros", True),
        ("e.weight", (9, 4), "weight", {"module": "Embedding"}, "normal", False),
        ("n.weight", (4,), "scale", {"module": "LayerNorm"}, "ones", False),
        ("n.weight", (4, 4), "weight", {"module": "LayerNorm"}, "ones", False),
        ("n.bias", (4,), "bias", {"siblings": {"weight": (4,)}}, "zeros", True),
        ("n.running_mean", (4,), "tensor", {"module": "BatchNorm2d"}, "zeros", False),
        ("n.running_var", (4,), "tensor", {}, "ones", False),
        ("n.num_batches_tracked", (), "tensor", {}, "zeros", False),
        ("a.weight", (1,), "scale", {"module": "PReLU"}, "constant:0.25", False),
        ("b.weight", (2, 3, 4), "weight", {"module": "Bilinear"}, THIRD, False),
        ("b.bias", (2,), "bias", {"module": "Bilinear", "siblings": {"weight": (2, 3, 4)}}, THIRD, False),
        ("r.weight_ih_l0", (12, 5), "weight", {"module": "LSTM", "siblings": LSTM}, THIRD, False),
        ("r.weight_hh_l0", (12, 3), "weight", {}, THIRD, True),
        ("r.bias_hh_l0", (12,), "bias", {"siblings": LSTM}, THIRD, True),
        ("r.bias_ih", (9,), "bias", {"module": "GRUCell"}, THIRD, False),
        ("r.bias_ih_l0", (12,), "bias", {}, "zeros", True),
        ("m.in_proj_weight", (12, 4), "weight", {}, "xavier_uniform", True),
        ("m.in_proj_bias", (12,), "tensor", {"module": "MultiheadAttention"}, "zeros", False),
        ("m.bias_k", (1, 1, 4), "weight", {"module": "MultiheadAttention"}, "xavier_normal", False),
        ("m.out_proj.bias", (4,), "bias", {"module": "NonDynamicallyQuantizableLinear"}, "zeros", False),
        ("c.weight", (4, 2, 3), "weight", {"module": "ConvTranspose1d"}, HE_ROOT_5, False),
        ("logit_scale", (), "tensor", {}, None, True),
    ],
)  # fmt: skip
def test_torch_default(
    path: str, shape: tuple[int, ...], role: Role, more: dict[str, Any], expected: str | None, assumed: bool
) -> None:
    assert resolved("torch-default", path, shape, role, **more) == (expected, assumed)
    assert resolved("default", path, shape, role, **more) == (expected, assumed)


def test_projected_lstm_s_hidden_size() -> None:
    layer = nn.LSTM(5, 6, proj_size=2)
    shapes = {name: tuple(param.shape) for name, param in layer.named_parameters()}
    bound = 1 / math.sqrt(6)
    for name, shape in shapes.items():
        text, _ = resolved("torch-default", name, shape, "weight", siblings=shapes)
        assert text == f"uniform:a={-bound!r},b={bound!r}"


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(4, 8), nn.Conv2d(3, 6, 3, groups=3), nn.ConvTranspose1d(4, 2, 3), nn.Bilinear(3, 2, 5),
     nn.GRU(4, 3), nn.LSTMCell(4, 3), nn.Embedding(5, 4), nn.LayerNorm((3, 2)), nn.BatchNorm1d(4),
     nn.PReLU()],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_torch_default_is_what_reset_parameters_calls(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each draw equals the same call of torch.nn.init under the param's own generator."""
    names = {id(param): name for name, param in layer.named_parameters()}
    shapes = {name: tuple(param.shape) for name, param in layer.named_parameters()}

    def under_own_generator(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed_for(7, names[id(tensor)]))
            return function(tensor, *args, **kwargs, generator=generator)

        return call

    with monkeypatch.context() as patch:
        for name in ("uniform_", "normal_", "kaiming_uniform_"):
            patch.setattr(init, name, under_own_generator(getattr(init, name)))
        layer.reset_parameters()  # type: ignore[operator]
    for name, param in layer.named_parameters():
        role: Role = "bias" if "bias" in name else "weight" if param.dim() > 1 else "scale"
        at = drawn_param(shapes[name], path=name, role=role, module=type(layer).__name__, siblings=shapes)
        assert drawn("torch-default", at) == raw(param.detach()), name


@pytest.mark.parametrize(
    ("path", "shape", "role", "more", "expected"),
    [
        ("d.kernel", (4, 8), "weight", {}, "xavier_uniform"),
        ("d.bias", (8,), "bias", {}, "zeros"),
        ("e.embeddings", (9, 4), "weight", {}, "uniform:a=-0.05,b=0.05"),
        ("l.recurrent_kernel", (2, 8), "weight", {}, "orthogonal"),
        ("l.bias", (8,), "bias", {"siblings": {"recurrent_kernel": (2, 8)}}, "lstm_bias"),
        ("l.bias", (8,), "bias", {"module": "LSTM"}, "lstm_bias"),
        ("g.bias", (2, 6), "weight", {"siblings": {"recurrent_kernel": (2, 6)}}, "zeros"),
        ("n.gamma", (8,), "scale", {}, "ones"),
        ("n.beta", (8,), "bias", {}, "zeros"),
        ("n.moving_variance", (8,), "tensor", {}, "ones"),
        ("x.other", (), "tensor", {}, None),
    ],
)
def test_keras_default(
    path: str, shape: tuple[int, ...], role: Role, more: dict[str, Any], expected: str | None
) -> None:
    assert resolved("keras-default", path, shape, role, kernel="keras", **more) == (expected, False)
    assert resolved("default", path, shape, role, kernel="keras", **more) == (expected, False)


def test_keras_default_gives_no_forget_bias_to_torch_s_lstm() -> None:
    assert resolved("keras-default", "r.bias_ih_l0", (12,), "bias", module="LSTM", siblings=LSTM) == (
        "zeros",
        False,
    )
    assert resolved("keras-default", "0.weight", (8, 4), "weight") == ("xavier_uniform", True)


@pytest.mark.parametrize(
    ("path", "shape", "role", "expected"),
    [
        ("dense0_weight", (8, 4), "weight", "uniform:a=-0.07,b=0.07"),
        ("dense0_bias", (8,), "tensor", "zeros"),
        ("batchnorm0_gamma", (8,), "tensor", "ones"),
        ("batchnorm0_running_var", (8,), "tensor", "ones"),
        ("0.bias", (8,), "bias", "zeros"),
        ("0.weight", (8,), "scale", "ones"),
        ("const", (), "tensor", None),
    ],
)
def test_mxnet_default(path: str, shape: tuple[int, ...], role: Role, expected: str | None) -> None:
    assert resolved("mxnet-default", path, shape, role) == (expected, False)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("torch-zip", "torch-default"),
        ("safetensors", "torch-default"),
        ("keras", "keras-default"),
        ("mxnet", "mxnet-default"),
    ],
)
def test_default_for_a_format(form: str, name: str) -> None:
    assert defaults.default_for(form).text == name
    assert defaults.default_for(form).is_default


def test_a_concrete_scheme_resolves_to_itself() -> None:
    spec = parse("xavier")
    assert resolve(spec, drawn_param((8, 4))) == (spec, False)
    assert check(spec, drawn_param((8, 4))) == spec
    assert not spec.is_default


def test_a_param_without_a_default_is_refused_when_drawn() -> None:
    with pytest.raises(UsageError) as caught:
        drawn("torch-default", drawn_param((), path="logit_scale"))
    assert str(caught.value) == (
        "torch-default cannot apply to logit_scale (scalar): the framework has no default for it"
        "; name a scheme for it"
    )


def user_file(folder: Path, source: str, name: str = "my_init.py", function: str = "f") -> str:
    (folder / name).write_text(source, encoding="utf-8")
    return f"{folder / name}:{function}"


def user_error(text: str, at: DrawnParam, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        draw(parse(text), at, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "from torch.nn import init\ndef f(w): init.uniform_(w, 5, 10)",
        "from torch.nn import init\ndef f(w): return init.uniform_(w, 5, 10)",
        "import torch\ndef f(w): return torch.empty_like(w).uniform_(5, 10)",
        "import torch\ndef f(w): return torch.empty(w.shape[::-1]).t().uniform_(5, 10).contiguous()",
    ],
)
def test_a_function_changes_in_place_or_returns(source: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(seed_for(7, "0.weight"))
    reference = torch.empty(8, 4).uniform_(5, 10, generator=generator)
    got = drawn(user_file(tmp_path, source), drawn_param((8, 4)))
    assert len(got) == 128
    assert got == raw(reference) or "t()" in source


def test_a_function_draws_the_same_from_every_global_generator(tmp_path: Path) -> None:
    text = user_file(tmp_path, "import random, numpy as np\n"
                     "def f(w):\n    w[0], w[1] = random.random(), float(np.random.rand())")  # fmt: skip
    assert drawn(text, drawn_param((2,))) == drawn(text, drawn_param((2,)))
    assert drawn(text, drawn_param((2,))) != drawn(text, drawn_param((2,), path="1.weight"))


def test_a_function_s_module_is_executed_once_and_alike_whichever_param_comes_first(tmp_path: Path) -> None:
    text = user_file(
        tmp_path, "import torch\nprint('loaded')\nshift = torch.rand(())\ndef f(w): w.fill_(shift)"
    )
    spec = parse(text)
    first, second = drawn_param((2,)), drawn_param((2,), path="1.weight")
    a, b = bytes(draw(spec, first)), bytes(draw(spec, second))
    other = parse(text)
    assert (bytes(draw(other, second)), bytes(draw(other, first))) == (b, a)
    assert a == b


def test_a_function_may_take_the_path(tmp_path: Path) -> None:
    assert drawn(user_file(tmp_path, "def f(w, path): w.fill_(len(path))"), drawn_param((1,))) == raw(
        torch.tensor([8.0])
    )
    assert drawn(user_file(tmp_path, "def f(w, gain=3.0): w.fill_(gain)"), drawn_param((1,))) == raw(
        torch.tensor([3.0])
    )


def test_a_function_starts_from_the_current_values_or_zeros(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): w.add_(1)")
    assert drawn(text, drawn_param((2,))) == raw(torch.tensor([1.0, 1.0]))
    current = raw(torch.tensor([3.0, 4.0]))
    assert bytes(draw(parse(text), drawn_param((2,)), current)) == raw(torch.tensor([4.0, 5.0]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int64", "bool", "complex64"])
def test_a_function_s_result_is_cast(dtype: str, tmp_path: Path) -> None:
    text = user_file(tmp_path, "import torch\ndef f(w): return torch.ones(w.shape, dtype=torch.float64)")
    assert (
        values(text, (2, 2), dtype).tolist() == [[1, 1], [1, 1]]
        if dtype != "complex64"
        else drawn(text, drawn_param((1,), dtype)) == raw(torch.ones(1, dtype=torch.complex64))
    )


def test_a_function_s_dataclasses_and_closures_work(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Fill:\n    value: float\n    def __call__(self, w): w.fill_(self.value)\n"
        "f = Fill(2.0)"
    )
    assert drawn(user_file(tmp_path, source), drawn_param((1,))) == raw(torch.tensor([2.0]))


def test_a_file_s_name_may_hold_colons_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): w.fill_(1)", name="a:b.py")
    assert drawn(text, drawn_param((1,))) == raw(torch.tensor([1.0]))
    assert [each.name for each in tmp_path.iterdir()] == ["a:b.py"]
    assert parse(text).text == text


def test_what_a_function_prints_stays_out_of_the_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(user_file(tmp_path, "print('loading')\ndef f(w): print('drawing')"), drawn_param((1,)))
    assert capsys.readouterr() == ("", "loading\ndrawing\n")


def test_a_function_s_fractions_do_not_become_whole_numbers(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): return w.double() + 0.5")
    assert user_error(text, drawn_param((2,), "int64")) == (
        f"{text} returned float64 values that int64 cannot hold for 0.weight; "
        "it must change the tensor in place or return one of shape (2)"
    )


def test_a_function_may_close_what_it_prints_to_and_go_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    source = "import os, sys\ndef f(w):\n print('here')\n sys.stdout.close()\n os.chdir('sub')\n w.fill_(5)"
    made = draw(parse(user_file(tmp_path, source)), drawn_param((2, 2)))
    assert np.frombuffer(made, "<f4").tolist() == [5, 5, 5, 5]
    assert Path.cwd() == tmp_path
    sys.stderr.write("still there\n")
    assert capsys.readouterr().err == "here\nstill there\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(w): return [1]", "{f} returned a list for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): return w.t()", "{f} made a tensor of shape (4, 8) for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): w.resize_(2)", "{f} made a tensor of shape (2) for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): return w * 1j", "{f} returned complex numbers for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch\ndef f(w): return w.to_sparse()", "{f} returned a sparse_coo tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch\ndef f(w): return w.to('meta')", "{f} returned a meta tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch\ndef f(w): return torch.nested.nested_tensor([torch.ones(4)] * 8, layout=torch.jagged)",
         "{f} returned a nested tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch, warnings\nwarnings.simplefilter('ignore')\n"
         "def f(w): return torch.quantize_per_tensor(w, 1.0, 0, torch.qint8)",
         "{f} returned a quantized tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): return w.double() + 1e300",
         "{f} returned float64 values that float32 cannot hold for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w):\n    x = 1\n    return x / 0",
         "{f} failed for 0.weight: ZeroDivisionError: division by zero (line 3)"),
        ("def f(w):\n    import sys\n    sys.exit(4)", "{f} failed for 0.weight: SystemExit: 4 (line 3)"),
        ("class Odd(BaseException): pass\ndef f(w): raise Odd('no')", "{f} failed for 0.weight: Odd: no (line 2)"),
        ("class Odd(BaseException): pass\nraise Odd\ndef f(w): pass", "{f} failed for 0.weight: Odd (line 2)"),
        ("def f(w): raise GeneratorExit", "{f} failed for 0.weight: GeneratorExit (line 1)"),
        ("class Mine(KeyboardInterrupt): pass\ndef f(w): raise Mine", "{f} failed for 0.weight: Mine (line 2)"),
        ("def f(w): raise StopIteration(3)", "{f} failed for 0.weight: StopIteration: 3 (line 1)"),
        ("class Mute(Exception):\n    def __str__(self): 1 / 0\ndef f(w): raise Mute",
         "{f} failed for 0.weight: Mute (line 3)"),
        ("x = y\ndef f(w): pass", "{f} failed for 0.weight: NameError: name 'y' is not defined (line 1)"),
        ("def f(): pass",
         "{f} failed for 0.weight: TypeError: f() takes 0 positional arguments but 1 was given"),
        ("f = 3", "{file} has no function 'f'"),
    ],
)  # fmt: skip
def test_what_a_function_does_wrong(source: str, message: str, tmp_path: Path) -> None:
    text = user_file(tmp_path, source)
    assert user_error(text, drawn_param((8, 4))) == message.format(f=text, file=text.removesuffix(":f"))


def test_ctrl_c_is_no_fault_of_a_function(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        draw(parse(text), drawn_param((2,)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def my_init(w): pass", "{file} has no function 'f'"),
        ("def ff(w): pass", "{file} has no function 'f'; did you mean ff?"),
        ("def f(w)", "{file} is not Python: expected ':' (line 1)"),
        ("x = '\0'", "{file} is not Python: source code string cannot contain null bytes (line None)"),
    ],
)
def test_a_file_is_checked_without_running_it(source: str, message: str, tmp_path: Path) -> None:
    text = user_file(tmp_path, f"{source}\n")
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == message.format(file=text.removesuffix(":f"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.py").mkdir()
    with pytest.raises(UsageError) as caught:
        parse(f"{tmp_path}/x.py:f")
    assert str(caught.value) == f"{tmp_path}/x.py is not a regular file"


def test_a_function_gets_no_packed_elements(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): pass")
    reason = why_not(parse(text), (2,), BY_NAME["float4_e2m1fn"])
    assert reason == "paramctl cannot hand float4_e2m1fn elements to a function"


def test_empty_tensors_draw_nothing(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): 1 / 0")
    assert drawn(text, drawn_param((0, 4))) == b""
    assert drawn("xavier", drawn_param((0, 0))) == b""
