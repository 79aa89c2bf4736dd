"""Named initialisations: what their names mean, and how one is drawn.

A scheme's text becomes a `Spec`; a spec and a `Target` become the bytes of one param. The functions
themselves are in `initializers`; the frameworks' defaults, which choose among them by role, are here.

A draw can be redone without paramctl:

    seed = int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "little")
    torch.nn.init.xavier_uniform_(tensor, generator=torch.Generator().manual_seed(seed))
"""

from __future__ import annotations

import hashlib
import inspect
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from paramctl.dtypes import DType
from paramctl.errors import Stopped, UsageError
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


def seed_for(seed: int, path: str) -> int:
    """The seed of one param's generator: the first 8 bytes, little endian, of SHA-256 of f"{seed}/{path}"."""
    digest = hashlib.sha256(f"{seed}/{path}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little")


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
class UserFunction:
    """A function in a person's own file, run because the command line names it."""

    file: str
    name: str
    code: CodeType = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """How one would write it: `my_init.py:my_init`."""
        return f"{self.file}:{self.name}"

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself; its file is executed once, without leaving bytecode beside it."""
        module = ModuleType(f"paramctl.user.{Path(self.file).stem}")
        module.__file__ = self.file
        sys.modules[module.__name__] = module  # dataclasses look their module up
        exec(self.code, module.__dict__)
        function = getattr(module, self.name, None)
        if not callable(function):
            raise UsageError(f"{self.file} has no function '{self.name}'")
        return function  # type: ignore[no-any-return]


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
        return Spec(_user_function(file, function))
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


def _user_function(file: str, name: str) -> UserFunction:
    path = Path(file)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{file} is not a regular file")
        code = compile(path.read_bytes(), file, "exec", dont_inherit=True)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except SyntaxError as error:
        raise UsageError(f"{file} is not Python: {error.msg} (line {error.lineno})") from None
    except ValueError as error:
        raise UsageError(f"{file} is not Python: {error}") from None
    if name not in code.co_names and ("*",) not in code.co_consts:
        near = ", ".join(get_close_matches(name, code.co_names, n=3, cutoff=0.5))
        raise UsageError(f"{file} has no function '{name}'", hint=f"did you mean {near}?" if near else "")
    return UserFunction(file, name, code)


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
        return _bytes(_from_user(concrete.scheme, target, current), target.dtype)
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


@contextmanager
def _own_generators(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python, seeded for a while."""
    import random

    import numpy as np

    torch, python, numpy = import_torch(), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it seeds the accelerators too, which fork_rng would not put back.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


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
        with _own_generators(seed), torch.no_grad():
            spec.scheme.function(canvas, **spec.arguments)
            if spec.zero_row is not None:
                tensor[spec.zero_row].zero_()
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        return None
    return tensor  # type: ignore[no-any-return]


def _from_user(user: UserFunction, target: Target, current: bytes | None) -> torch.Tensor:
    torch = import_torch()
    dtype = getattr(torch, target.dtype.name)
    tensor = torch.zeros(target.shape, dtype=dtype)
    if current is not None:
        tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(current), dtype=torch.uint8))
    returned = _run(user, tensor, target)
    result = tensor if returned is None else returned
    if not isinstance(result, torch.Tensor):
        raise _wrong_return(user, target, f"returned a {type(result).__name__}")
    if result.layout is not torch.strided or result.is_quantized or result.is_meta or result.is_nested:
        kinds = {"quantized": result.is_quantized, "meta": result.is_meta, "nested": result.is_nested}
        kind = next((kind for kind, found in kinds.items() if found), str(result.layout)[6:])
        raise _wrong_return(user, target, f"returned a {kind} tensor")
    if tuple(result.shape) != target.shape:
        raise _wrong_return(user, target, f"made a tensor of shape {shape_text(tuple(result.shape))}")
    if result.is_complex() and not dtype.is_complex:
        raise _wrong_return(user, target, "returned complex numbers")
    found = result.detach().cpu().resolve_conj().resolve_neg()
    plain = found.to(dtype)
    if found.dtype != dtype and not _same_values(plain, found):
        kind = str(found.dtype)[6:]
        raise _wrong_return(user, target, f"returned {kind} values that {target.dtype.name} cannot hold")
    return plain.contiguous()  # type: ignore[no-any-return]


def _same_values(converted: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether a conversion only rounded: nothing became infinite or NaN, and integers are whole as they were."""
    torch = import_torch()
    if converted.is_floating_point() or converted.is_complex():
        wide = torch.complex128 if converted.is_complex() else torch.float64
        return torch.equal(converted.to(wide).isfinite(), given.to(wide).isfinite())  # type: ignore[no-any-return]
    return torch.equal(converted.to(given.dtype), given)  # type: ignore[no-any-return]


def _wrong_return(user: UserFunction, target: Target, what: str) -> UsageError:
    return UsageError(
        f"{user.text} {what} for {target.path or '.'}; "
        f"it must change the tensor in place or return one of shape {shape_text(target.shape)}"
    )


def _run(user: UserFunction, tensor: torch.Tensor, target: Target) -> object:
    """What the function returns. It gets the path too if it has a second parameter without a default."""
    torch = import_torch()
    try:
        # What it prints must not end up in a checkpoint on standard output.
        with redirect_stdout(_Remarks()), _same_directory(), torch.no_grad():
            with _own_generators(seed_for(target.seed, "")):
                function = user.function
            with _own_generators(seed_for(target.seed, target.path)):
                return function(tensor, target.path) if _takes_path(function) else function(tensor)
    except (UsageError, Stopped):
        raise
    except BaseException as error:
        if type(error) is KeyboardInterrupt:  # Ctrl-C, where paramctl is a library
            raise
        what = f"{user.text} failed for {target.path or '.'}: {_said(error)}{_line(error, user.file)}"
        raise UsageError(what) from error


class _Remarks(io.TextIOBase):
    """Where a person's function prints: standard error, which it cannot close."""

    def write(self, text: str) -> int:
        """Pass the text on."""
        return sys.stderr.write(text) if sys.stderr else len(text)

    def flush(self) -> None:
        """Pass it on at once."""
        if sys.stderr:
            sys.stderr.flush()


@contextmanager
def _same_directory() -> Iterator[None]:
    """Undo a change of the working directory: the names on the command line count from where it began."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.fchdir(directory)
        os.close(directory)


def _said(error: BaseException) -> str:
    """`ValueError: what it says`; an exception of a person's own may fail to say anything."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - whatever its __str__ raises, the first failure is the one to tell
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _takes_path(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # a built-in function says nothing
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 and positional[1].default is inspect.Parameter.empty


def _line(error: BaseException, file: str) -> str:
    import traceback

    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" (line {lines[-1]})" if lines else ""
