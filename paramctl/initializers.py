"""The schemes themselves: one function each, written as its formula reads.

A scheme fills a `Canvas`. Its signature is its list of arguments, the first line of its docstring is
its help, and the decorator holds what people look up: formula, paper, where the name comes from.
torch is not imported here: a canvas brings it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from paramctl.dtypes import DType
from paramctl.errors import UsageError

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
    """(fan_in, fan_out) of a weight: torch's (out, in, …) or Keras's (…, in, out), times the receptive field.

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
    """What torch.nn.init.calculate_gain returns, without torch."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + slope**2))
    return {"tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4}.get(nonlinearity, 1.0)


def shape_text(shape: Shape) -> str:
    """A shape for a message: `(8, 4)`, `(8)`, `(scalar)`."""
    return f"({', '.join(map(str, shape)) or 'scalar'})"


@dataclass(frozen=True)
class Canvas:
    """A contiguous tensor to fill, the generator to draw from, and how the kernel is laid out."""

    init: ModuleType  # torch.nn.init
    tensor: torch.Tensor
    generator: torch.Generator
    kernel: Kernel = "torch"

    @property
    def fans(self) -> tuple[int, int]:
        return fans(tuple(self.tensor.shape), self.kernel)

    @property
    def out_in(self) -> torch.Tensor:
        """The tensor seen as torch orders a kernel: out, in, field."""
        if self.kernel == "torch":
            return self.tensor
        return self.tensor.permute(-1, -2, *range(self.tensor.dim() - 2))

    def uniform(self, low: float, high: float) -> None:
        self.init.uniform_(self.tensor, low, high, generator=self.generator)

    def normal(self, mean: float, std: float) -> None:
        self.init.normal_(self.tensor, mean, std, generator=self.generator)

    def truncated(self, mean: float, std: float, low: float, high: float) -> None:
        self.init.trunc_normal_(self.tensor, mean, std, low, high, generator=self.generator)

    def two_sigma(self, mean: float, std: float) -> None:
        self.truncated(mean, std, mean - 2 * std, mean + 2 * std)


class Rule(NamedTuple):
    """What an argument means and which numbers it may be; `above`: more than `low`, not `low` itself."""

    doc: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    gain: bool = False

    def allows(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    @property
    def text(self) -> str:
        if math.isfinite(self.high):
            return f"between {self.low:g} and {self.high:g}"
        return f"more than {self.low:g}" if self.above else f"{self.low:g} or more"


class Argument(NamedTuple):
    """An argument of a scheme. `default` is None where one must be given; `choices` is empty for numbers."""

    name: str
    type: type
    default: Value | None
    rule: Rule
    choices: tuple[str, ...] = ()

    @property
    def doc(self) -> str:
        return self.rule.doc

    @property
    def required(self) -> bool:
        return self.default is None

    def read(self, text: str) -> Value:
        """The value that `text` stands for. Raises ValueError with what it must be."""
        if self.choices:
            return self._choice(text.lower())
        if self.rule.gain and text.lower() in get_args(Nonlinearity):
            return calculate_gain(text.lower())
        value = self._number(text)
        if not self.rule.allows(value):
            raise ValueError(self.rule.text)
        return value

    def _number(self, text: str) -> float:
        try:
            value = int(text) if self.type is int else _exact(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError("a whole number" if self.type is int else "a number")
        return value

    def _choice(self, text: str) -> str:
        if text not in self.choices:
            raise ValueError(f"one of {', '.join(self.choices)}")
        return text


def _exact(text: str) -> float:
    """A number; an integer of up to 64 bits that no float equals stays one (`constant` on an int64)."""
    value = float(text)
    whole = int(text) if text.lstrip("+-").isdecimal() else value
    return whole if whole != value and abs(whole) < 2**64 else value


@dataclass(frozen=True)
class Scheme:
    """A named initialisation.

    `formula` is what it draws, `paper` who proposed it, `origin` whose name and semantics it has.
    `dimensions` are the fewest and the most a tensor may have (None: no limit) and `because` says why.
    `random` ones draw fractions; `role_aware` ones choose another scheme for each param.
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
        """Which tensors it applies to, in words: `2 or more dimensions`."""
        low, high = self.dimensions
        if high is None:
            return f"{low} or more dimensions" if low else "any shape"
        return f"{low} to {high} dimensions" if low < high else f"{low} dimension{'s' * (low != 1)}"

    def why_not(self, shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
        """The reason why it cannot fill such a tensor, or ""."""
        if self.role_aware:
            return ""
        low, high = self.dimensions
        if len(shape) < low or (high is not None and len(shape) > high):
            return f"it needs {self.shapes}{self.because and ' ' + self.because}"
        reasons = (need(shape, dtype, arguments, kernel) for need in self.needs)
        return self._why_not_dtype(dtype, arguments) or next(filter(None, reasons), "")

    def _why_not_dtype(self, dtype: DType, arguments: Arguments) -> str:
        if dtype.category in ("quantized", "bits"):
            return f"paramctl cannot draw {dtype.name} elements"
        if dtype.category in ("int", "bool"):
            return _whole(self, dtype, arguments)
        if dtype.name == "float8_e8m0fnu":
            return _power_of_two(self, arguments)
        return ""


SCHEMES: dict[str, Scheme] = {}  # by name, in the order people should see them


def scheme(formula: str, origin: str, *, name: str = "", **fields: Any) -> Callable[[Filler], Filler]:
    """Register a function as a scheme: its arguments are those after the first, its help its docstring."""

    def register(function: Filler) -> Filler:
        own = name or function.__name__
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        summary = (function.__doc__ or "").partition("\n")[0]
        SCHEMES[own] = Scheme(own, summary=summary, formula=formula, origin=origin, function=function,
                              arguments=tuple(map(_argument, parameters)), **fields)  # fmt: skip
        return function

    return register


def _argument(parameter: inspect.Parameter) -> Argument:
    kind, rule = get_args(parameter.annotation)
    default = None if parameter.default is parameter.empty else parameter.default
    if get_origin(kind) is Literal:
        return Argument(parameter.name, str, default, rule, get_args(kind))
    return Argument(parameter.name, kind, default, rule)


# Why a scheme cannot apply.


def _whole(scheme: Scheme, dtype: DType, arguments: Arguments) -> str:
    if scheme.random:
        return f"it draws fractions, and {dtype.name} holds whole numbers"
    signed = dtype.numpy.startswith("int")
    low, high = (0, 1) if dtype.category == "bool" else (0, 2**dtype.bits - 1)
    if signed:
        low, high = -(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1
    numbers = (value for value in arguments.values() if not isinstance(value, str))
    wrong = next((n for n in numbers if n != math.floor(n) or not low <= n <= high), None)
    return "" if wrong is None else f"{dtype.name} cannot hold {wrong}"


def _power_of_two(scheme: Scheme, arguments: Arguments) -> str:
    if scheme.name == "ones" or (scheme.name == "constant" and math.frexp(arguments["val"])[0] == 0.5):
        return ""
    return "float8_e8m0fnu holds powers of two only"


def _not_complex(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    return f"torch cannot draw it in {dtype.name}" if dtype.category == "complex" else ""


def _complex_if_untruncated(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    truncated = arguments["distribution"] == "truncated_normal"
    return _not_complex(shape, dtype, arguments, kernel) if truncated else ""


def _groups_divide(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    out, groups = shape[-1 if kernel == "keras" else 0], arguments["groups"]
    return f"its {out} output channels do not divide into {groups} groups" if out % groups else ""


def _square(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    height, width = shape[:2] if kernel == "keras" else shape[2:]
    return "" if height == width else f"its kernel is {height} × {width}, not square"


def _four_gates(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    return f"its {shape[0]} values do not divide into 4 gates" if shape[0] % 4 else ""


def _ordered(arguments: Arguments) -> str:
    a, b = arguments["a"], arguments["b"]
    return f"a ({a:g}) is greater than b ({b:g})" if a > b else ""


def _reachable(arguments: Arguments) -> str:
    """torch redraws until every value is accepted: far from the mean that is never."""
    mean, std, a, b = (arguments[name] for name in ("mean", "std", "a", "b"))
    away, width = max(a - mean, mean - b, 0.0) / std, (b - a) / std
    if away > 100 or away * width > 10_000:
        return f"almost no value of N({mean:g}, {std:g}²) lies in [{a:g}, {b:g}]"
    return _ordered(arguments)


# What arguments mean.

FANS: Any = {"dimensions": (2, None), "because": "to have a fan-in and fan-out"}
GLOROT = "Glorot & Bengio (2010), Understanding the difficulty of training deep feedforward neural networks"
HE = "He, Zhang, Ren & Sun (2015), Delving deep into rectifiers, arXiv:1502.01852"
LECUN = "LeCun, Bottou, Orr & Müller (1998), Efficient BackProp"
GERS = "Gers, Schmidhuber & Cummins (2000), Learning to forget: continual prediction with LSTM"
SAXE = (
    "Saxe, McClelland & Ganguli (2013), Exact solutions to the nonlinear dynamics of learning in deep linear "
    "neural networks, arXiv:1312.6120"
)
MARTENS = "Martens (2010), Deep learning via Hessian-free optimization"
LE = (
    "Le, Jaitly & Hinton (2015), A simple way to initialize recurrent networks of rectified linear units, "
    "arXiv:1504.00941"
)
ZAGORUYKO = "Zagoruyko & Komodakis (2017), DiracNets, arXiv:1706.00388"
LONG = (
    "Long, Shelhamer & Darrell (2015), Fully convolutional networks for semantic segmentation, "
    "arXiv:1411.4038"
)

Mean = Annotated[float, Rule("mean")]
Std = Annotated[float, Rule("standard deviation", low=0)]
PositiveStd = Annotated[float, Rule("standard deviation before values are cut off", low=0, above=True)]
Low = Annotated[float, Rule("lower bound")]
High = Annotated[float, Rule("upper bound")]
Gain = Annotated[float, Rule("factor, or a nonlinearity's name: relu, tanh, …", low=0, gain=True)]
AnyGain = Annotated[float, Rule("factor, or a nonlinearity's name: relu, tanh, …", gain=True)]
Slope = Annotated[float, Rule("negative slope of the leaky ReLU after the layer", low=-1e100, high=1e100)]
FanMode = Annotated[Literal["fan_in", "fan_out"], Rule("which fan keeps its variance")]
After = Annotated[Nonlinearity, Rule("what follows the layer")]
AnyFan = Annotated[Literal["fan_in", "fan_out", "fan_avg"], Rule("which fan keeps its variance")]


# Constants.


@scheme("0", "torch.nn.init.zeros_", aliases=("zero",), random=False)
def zeros(canvas: Canvas) -> None:
    """Every value is 0."""
    canvas.tensor.zero_()


@scheme("1", "torch.nn.init.ones_", aliases=("one",), random=False)
def ones(canvas: Canvas) -> None:
    """Every value is 1."""
    canvas.tensor.fill_(1.0)


@scheme("val", "torch.nn.init.constant_", random=False)
def constant(canvas: Canvas, val: Annotated[float, Rule("the value")]) -> None:
    """Every value is the same number."""
    canvas.tensor.fill_(val)


# Distributions that do not look at the shape.


@scheme("U(a, b)", "torch.nn.init.uniform_", valid=_ordered)
def uniform(canvas: Canvas, a: Low = 0.0, b: High = 1.0) -> None:
    """Uniform between two bounds."""
    canvas.uniform(a, b)


@scheme("N(mean, std²)", "torch.nn.init.normal_", aliases=("gaussian",))
def normal(canvas: Canvas, mean: Mean = 0.0, std: Std = 1.0) -> None:
    """Normal with a mean and a standard deviation."""
    canvas.normal(mean, std)


@scheme("N(mean, std²), redrawn outside [a, b]", "torch.nn.init.trunc_normal_", valid=_reachable,
        needs=(_not_complex,))  # fmt: skip
def trunc_normal(
    canvas: Canvas, mean: Mean = 0.0, std: PositiveStd = 1.0, a: Low = -2.0, b: High = 2.0
) -> None:
    """Normal, redrawn outside absolute bounds."""
    canvas.truncated(mean, std, a, b)


@scheme("N(mean, stddev²), redrawn beyond mean ± 2 stddev", "keras TruncatedNormal", needs=(_not_complex,))
def truncated_normal(canvas: Canvas, mean: Mean = 0.0, stddev: PositiveStd = 0.05) -> None:
    """Normal, redrawn beyond two standard deviations."""
    canvas.two_sigma(mean, stddev)


# Distributions scaled by the fans.


@scheme("U(−a, a), a = gain · √(6 / (fan_in + fan_out))", "torch.nn.init.xavier_uniform_", paper=GLOROT,
        aliases=("xavier", "glorot", "glorot_uniform"), **FANS)  # fmt: skip
def xavier_uniform(canvas: Canvas, gain: Gain = 1.0) -> None:
    """Uniform that keeps the variance of activations and gradients alike (Glorot)."""
    std = gain * math.sqrt(2.0 / sum(canvas.fans))
    canvas.uniform(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)


@scheme("N(0, std²), std = gain · √(2 / (fan_in + fan_out))", "torch.nn.init.xavier_normal_", paper=GLOROT,
        aliases=("glorot_normal",), **FANS)  # fmt: skip
def xavier_normal(canvas: Canvas, gain: Gain = 1.0) -> None:
    """Normal that keeps the variance of activations and gradients alike (Glorot)."""
    canvas.normal(0.0, gain * math.sqrt(2.0 / sum(canvas.fans)))


@scheme("U(−b, b), b = gain · √(3 / fan), gain = √(2 / (1 + a²)) for leaky_relu",
        "torch.nn.init.kaiming_uniform_", paper=HE, aliases=("kaiming", "he", "he_uniform"),
        **FANS)  # fmt: skip
def kaiming_uniform(
    canvas: Canvas, a: Slope = 0.0, mode: FanMode = "fan_in", nonlinearity: After = "leaky_relu"
) -> None:
    """Uniform that keeps the variance through rectifiers (He)."""
    std = calculate_gain(nonlinearity, a) / math.sqrt(canvas.fans[mode == "fan_out"])
    canvas.uniform(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)


@scheme("N(0, std²), std = gain / √fan, gain = √(2 / (1 + a²)) for leaky_relu",
        "torch.nn.init.kaiming_normal_", paper=HE, aliases=("he_normal", "msra"), **FANS)  # fmt: skip
def kaiming_normal(
    canvas: Canvas, a: Slope = 0.0, mode: FanMode = "fan_in", nonlinearity: After = "leaky_relu"
) -> None:
    """Normal that keeps the variance through rectifiers (He)."""
    canvas.normal(0.0, calculate_gain(nonlinearity, a) / math.sqrt(canvas.fans[mode == "fan_out"]))


@scheme("U(−a, a), a = √(3 / fan_in)", "keras LecunUniform", paper=LECUN, **FANS)
def lecun_uniform(canvas: Canvas) -> None:
    """Uniform with variance 1 / fan_in (LeCun)."""
    variance_scaling(canvas, distribution="uniform")


@scheme("N(0, s²), redrawn beyond ± 2 s, s = √(1 / fan_in) / 0.8796", "keras LecunNormal", paper=LECUN,
        needs=(_not_complex,), **FANS)  # fmt: skip
def lecun_normal(canvas: Canvas) -> None:
    """Truncated normal with variance 1 / fan_in after the cut (LeCun), as Keras and JAX have it."""
    variance_scaling(canvas)


@scheme("N(0, std²), std = √(2 / ((1 + slope²) · factor))", "mxnet MSRAPrelu", paper=HE, **FANS)
def msra_prelu(
    canvas: Canvas,
    factor_type: Annotated[Literal["avg", "in", "out"], Rule("the fan, or the mean of both")] = "avg",
    slope: Slope = 0.25,
) -> None:
    """Normal that keeps the variance through PReLU (He), as MXNet has it."""
    modes: dict[str, AnyFan] = {"avg": "fan_avg", "in": "fan_in", "out": "fan_out"}
    variance_scaling(canvas, 2.0 / (1 + slope**2), modes[factor_type], "untruncated_normal")


@scheme("variance scale / fan: N redrawn beyond ± 2 s, s = √(scale / fan) / 0.8796; N(0, scale / fan); "
        "or U(−a, a), a = √(3 · scale / fan)", "keras VarianceScaling", paper=f"{GLOROT}; {HE}; {LECUN}",
        needs=(_complex_if_untruncated,), **FANS)  # fmt: skip
def variance_scaling(
    canvas: Canvas,
    scale: Annotated[float, Rule("variance times the fan", low=0, above=True)] = 1.0,
    mode: AnyFan = "fan_in",
    distribution: Annotated[
        Literal["truncated_normal", "untruncated_normal", "uniform"], Rule("its shape")
    ] = "truncated_normal",
) -> None:
    """Any distribution whose variance is a scale over a fan: the family of Glorot, He and LeCun."""
    fan_in, fan_out = canvas.fans
    variance = scale / {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    if distribution == "uniform":
        canvas.uniform(-math.sqrt(3.0 * variance), math.sqrt(3.0 * variance))
    elif distribution == "untruncated_normal":
        canvas.normal(0.0, math.sqrt(variance))
    else:
        canvas.two_sigma(0.0, math.sqrt(variance) / TRUNCATED_STD)


# Matrices and kernels with a structure.


@scheme("gain · Q, Q Qᵀ = I or Qᵀ Q = I, from the QR factors of N(0, 1)", "torch.nn.init.orthogonal_",
        paper=SAXE, dimensions=(2, None), because="to be a matrix", needs=(_not_complex,))  # fmt: skip
def orthogonal(canvas: Canvas, gain: AnyGain = 1.0) -> None:
    """A random (semi-)orthogonal matrix; further dimensions are flattened."""
    tensor = canvas.tensor
    if canvas.kernel == "keras":
        tensor = tensor.view(-1, tensor.shape[-1])
    canvas.init.orthogonal_(tensor, gain, generator=canvas.generator)


@scheme("N(0, std²), with ⌈sparsity · rows⌉ zeros in each column", "torch.nn.init.sparse_",
        paper=MARTENS, dimensions=(2, 2), because="to have columns")  # fmt: skip
def sparse(
    canvas: Canvas,
    sparsity: Annotated[float, Rule("fraction of zeros in each column", low=0, high=1)],
    std: Std = 0.01,
) -> None:
    """Normal with a fixed fraction of zeros in each column."""
    canvas.init.sparse_(canvas.out_in, sparsity, std, generator=canvas.generator)


@scheme("1 on the diagonal, 0 elsewhere", "torch.nn.init.eye_", dimensions=(2, 2),
        because="to have a diagonal", random=False)  # fmt: skip
def eye(canvas: Canvas) -> None:
    """The identity matrix."""
    identity(canvas)


@scheme("gain on the diagonal, 0 elsewhere", "keras Identity", paper=LE, dimensions=(2, 2),
        because="to have a diagonal", random=False)  # fmt: skip
def identity(canvas: Canvas, gain: AnyGain = 1.0) -> None:
    """A multiple of the identity matrix."""
    canvas.tensor.zero_().diagonal().fill_(gain)


@scheme("w[i, i, centre] = 1 in each group, 0 elsewhere", "torch.nn.init.dirac_", paper=ZAGORUYKO,
        dimensions=(3, 5), because="to be a convolution kernel", needs=(_groups_divide,),
        random=False)  # fmt: skip
def dirac(canvas: Canvas, groups: Annotated[int, Rule("groups of the convolution", low=1)] = 1) -> None:
    """The convolution that returns its input."""
    canvas.init.dirac_(canvas.out_in, groups)


@scheme("(1 − |x / f − c|) · (1 − |y / f − c|), f = ⌈k / 2⌉, c = (2f − 1 − f mod 2) / 2f", "mxnet Bilinear",
        paper=LONG, dimensions=(4, 4), because="to be a 2-d convolution kernel",
        needs=(_square,))  # fmt: skip
def bilinear(canvas: Canvas) -> None:
    """The transposed convolution that upsamples by bilinear interpolation."""
    kernel = canvas.out_in
    k = kernel.shape[-1]
    f = math.ceil(k / 2)
    c = (2 * f - 1 - f % 2) / (2 * f)
    tent = [1 - abs(x / f - c) for x in range(k)]
    kernel.copy_(kernel.new_tensor([[y * x for x in tent] for y in tent]))


@scheme("forget_bias for the second quarter (gates i, f, c, o), 0 elsewhere", "mxnet LSTMBias", paper=GERS,
        dimensions=(1, 1), because="to be a bias", needs=(_four_gates,), random=False)  # fmt: skip
def lstm_bias(canvas: Canvas, forget_bias: Annotated[float, Rule("bias of the forget gate")] = 1.0) -> None:
    """Zero, but for the forget gate of an LSTM."""
    hidden = canvas.tensor.shape[0] // 4
    canvas.tensor.zero_()[hidden : 2 * hidden].fill_(forget_bias)
