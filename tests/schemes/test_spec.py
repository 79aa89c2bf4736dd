"""Names of schemes and their arguments, read from text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import init

from paramctl.errors import UsageError
from paramctl.schemes.scheme import ALIASES, SCHEMES
from paramctl.schemes.spec import find, parse


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


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("xavier", "xavier_uniform"),
        ("normal:std=0.01", "normal:std=0.01"),
        ("normal: mean = 0 , std = 1e-2", "normal:std=0.01"),
        ("normal:mean=0", "normal"),
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
        ("normal:0.02", "normal takes mean, std: '0.02' may be any of them; write normal:mean=0.02 or normal:std=0.02"),
        ("uniform:1", "uniform takes a, b: '1' may be any of them; write uniform:a=1 or uniform:b=1"),
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
