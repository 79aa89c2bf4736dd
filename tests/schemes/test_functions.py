"""Schemes that torch does not have, against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scheme_draws import values

from paramctl.model.dtypes import BY_NAME
from paramctl.schemes.drawing import why_not
from paramctl.schemes.spec import parse


def moments(text: str, shape: tuple[int, ...] = (300, 200), **more: Any) -> tuple[float, float, float]:
    """Return mean, standard deviation and largest absolute value of a draw."""
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
