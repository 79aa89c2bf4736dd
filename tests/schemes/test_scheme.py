"""Fans and gains against torch, and what a scheme says of itself."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import init

from paramctl.errors import UsageError
from paramctl.schemes import scheme
from paramctl.schemes.scheme import SCHEMES, fans


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


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_explains_itself(name: str) -> None:
    each = SCHEMES[name]
    assert each.summary.endswith(".") and "\n" not in each.summary
    assert each.formula and each.origin and each.shapes
    assert all(argument.doc for argument in each.arguments)
