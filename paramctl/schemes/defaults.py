"""The defaults of the frameworks: which scheme each param of a layer gets."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import NamedTuple

from paramctl.schemes.scheme import fans, scheme
from paramctl.schemes.spec import Spec, call, parse
from paramctl.schemes.target import Target
from paramctl.schemes.user_function import UserFunction

RECURRENT = re.compile(r"(?:weight|bias)_(ih|hh|hr)(_l\d+(?:_reverse)?)?")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}
TORCH_LAYER = re.compile(
    r"Linear|NonDynamicallyQuantizableLinear|Bilinear|Conv(Transpose)?\dd|Embedding(Bag)?|(LSTM|GRU|RNN)(Cell)?"
    r"|MultiheadAttention|PReLU|\w*Norm(\dd)?"
)
STATE = {  # by the last name of a path: statistics, and what normalisation layers learn
    "running_mean": "zeros",
    "running_var": "ones",
    "num_batches_tracked": "zeros",
    "moving_mean": "zeros",
    "moving_var": "ones",
    "moving_variance": "ones",
    "gamma": "ones",
    "beta": "zeros",
}


class Resolution(NamedTuple):
    """What a scheme comes to for one param. `spec` is None where the framework has no default: keep it.

    `assumed`: the file names no class for the layer, so a weight was taken for a Linear's or Conv's.
    """

    spec: Spec | None
    assumed: bool = False


def default_for(format_name: str) -> Spec:
    """The defaults of the framework that writes such files: what `default` means."""
    framework = re.match(r"keras|tf|tensorflow|h5|hdf5|mxnet|gluon", format_name.lower())
    if framework is None:
        return parse("torch-default")
    return parse("mxnet-default" if framework[0] in ("mxnet", "gluon") else "keras-default")


def resolve(spec: Spec, target: Target) -> Resolution:
    """The concrete scheme for a param: itself, or what a framework's default chooses by role and layer."""
    if isinstance(spec.scheme, UserFunction) or not spec.scheme.role_aware:
        return Resolution(spec)
    return spec.scheme.function(target)  # type: ignore[no-any-return]


@scheme("weights kaiming_uniform(a = √5) = U(±1 / √fan_in), biases U(±1 / √fan_in), embeddings N(0, 1), "
        "recurrent U(±1 / √hidden), attention in_proj xavier_uniform, scales 1", "torch reset_parameters()",
        name="torch-default", aliases=("pytorch-default",), role_aware=True)  # fmt: skip
def torch_default(target: Target) -> Resolution:
    """What torch's layers do when they are made."""
    if state := _state(target):
        return state
    spec = _torch_special(target) or _torch_by_role(target)
    return Resolution(spec, assumed=not TORCH_LAYER.fullmatch(target.module))


@scheme("kernels xavier_uniform, recurrent kernels orthogonal, embeddings U(±0.05), biases 0 "
        "(LSTM: forget gate 1), scales 1", "keras layers", name="keras-default",
        aliases=("tf-default", "tensorflow-default"), role_aware=True)  # fmt: skip
def keras_default(target: Target) -> Resolution:
    """What Keras's layers do when they are made."""
    if state := _state(target):
        return state
    return Resolution(_keras(target), assumed=not target.module and target.name == "weight")


@scheme("weights U(±0.07), biases 0, scales 1", "mxnet Uniform(0.07)", name="mxnet-default",
        aliases=("gluon-default",), role_aware=True)  # fmt: skip
def mxnet_default(target: Target) -> Resolution:
    """What MXNet Gluon's layers do when they are initialised."""
    ending = next((name for name in STATE if target.name.endswith(f"_{name}")), "")
    if state := _state(target, ending):
        return state
    if target.role == "bias" or target.name.endswith("bias"):
        return Resolution(call("zeros"))
    return Resolution({"weight": call("uniform", a=-0.07, b=0.07), "scale": call("ones")}.get(target.role))


@scheme("torch-default, keras-default or mxnet-default", "the framework that wrote the file", name="default",
        role_aware=True)  # fmt: skip
def default(target: Target) -> Resolution:
    """What the framework that wrote the file does."""
    return keras_default(target) if target.kernel == "keras" else torch_default(target)


def _state(target: Target, name: str = "") -> Resolution | None:
    known = STATE.get(name or target.name)
    return Resolution(call(known)) if known and len(target.shape) < 2 else None


def _torch_special(target: Target) -> Spec | None:
    """Layers whose reset_parameters differs from a Linear's."""
    name, module = target.name, target.module
    if RECURRENT.fullmatch(name):
        hidden = _hidden_size(target)
        return None if hidden is None else _symmetric(hidden)
    if name in ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v") or module == "MultiheadAttention":
        matrix = "xavier_normal" if "bias" in name else "xavier_uniform"
        return call("zeros" if len(target.shape) < 2 else matrix)
    if module == "NonDynamicallyQuantizableLinear" and name == "bias":
        return call("zeros")
    if "Norm" in module:
        return call("zeros" if target.role == "bias" else "ones")
    if module in ("Embedding", "EmbeddingBag"):
        return replace(call("normal"), zero_row=_padding_row(target))
    if module == "PReLU":
        return call("constant", val=0.25)
    return _torch_bilinear(target) if module == "Bilinear" else None


def _padding_row(target: Target) -> int | None:
    row = target.padding_idx
    return row if row is not None and target.shape and 0 <= row < target.shape[0] else None


def _torch_bilinear(target: Target) -> Spec | None:
    weight = target.shape if target.role == "weight" else target.siblings.get("weight", ())
    return _symmetric(weight[1]) if len(weight) == 3 else None


def _torch_by_role(target: Target) -> Spec | None:
    if target.role == "weight":
        return call("kaiming_uniform", a=math.sqrt(5))
    if target.role == "bias":
        name = target.name.replace("bias", "weight")
        weight = target.siblings.get(name, target.siblings.get("kernel", ()))
        return _symmetric(fans(weight, target.kernel)[0]) if len(weight) > 1 else call("zeros")
    return call("ones") if target.role == "scale" else None


def _symmetric(n: int) -> Spec:
    bound = 1 / math.sqrt(n) if n > 0 else 0.0
    return call("uniform", a=-bound, b=bound)


def _hidden_size(target: Target) -> int | None:
    """Of a recurrent layer: from its class, else from the shape of a weight that spans the hidden state."""
    found = RECURRENT.fullmatch(target.name)
    suffix = (found and found[2]) or ""
    for projection in (f"weight_hr{suffix}", f"weight_hh{suffix}"):
        shape = target.shape if projection == target.name else target.siblings.get(projection, ())
        if len(shape) == 2:
            return shape[1]
    gates = GATES.get(target.module)
    return target.shape[0] // gates if gates and target.shape else None


def _keras(target: Target) -> Spec | None:
    name = target.name
    if name == "recurrent_kernel" or name.startswith("weight_hh"):
        return call("orthogonal")
    if name == "embeddings" or target.module == "Embedding":
        return call("uniform", a=-0.05, b=0.05)
    if target.role == "bias" or name.startswith("bias"):
        return call("lstm_bias" if _is_keras_lstm(target) else "zeros")
    if target.role == "scale" or "Norm" in target.module:
        return call("ones")
    return call("xavier_uniform") if target.role == "weight" else None


def _is_keras_lstm(target: Target) -> bool:
    units, gates = (*target.siblings.get("recurrent_kernel", (0, 0)), 0)[:2]
    by_shape = target.kernel == "keras" and units > 0 and gates == 4 * units
    named = target.kernel == "keras" and target.module in ("LSTM", "LSTMCell")
    return (by_shape or named) and len(target.shape) == 1 and target.shape[0] % 4 == 0
