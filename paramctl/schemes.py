"""Named initialisations: what their names mean, and how one is drawn.

A scheme's text becomes a `Spec`; a spec and a `Target` become the bytes of one param. The functions
themselves are in `initializers`; the frameworks' defaults, which choose among them by role, are here.

A draw can be redone without paramctl:

    seed = int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "little")
    torch.nn.init.xavier_uniform_(tensor, generator=torch.Generator().manual_seed(seed))
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from paramctl.dtypes import DType
from paramctl.errors import UsageError
from paramctl.generators import own_generators, seed_for
from paramctl.initializers import (
    SCHEMES,
    Argument,
    Canvas,
    Kernel,
    Scheme,
    Shape,
    Value,
    fans,
    scheme,
    shape_text,
)
from paramctl.torch_module import import_torch
from paramctl.user_functions import UserFunction, filled, find_function

if TYPE_CHECKING:
    import torch

__all__ = [
    "ALIASES",
    "SCHEMES",
    "Argument",
    "Resolution",
    "Scheme",
    "Spec",
    "Target",
    "UserFunction",
    "check",
    "default_for",
    "draw",
    "fans",
    "find",
    "parse",
    "resolve",
    "seed_for",
    "why_not",
]

EXTREME = 1000  # larger arguments may not fit a dtype: half precision ends at 65,504

Role = Literal["weight", "bias", "scale", "tensor"]


@dataclass(frozen=True)
class Target:
    """What is to be drawn: one param, and what is known about its layer.

    `module` is the class of its layer, if the file names it (`Linear`); `siblings` are the shapes of the
    layer's params by their last names (`{"weight": (8, 4), "bias": (8,)}`), from which a bias learns
    its fan-in and a recurrent weight its hidden size. `padding_idx` is the row of an embedding that
    stands for padding.
    """

    path: str
    shape: Shape
    dtype: DType
    seed: int
    kernel: Kernel = "torch"
    role: Role = "tensor"
    module: str = ""
    padding_idx: int | None = None
    siblings: Mapping[str, Shape] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The last name of its path: `weight`, `bias_ih_l0`."""
        return re.split(r"[./]", self.path)[-1].removesuffix(":0")

    @property
    def text(self) -> str:
        """Path and shape, for a message: `0.bias (8)`."""
        return f"{self.path or '.'} {shape_text(self.shape)}"


# From a text to a Spec.


@dataclass(frozen=True)
class Spec:
    """A scheme with its arguments, the defaults among them; `zero_row` is made zero after the draw."""

    scheme: Scheme | UserFunction
    arguments: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    zero_row: int | None = None

    @property
    def is_default(self) -> bool:
        """Whether it is a framework's default, which says itself what biases and scales become."""
        return isinstance(self.scheme, Scheme) and self.scheme.role_aware

    @property
    def is_extreme(self) -> bool:
        """Whether torch may find a number too large for a dtype, which it only says when it draws."""
        return any(isinstance(a, float | int) and abs(a) > EXTREME for a in self.arguments.values())

    @property
    def text(self) -> str:
        """How one would write it: `normal:std=0.01`, `constant:42`."""
        if isinstance(self.scheme, UserFunction):
            return self.scheme.text
        given = [a for a in self.scheme.arguments if self.arguments[a.name] != a.default]
        words = [f"{a.name}={_value_text(self.arguments[a.name])}" for a in given]
        if len(given) == 1 and given[0].required:
            words = [_value_text(self.arguments[given[0].name])]
        zero = "" if self.zero_row is None else f" (padding row {self.zero_row} zero)"
        return self.scheme.name + (":" if words else "") + ",".join(words) + zero


def _value_text(value: Value) -> str:
    return str(value).removesuffix(".0")


def _plain(name: str) -> str:
    """What names that mean the same have in common: `GlorotUniform`, `glorot_uniform_`."""
    return name.lower().replace("_", "").replace("-", "")


def find(name: str) -> Scheme:
    """The scheme of that name or alias. Raises UsageError with the nearest names."""
    known = {_plain(each): each for each in (*ALIASES, *SCHEMES)}
    plain = _plain(name)
    if plain in known:
        return SCHEMES[ALIASES.get(known[plain], known[plain])]
    near = (known[key] for key in get_close_matches(plain, known, n=4, cutoff=0.5))
    names = ", ".join(dict.fromkeys(ALIASES.get(each, each) for each in near))
    hint = f"did you mean {names}? (paramctl schemes lists all)" if names else "'paramctl schemes' lists all"
    raise UsageError(f"no scheme '{name}'", hint=hint)


def parse(text: str) -> Spec:
    """What `name`, `name:key=value,key=value`, `constant:42` or `file.py:function` stands for.

    A single bare value goes to the first argument. Nothing in a person's file is run yet. Raises
    UsageError for what does not exist or cannot be.
    """
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py"):
        return Spec(find_function(file, function))
    name, colon, rest = text.partition(":")
    if name.endswith(".py"):
        raise UsageError(f"{name} needs the name of a function in it", hint=f"write {name}:FUNCTION")
    found = find(name.strip())
    return _spec(found, _split(found, rest.split(",")) if colon else {})


def _split(scheme: Scheme, words: list[str]) -> dict[str, str]:
    """Texts of arguments by name."""
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            name, value = _first_argument(scheme, name, len(words)), name
        if name in given:
            raise UsageError(f"{scheme.name}: {name} is given twice")
        given[name] = value
    return given


def _first_argument(scheme: Scheme, value: str, count: int) -> str:
    if not scheme.arguments:
        raise UsageError(f"{scheme.name} takes no arguments, but '{value}' was given")
    first = scheme.arguments[0].name
    if count > 1:
        raise UsageError(f"{scheme.name}: '{value}' has no name", hint=f"write {first}={value}, say")
    return first


def _spec(scheme: Scheme, texts: Mapping[str, str]) -> Spec:
    known = [argument.name for argument in scheme.arguments]
    for name in texts:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no arguments"
            raise UsageError(f"{scheme.name} has no argument '{name}'", hint=takes)
    return _bound(scheme, {a.name: _value(scheme, a, texts.get(a.name)) for a in scheme.arguments})


def _value(scheme: Scheme, argument: Argument, text: str | None) -> Value:
    if text is None:
        if argument.default is None:
            hint = f"write {scheme.name}:{argument.name}=VALUE"
            raise UsageError(f"{scheme.name} needs {argument.name}", hint=hint)
        return argument.default
    try:
        return argument.read(text)
    except ValueError as error:
        raise UsageError(f"{scheme.name}: {argument.name} must be {error}, not '{text}'") from None


def _bound(scheme: Scheme, arguments: dict[str, Value]) -> Spec:
    if wrong := scheme.valid(arguments):
        raise UsageError(f"{scheme.name}: {wrong}")
    return Spec(scheme, MappingProxyType(arguments))


def _call(name: str, **arguments: Value) -> Spec:
    """A spec in Python's words: `_call("uniform", a=-0.5, b=0.5)`."""
    scheme = SCHEMES[name]
    return _bound(scheme, {a.name: arguments.get(a.name, a.default or 0.0) for a in scheme.arguments})


# What the frameworks do when nobody says.

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
        return Resolution(_call("zeros"))
    return Resolution({"weight": _call("uniform", a=-0.07, b=0.07), "scale": _call("ones")}.get(target.role))


@scheme("torch-default, keras-default or mxnet-default", "the framework that wrote the file", name="default",
        role_aware=True)  # fmt: skip
def default(target: Target) -> Resolution:
    """What the framework that wrote the file does."""
    return keras_default(target) if target.kernel == "keras" else torch_default(target)


ALIASES: Mapping[str, str] = {alias: each.name for each in SCHEMES.values() for alias in each.aliases}


def _state(target: Target, name: str = "") -> Resolution | None:
    known = STATE.get(name or target.name)
    return Resolution(_call(known)) if known and len(target.shape) < 2 else None


def _torch_special(target: Target) -> Spec | None:
    """Layers whose reset_parameters differs from a Linear's."""
    name, module = target.name, target.module
    if RECURRENT.fullmatch(name):
        hidden = _hidden_size(target)
        return None if hidden is None else _symmetric(hidden)
    if name in ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v") or module == "MultiheadAttention":
        matrix = "xavier_normal" if "bias" in name else "xavier_uniform"
        return _call("zeros" if len(target.shape) < 2 else matrix)
    if module == "NonDynamicallyQuantizableLinear" and name == "bias":
        return _call("zeros")
    if "Norm" in module:
        return _call("zeros" if target.role == "bias" else "ones")
    if module in ("Embedding", "EmbeddingBag"):
        return replace(_call("normal"), zero_row=_padding_row(target))
    if module == "PReLU":
        return _call("constant", val=0.25)
    return _torch_bilinear(target) if module == "Bilinear" else None


def _padding_row(target: Target) -> int | None:
    row = target.padding_idx
    return row if row is not None and target.shape and 0 <= row < target.shape[0] else None


def _torch_bilinear(target: Target) -> Spec | None:
    weight = target.shape if target.role == "weight" else target.siblings.get("weight", ())
    return _symmetric(weight[1]) if len(weight) == 3 else None


def _torch_by_role(target: Target) -> Spec | None:
    if target.role == "weight":
        return _call("kaiming_uniform", a=math.sqrt(5))
    if target.role == "bias":
        name = target.name.replace("bias", "weight")
        weight = target.siblings.get(name, target.siblings.get("kernel", ()))
        return _symmetric(fans(weight, target.kernel)[0]) if len(weight) > 1 else _call("zeros")
    return _call("ones") if target.role == "scale" else None


def _symmetric(n: int) -> Spec:
    bound = 1 / math.sqrt(n) if n > 0 else 0.0
    return _call("uniform", a=-bound, b=bound)


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
        return _call("orthogonal")
    if name == "embeddings" or target.module == "Embedding":
        return _call("uniform", a=-0.05, b=0.05)
    if target.role == "bias" or name.startswith("bias"):
        return _call("lstm_bias" if _is_keras_lstm(target) else "zeros")
    if target.role == "scale" or "Norm" in target.module:
        return _call("ones")
    return _call("xavier_uniform") if target.role == "weight" else None


def _is_keras_lstm(target: Target) -> bool:
    units, gates = (*target.siblings.get("recurrent_kernel", (0, 0)), 0)[:2]
    by_shape = target.kernel == "keras" and units > 0 and gates == 4 * units
    named = target.kernel == "keras" and target.module in ("LSTM", "LSTMCell")
    return (by_shape or named) and len(target.shape) == 1 and target.shape[0] % 4 == 0


# May it be drawn?


def why_not(spec: Spec, shape: Shape, dtype: DType, kernel: Kernel = "torch") -> str | None:
    """The reason why a scheme cannot apply to such a tensor, or None. Does not import torch."""
    if not isinstance(spec.scheme, UserFunction):
        return spec.scheme.why_not(shape, dtype, spec.arguments, kernel) or None
    if dtype.category in ("quantized", "bits") or dtype.bits < 8:
        return f"paramctl cannot hand {dtype.name} elements to a function"
    return None


def check(spec: Spec, target: Target) -> Spec:
    """The concrete spec that fills `target`. Raises UsageError if it cannot apply. Does not import torch."""
    concrete = resolve(spec, target).spec
    if concrete is None:
        raise UsageError(
            f"{spec.text} cannot apply to {target.text}: the framework has no default for it",
            hint="name a scheme for it",
        )
    if reason := why_not(concrete, target.shape, target.dtype, target.kernel):
        raise _cannot(concrete, target, reason)
    return concrete


def _cannot(spec: Spec, target: Target, reason: str) -> UsageError:
    what = f"{spec.scheme.name} cannot apply to {target.text}: {reason}"
    return UsageError(what, hint="name another scheme for it")


# Drawing.


def draw(spec: Spec, target: Target, current: bytes | None = None) -> bytes | memoryview:
    """The little-endian bytes of `target`, contiguous in C order, drawn from its own generator.

    `current` are its present bytes, which a person's own function starts from (zeros without). No
    global random state changes. Raises UsageError if the scheme cannot apply.
    """
    concrete = check(spec, target)
    if 0 in target.shape:
        return b""
    if isinstance(concrete.scheme, UserFunction):
        return _bytes(filled(concrete.scheme, target, current), target.dtype)
    return _bytes(_from_scheme(concrete, target), target.dtype)


def _bytes(tensor: torch.Tensor, dtype: DType) -> bytes | memoryview:
    if dtype.bits % 8:
        return _packed(tensor, dtype)
    return tensor.reshape(-1).view(import_torch().uint8).numpy().data


def _packed(tensor: torch.Tensor, dtype: DType) -> bytes:
    """float4 and float6, which torch does not have, rounded by ml_dtypes."""
    import ml_dtypes

    from paramctl.values import encode

    return bytes(encode(tensor.numpy().astype(getattr(ml_dtypes, dtype.name)), dtype))


def _from_scheme(spec: Spec, target: Target) -> torch.Tensor:
    """Drawn in the param's dtype, else in the nearest that torch can draw in, and rounded."""
    import warnings

    torch = import_torch()
    dtype = getattr(torch, target.dtype.name, torch.float32)
    wide = torch.complex64 if target.dtype.category == "complex" else torch.float32
    try:
        with warnings.catch_warnings():  # torch warns of what we know: complex32, bounds far from the mean
            warnings.simplefilter("ignore")
            tensor = _filled(spec, target, dtype)
            if tensor is None:
                tensor = _filled(spec, target, wide)
            return tensor.to(dtype)  # type: ignore[union-attr]
    except (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise _cannot(spec, target, str(error).partition("\n")[0]) from error


def _filled(spec: Spec, target: Target, dtype: torch.dtype) -> torch.Tensor | None:
    """A filled tensor, or None if torch does not implement the draw in `dtype`."""
    torch, seed = import_torch(), seed_for(target.seed, target.path)
    tensor = torch.empty(target.shape, dtype=dtype)
    canvas = Canvas(torch.nn.init, tensor, torch.Generator().manual_seed(seed), target.kernel)
    try:
        with own_generators(seed), torch.no_grad():
            spec.scheme.function(canvas, **spec.arguments)
            if spec.zero_row is not None:
                tensor[spec.zero_row].zero_()
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        return None
    return tensor  # type: ignore[no-any-return]
