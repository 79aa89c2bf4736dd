"""Choose the scheme of each param of a layer as the frameworks do by default."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import NamedTuple

from paramctl.schemes.drawn_param import DrawnParam
from paramctl.schemes.scheme import fans, scheme
from paramctl.schemes.spec import Spec, call, parse
from paramctl.schemes.user_function import UserFunction

RECURRENT = re.compile(r"(?:weight|bias)_(ih|hh|hr)(_l\d+(?:_reverse)?)?")
ATTENTION = ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "q_proj_weight", "k_proj_weight", "v_proj_weight")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}
# The classes of torch.nn with params, by what they are called in it; a class of another package is not known.
NORMS = frozenset(
    f"{lazy}{name}{n}" for lazy in ("", "Lazy") for name in ("BatchNorm", "InstanceNorm") for n in ("1d", "2d", "3d")
) | {"SyncBatchNorm", "LayerNorm", "GroupNorm", "RMSNorm"}
TORCH_LAYERS = NORMS | {
    "Linear", "LazyLinear", "NonDynamicallyQuantizableLinear", "Bilinear", "Embedding", "EmbeddingBag", "PReLU",
    "MultiheadAttention", *GATES,
    *(f"{lazy}Conv{kind}{n}d" for lazy in ("", "Lazy") for kind in ("", "Transpose") for n in (1, 2, 3)),
}  # fmt: skip
TRANSFORMER = "torch.nn.modules.transformer.Transformer"  # which draws all matrices in it once more
RUNNING = {  # running statistics, by the last name of a path
    "running_mean": "zeros",
    "running_var": "ones",
    "num_batches_tracked": "zeros",
    "moving_mean": "zeros",
    "moving_var": "ones",
    "moving_variance": "ones",
}
STATE = {**RUNNING, "gamma": "ones", "beta": "zeros"}  # and what normalisation layers learn


class Resolution(NamedTuple):
    """The scheme for one param; `spec` is None if the framework has no default for it, and it is kept.

    `assumed` tells that the file names no class for the layer, so that it was taken for a Linear or Conv.
    """

    spec: Spec | None
    assumed: bool = False


def known_class(full_name: str) -> str:
    """Return the name of a class of torch.nn, by its qualified name; "" for any other class."""
    name = full_name.rpartition(".")[2]
    return name if full_name.startswith("torch.nn.modules.") and name in TORCH_LAYERS else ""


def default_for(format_name: str) -> Spec:
    """Return the defaults of the framework that writes files of that format: the meaning of `default`."""
    framework = re.match(r"keras|tf|tensorflow|h5|hdf5|mxnet|gluon", format_name.lower())
    if framework is None:
        return parse("torch-default")
    return parse("mxnet-default" if framework[0] in ("mxnet", "gluon") else "keras-default")


def resolve(spec: Spec, param: DrawnParam) -> Resolution:
    """Return the concrete scheme for a param: the scheme itself, or the one a framework's default chooses."""
    if isinstance(spec.scheme, UserFunction) or not spec.scheme.role_aware:
        return Resolution(spec)
    return spec.scheme.function(param)  # type: ignore[no-any-return]


@scheme("weights kaiming_uniform(a = √5) = U(±1 / √fan_in), biases U(±1 / √fan_in), embeddings N(0, 1), "
        "recurrent U(±1 / √hidden), attention in_proj xavier_uniform, scales 1", "torch reset_parameters()",
        name="torch-default", aliases=("pytorch-default",), role_aware=True)  # fmt: skip
def torch_default(param: DrawnParam) -> Resolution:
    """Initialise each param as torch's layers do when they are made."""
    if state := _statistics_default(param):
        return state
    spec = _torch_special(param) or _torch_by_role(param)
    return Resolution(spec, assumed=not param.module)


@scheme("kernels xavier_uniform, recurrent kernels orthogonal, embeddings U(±0.05), biases 0 "
        "(LSTM: forget gate 1), scales 1", "keras layers", name="keras-default",
        aliases=("tf-default", "tensorflow-default"), role_aware=True)  # fmt: skip
def keras_default(param: DrawnParam) -> Resolution:
    """Initialise each param as Keras's layers do when they are made."""
    if state := _statistics_default(param):
        return state
    return Resolution(_keras(param), assumed=not param.module and param.name == "weight")


@scheme("weights U(±0.07), biases 0, scales 1", "mxnet Uniform(0.07)", name="mxnet-default",
        aliases=("gluon-default",), role_aware=True)  # fmt: skip
def mxnet_default(param: DrawnParam) -> Resolution:
    """Initialise each param as MXNet Gluon's layers do when they are initialised."""
    ending = next((name for name in STATE if param.name.endswith(f"_{name}")), "")
    if state := _statistics_default(param, ending):
        return state
    if param.role == "bias" or param.name.endswith("bias"):
        return Resolution(call("zeros"))
    return Resolution({"weight": call("uniform", a=-0.07, b=0.07), "scale": call("ones")}.get(param.role))


@scheme("torch-default, keras-default or mxnet-default", "the framework that wrote the file", name="default",
        role_aware=True)  # fmt: skip
def default(param: DrawnParam) -> Resolution:
    """Initialise each param as the framework that wrote the file does."""
    return keras_default(param) if param.kernel == "keras" else torch_default(param)


def _statistics_default(param: DrawnParam, name: str = "") -> Resolution | None:
    """Return the default of a statistic or of what a normalisation layer learns; None for other params."""
    known = STATE.get(name or param.name)
    return Resolution(call(known)) if known and len(param.shape) < 2 else None


def _torch_special(param: DrawnParam) -> Spec | None:
    """Return the default of layers whose reset_parameters differs from a Linear's; None for other layers."""
    name, module = param.name, param.module
    if param.is_in_transformer and len(param.shape) > 1:
        return call("xavier_uniform")
    if RECURRENT.fullmatch(name):
        hidden = _hidden_size(param)
        return None if hidden is None else _symmetric(hidden)
    if name in ATTENTION or module == "MultiheadAttention":
        matrix = "xavier_normal" if "bias" in name else "xavier_uniform"
        return call("zeros" if len(param.shape) < 2 else matrix)
    if module == "NonDynamicallyQuantizableLinear" and name == "bias":
        return call("zeros")
    if module in NORMS:
        return call("zeros" if param.role == "bias" else "ones")
    if module in ("Embedding", "EmbeddingBag"):
        return replace(call("normal"), zero_row=_padding_row(param))
    if module == "PReLU":
        return call("constant", val=0.25)
    return _torch_bilinear(param) if module == "Bilinear" else None


def _padding_row(param: DrawnParam) -> int | None:
    """Return the row of an embedding that stands for padding, or None."""
    row = param.padding_idx
    return row if row is not None and param.shape and 0 <= row < param.shape[0] else None


def _torch_bilinear(param: DrawnParam) -> Spec | None:
    """Return the default of a Bilinear layer."""
    weight = param.shape if param.role == "weight" else param.siblings.get("weight", ())
    return _symmetric(weight[1]) if len(weight) == 3 else None


def _torch_by_role(param: DrawnParam) -> Spec | None:
    """Return the default of a Linear or Conv layer."""
    if param.role == "weight":
        return call("kaiming_uniform", a=math.sqrt(5))
    if param.role == "bias":
        name = param.name.replace("bias", "weight")
        weight = param.siblings.get(name, param.siblings.get("kernel", ()))
        return _symmetric(fans(weight, param.kernel)[0]) if len(weight) > 1 else call("zeros")
    return call("ones") if param.role == "scale" else None


def _symmetric(n: int) -> Spec:
    """Return the uniform scheme between ±1 / √n."""
    bound = 1 / math.sqrt(n) if n > 0 else 0.0
    return call("uniform", a=-bound, b=bound)


def _hidden_size(param: DrawnParam) -> int | None:
    """Return the hidden size of a recurrent layer, from the shape of a weight or from its class; None if unknown."""
    found = RECURRENT.fullmatch(param.name)
    suffix = (found and found[2]) or ""
    for projection in (f"weight_hr{suffix}", f"weight_hh{suffix}"):
        shape = param.shape if projection == param.name else param.siblings.get(projection, ())
        if len(shape) == 2:
            return shape[1]
    gates = GATES.get(param.module)
    return param.shape[0] // gates if gates and param.shape else None


def _keras(param: DrawnParam) -> Spec | None:
    """Return Keras's default for a param."""
    name = param.name
    if name == "recurrent_kernel" or name.startswith("weight_hh"):
        return call("orthogonal")
    if name == "embeddings" or param.module == "Embedding":
        return call("uniform", a=-0.05, b=0.05)
    if param.role == "bias" or name.startswith("bias"):
        return call("lstm_bias" if _is_keras_lstm(param) else "zeros")
    if param.role == "scale":
        return call("ones")
    return call("xavier_uniform") if param.role == "weight" else None


def _is_keras_lstm(param: DrawnParam) -> bool:
    """Return whether a bias belongs to an LSTM of Keras."""
    units, gates = (*param.siblings.get("recurrent_kernel", (0, 0)), 0)[:2]
    by_shape = param.kernel == "keras" and units > 0 and gates == 4 * units
    named = param.kernel == "keras" and param.module in ("LSTM", "LSTMCell")
    return (by_shape or named) and len(param.shape) == 1 and param.shape[0] % 4 == 0
