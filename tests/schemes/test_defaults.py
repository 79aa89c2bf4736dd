"""The frameworks' defaults, against what torch's layers call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scheme_draws import drawn, drawn_param, raw
from torch import nn
from torch.nn import init

from paramctl.errors import UsageError
from paramctl.schemes import defaults
from paramctl.schemes.defaults import resolve
from paramctl.schemes.drawing import check
from paramctl.schemes.drawn_param import Role
from paramctl.schemes.generators import seed_for
from paramctl.schemes.spec import parse

HE_ROOT_5 = "kaiming_uniform:a=2.23606797749979"
LINEAR = {"weight": (8, 4), "bias": (8,)}
LSTM = {"weight_ih_l0": (12, 5), "weight_hh_l0": (12, 3), "bias_ih_l0": (12,), "bias_hh_l0": (12,)}


def resolved(
    text: str, path: str, shape: tuple[int, ...], role: Role, **more: Any
) -> tuple[str | None, bool]:
    spec, assumed = resolve(parse(text), drawn_param(shape, path=path, role=role, **more))
    return None if spec is None else spec.text, assumed


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
