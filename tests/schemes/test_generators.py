"""Seeds of params, and the global random state, which a draw leaves alone."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scheme_draws import drawn, drawn_param, user_file

from paramctl.schemes.drawing import draw
from paramctl.schemes.generators import seed_for
from paramctl.schemes.spec import parse


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
