"""Describe schemes: function, arguments, formula and paper; compute fans and gains."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from paramctl.errors import UsageError
from paramctl.model.dtypes import DType

if TYPE_CHECKING:
    import torch


Shape = tuple[int, ...]
Kernel = Literal["torch", "keras"]
Value = float | str
Arguments = Mapping[str, Any]
Filler = TypeVar("Filler", bound=Callable[..., Any])
Check = Callable[[Shape, DType, Arguments, Kernel], str]  # the reason why a scheme cannot apply, or ""


# Standard deviation of a standard normal cut at ±2: what a truncated draw is divided by to have std 1.
TRUNCATED_STD = 0.87962566103423978
Nonlinearity = Literal[
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "sigmoid", "tanh", "relu", "leaky_relu", "selu",
]  # fmt: skip


def fans(shape: Shape, kernel: Kernel = "torch") -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight: torch's (out, in, …) or Keras's (…, in, out), times the receptive field.

    Raises UsageError below 2 dimensions.
    """
    if len(shape) < 2:
        raise UsageError(f"a tensor of shape {shape_text(shape)} has no fan-in and fan-out")
    if kernel == "keras":
        *field, fan_in, fan_out = shape
    else:
        fan_out, fan_in, *field = shape
    return fan_in * math.prod(field), fan_out * math.prod(field)


def calculate_gain(nonlinearity: str, slope: float = 0.01) -> float:
    """Return the value of torch.nn.init.calculate_gain, without torch."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + slope**2))
    return {"tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4}.get(nonlinearity, 1.0)


def shape_text(shape: Shape) -> str:
    """Return a shape for a message: `(8, 4)`, `(8)`, `(scalar)`."""
    return f"({', '.join(map(str, shape)) or 'scalar'})"


@dataclass(frozen=True)
class Canvas:
    """A contiguous tensor to fill, the generator to draw from, and the layout of the kernel."""

    init: ModuleType  # torch.nn.init
    tensor: torch.Tensor
    generator: torch.Generator
    kernel: Kernel = "torch"

    @property
    def fans(self) -> tuple[int, int]:
        """The fan-in and fan-out of the tensor."""
        return fans(tuple(self.tensor.shape), self.kernel)

    @property
    def out_in(self) -> torch.Tensor:
        """The tensor in torch's order of a kernel: out, in, field."""
        if self.kernel == "torch":
            return self.tensor
        return self.tensor.permute(-1, -2, *range(self.tensor.dim() - 2))

    def uniform(self, low: float, high: float) -> None:
        """Fill with uniform values."""
        self.init.uniform_(self.tensor, low, high, generator=self.generator)

    def normal(self, mean: float, std: float) -> None:
        """Fill with normal values."""
        self.init.normal_(self.tensor, mean, std, generator=self.generator)

    def truncated(self, mean: float, std: float, low: float, high: float) -> None:
        """Fill with normal values between two bounds."""
        self.init.trunc_normal_(self.tensor, mean, std, low, high, generator=self.generator)

    def two_sigma(self, mean: float, std: float) -> None:
        """Fill with normal values within two standard deviations."""
        self.truncated(mean, std, mean - 2 * std, mean + 2 * std)


class Rule(NamedTuple):
    """The meaning of an argument and the numbers it may be; `above` excludes `low` itself."""

    doc: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    gain: bool = False

    def allows(self, value: float) -> bool:
        """Return whether the argument may be that number."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    @property
    def text(self) -> str:
        """The allowed numbers, in words."""
        if math.isfinite(self.high):
            return f"between {self.low:g} and {self.high:g}"
        return f"more than {self.low:g}" if self.above else f"{self.low:g} or more"


class Argument(NamedTuple):
    """An argument of a scheme. `default` is None if it must be given; `choices` is empty for numbers."""

    name: str
    type: type
    default: Value | None
    rule: Rule
    choices: tuple[str, ...] = ()

    @property
    def doc(self) -> str:
        """The meaning of the argument."""
        return self.rule.doc

    @property
    def required(self) -> bool:
        """Whether the argument must be given."""
        return self.default is None

    def read(self, text: str) -> Value:
        """Return the value of a text. Raises ValueError with what it must be."""
        if self.choices:
            return self._choice(text.lower())
        if self.rule.gain and text.lower() in get_args(Nonlinearity):
            return calculate_gain(text.lower())
        value = self._number(text)
        if not self.rule.allows(value):
            raise ValueError(self.rule.text)
        return value

    def _number(self, text: str) -> float:
        """Return the number of a text. Raises ValueError if it is none."""
        try:
            value = int(text) if self.type is int else _read_number(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError("a whole number" if self.type is int else "a number")
        return value

    def _choice(self, text: str) -> str:
        """Return the text if it is one of the choices. Raises ValueError if not."""
        if text not in self.choices:
            raise ValueError(f"one of {', '.join(self.choices)}")
        return text


def _read_number(text: str) -> float:
    """Return the number of a text; an integer of up to 64 bits that no float equals stays an integer."""
    value = float(text)
    whole = int(text) if text.lstrip("+-").isdecimal() else value
    return whole if whole != value and abs(whole) < 2**64 else value


@dataclass(frozen=True)
class Scheme:
    """A named initialisation.

    `formula` is its distribution, `paper` the publication that proposed it, `origin` the library whose name and
    meaning it has. `dimensions` are the fewest and the most dimensions of a tensor (None: no limit), `because` the
    reason. `random` schemes draw fractions; `role_aware` ones choose another scheme for each param.
    """

    name: str
    summary: str
    formula: str
    origin: str
    arguments: tuple[Argument, ...]
    function: Callable[..., Any]
    aliases: tuple[str, ...] = ()
    paper: str = ""
    dimensions: tuple[int, int | None] = (0, None)
    because: str = ""
    needs: tuple[Check, ...] = ()
    valid: Callable[[Arguments], str] = lambda arguments: ""
    random: bool = True
    role_aware: bool = False

    @property
    def shapes(self) -> str:
        """The tensors it applies to, in words: `2 or more dimensions`."""
        low, high = self.dimensions
        if high is None:
            return f"{low} or more dimensions" if low else "any shape"
        return f"{low} to {high} dimensions" if low < high else f"{low} dimension{'s' * (low != 1)}"

    def why_not(self, shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
        """Return the reason why it cannot fill such a tensor, or ""."""
        if self.role_aware:
            return ""
        low, high = self.dimensions
        if len(shape) < low or (high is not None and len(shape) > high):
            return f"it needs {self.shapes}{self.because and ' ' + self.because}"
        reasons = (need(shape, dtype, arguments, kernel) for need in self.needs)
        return self._why_not_dtype(dtype, arguments) or next(filter(None, reasons), "")

    def _why_not_dtype(self, dtype: DType, arguments: Arguments) -> str:
        """Return the reason why it cannot draw in that dtype, or ""."""
        if dtype.category in ("quantized", "bits"):
            return f"paramctl cannot draw {dtype.name} elements"
        if dtype.category in ("int", "bool"):
            return _why_not_integers(self, dtype, arguments)
        if dtype.name == "float8_e8m0fnu":
            return _why_not_powers_of_two(self, arguments)
        return ""


SCHEMES: dict[str, Scheme] = {}  # by name, in the order people should see them
ALIASES: dict[str, str] = {}  # other names of schemes → their own


def scheme(formula: str, origin: str, *, name: str = "", **fields: Any) -> Callable[[Filler], Filler]:
    """Register a function as a scheme, with its further parameters as arguments and its docstring as help."""

    def register(function: Filler) -> Filler:
        """Add the function to the registry."""
        own = name or function.__name__
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        summary = (function.__doc__ or "").partition("\n")[0]
        SCHEMES[own] = Scheme(own, summary=summary, formula=formula, origin=origin, function=function,
                              arguments=tuple(map(_argument, parameters)), **fields)  # fmt: skip
        ALIASES.update(dict.fromkeys(SCHEMES[own].aliases, own))
        return function

    return register


def _argument(parameter: inspect.Parameter) -> Argument:
    """Return the argument that a parameter of the function declares."""
    kind, rule = get_args(parameter.annotation)
    default = None if parameter.default is parameter.empty else parameter.default
    if get_origin(kind) is Literal:
        return Argument(parameter.name, str, default, rule, get_args(kind))
    return Argument(parameter.name, kind, default, rule)


def _why_not_integers(scheme: Scheme, dtype: DType, arguments: Arguments) -> str:
    """Return the reason why a scheme cannot fill an integer dtype, or ""."""
    if scheme.random:
        return f"it draws fractions, and {dtype.name} holds whole numbers"
    signed = dtype.numpy.startswith("int")
    low, high = (0, 1) if dtype.category == "bool" else (0, 2**dtype.bits - 1)
    if signed:
        low, high = -(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1
    numbers = (value for value in arguments.values() if not isinstance(value, str))
    wrong = next((n for n in numbers if n != math.floor(n) or not low <= n <= high), None)
    return "" if wrong is None else f"{dtype.name} cannot hold {wrong}"


def _why_not_powers_of_two(scheme: Scheme, arguments: Arguments) -> str:
    """Return the reason why a scheme cannot fill a dtype of powers of two, or ""."""
    if scheme.name == "ones" or (scheme.name == "constant" and math.frexp(arguments["val"])[0] == 0.5):
        return ""
    return "float8_e8m0fnu holds powers of two only"
