"""Define the schemes: one function each, written like its formula.

A scheme fills a `Canvas`. The parameters of its function are its arguments, the first line of its docstring is
its help, and the decorator holds the formula, the paper and the origin of its name. torch is not imported here: a
canvas brings it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from paramctl.model.dtypes import DType
from paramctl.schemes.scheme import (
    TRUNCATED_STD,
    Arguments,
    Canvas,
    Kernel,
    Nonlinearity,
    Rule,
    Shape,
    calculate_gain,
    scheme,
)


def _not_complex(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    """Return the reason why a scheme cannot draw complex numbers, or ""."""
    return f"torch cannot draw it in {dtype.name}" if dtype.category == "complex" else ""


def _complex_if_untruncated(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    """Return the reason why a truncated distribution cannot draw complex numbers, or ""."""
    truncated = arguments["distribution"] == "truncated_normal"
    return _not_complex(shape, dtype, arguments, kernel) if truncated else ""


def _groups_divide(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    """Return the reason if the output channels do not divide into the groups, or ""."""
    out, groups = shape[-1 if kernel == "keras" else 0], arguments["groups"]
    return f"its {out} output channels do not divide into {groups} groups" if out % groups else ""


def _square(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    """Return the reason if a kernel is not square, or ""."""
    height, width = shape[:2] if kernel == "keras" else shape[2:]
    return "" if height == width else f"its kernel is {height} × {width}, not square"


def _four_gates(shape: Shape, dtype: DType, arguments: Arguments, kernel: Kernel) -> str:
    """Return the reason if a bias does not divide into four gates, or ""."""
    return f"its {shape[0]} values do not divide into 4 gates" if shape[0] % 4 else ""


def _bounds_in_order(arguments: Arguments) -> str:
    """Return the reason if the lower bound is above the upper one, or ""."""
    a, b = arguments["a"], arguments["b"]
    return f"a ({a:g}) is greater than b ({b:g})" if a > b else ""


def _bounds_reachable(arguments: Arguments) -> str:
    """Return the reason if torch would redraw for ever, because the bounds are far from the mean, or ""."""
    mean, std, a, b = (arguments[name] for name in ("mean", "std", "a", "b"))
    away, width = max(a - mean, mean - b, 0.0) / std, (b - a) / std
    if away > 100 or away * width > 10_000:
        return f"almost no value of N({mean:g}, {std:g}²) lies in [{a:g}, {b:g}]"
    return _bounds_in_order(arguments)


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
LONG = "Long, Shelhamer & Darrell (2015), Fully convolutional networks for semantic segmentation, arXiv:1411.4038"

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


@scheme("0", "torch.nn.init.zeros_", aliases=("zero",), random=False)
def zeros(canvas: Canvas) -> None:
    """Set every value to 0."""
    canvas.tensor.zero_()


@scheme("1", "torch.nn.init.ones_", aliases=("one",), random=False)
def ones(canvas: Canvas) -> None:
    """Set every value to 1."""
    canvas.tensor.fill_(1.0)


@scheme("val", "torch.nn.init.constant_", random=False)
def constant(canvas: Canvas, val: Annotated[float, Rule("the value")]) -> None:
    """Set every value to the same number."""
    canvas.tensor.fill_(val)


@scheme("U(a, b)", "torch.nn.init.uniform_", valid=_bounds_in_order)
def uniform(canvas: Canvas, a: Low = 0.0, b: High = 1.0) -> None:
    """Draw uniformly between two bounds."""
    canvas.uniform(a, b)


@scheme("N(mean, std²)", "torch.nn.init.normal_", aliases=("gaussian",))
def normal(canvas: Canvas, mean: Mean = 0.0, std: Std = 1.0) -> None:
    """Draw from a normal distribution with a mean and a standard deviation."""
    canvas.normal(mean, std)


@scheme("N(mean, std²), redrawn outside [a, b]", "torch.nn.init.trunc_normal_", valid=_bounds_reachable,
        needs=(_not_complex,))  # fmt: skip
def trunc_normal(canvas: Canvas, mean: Mean = 0.0, std: PositiveStd = 1.0, a: Low = -2.0, b: High = 2.0) -> None:
    """Draw from a normal distribution, again for values outside absolute bounds."""
    canvas.truncated(mean, std, a, b)


@scheme("N(mean, stddev²), redrawn beyond mean ± 2 stddev", "keras TruncatedNormal", needs=(_not_complex,))
def truncated_normal(canvas: Canvas, mean: Mean = 0.0, stddev: PositiveStd = 0.05) -> None:
    """Draw from a normal distribution, again for values beyond two standard deviations."""
    canvas.two_sigma(mean, stddev)


@scheme("U(−a, a), a = gain · √(6 / (fan_in + fan_out))", "torch.nn.init.xavier_uniform_", paper=GLOROT,
        aliases=("xavier", "glorot", "glorot_uniform"), **FANS)  # fmt: skip
def xavier_uniform(canvas: Canvas, gain: Gain = 1.0) -> None:
    """Draw uniformly so that activations and gradients keep their variance (Glorot)."""
    std = gain * math.sqrt(2.0 / sum(canvas.fans))
    canvas.uniform(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)


@scheme("N(0, std²), std = gain · √(2 / (fan_in + fan_out))", "torch.nn.init.xavier_normal_", paper=GLOROT,
        aliases=("glorot_normal",), **FANS)  # fmt: skip
def xavier_normal(canvas: Canvas, gain: Gain = 1.0) -> None:
    """Draw from a normal distribution so that activations and gradients keep their variance (Glorot)."""
    canvas.normal(0.0, gain * math.sqrt(2.0 / sum(canvas.fans)))


@scheme("U(−b, b), b = gain · √(3 / fan), gain = √(2 / (1 + a²)) for leaky_relu",
        "torch.nn.init.kaiming_uniform_", paper=HE, aliases=("kaiming", "he", "he_uniform"),
        **FANS)  # fmt: skip
def kaiming_uniform(
    canvas: Canvas, a: Slope = 0.0, mode: FanMode = "fan_in", nonlinearity: After = "leaky_relu"
) -> None:
    """Draw uniformly so that the variance is kept through rectifiers (He)."""
    std = calculate_gain(nonlinearity, a) / math.sqrt(canvas.fans[mode == "fan_out"])
    canvas.uniform(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)


@scheme("N(0, std²), std = gain / √fan, gain = √(2 / (1 + a²)) for leaky_relu",
        "torch.nn.init.kaiming_normal_", paper=HE, aliases=("he_normal", "msra"), **FANS)  # fmt: skip
def kaiming_normal(
    canvas: Canvas, a: Slope = 0.0, mode: FanMode = "fan_in", nonlinearity: After = "leaky_relu"
) -> None:
    """Draw from a normal distribution so that the variance is kept through rectifiers (He)."""
    canvas.normal(0.0, calculate_gain(nonlinearity, a) / math.sqrt(canvas.fans[mode == "fan_out"]))


@scheme("U(−a, a), a = √(3 / fan_in)", "keras LecunUniform", paper=LECUN, **FANS)
def lecun_uniform(canvas: Canvas) -> None:
    """Draw uniformly with variance 1 / fan_in (LeCun)."""
    variance_scaling(canvas, distribution="uniform")


@scheme("N(0, s²), redrawn beyond ± 2 s, s = √(1 / fan_in) / 0.8796", "keras LecunNormal", paper=LECUN,
        needs=(_not_complex,), **FANS)  # fmt: skip
def lecun_normal(canvas: Canvas) -> None:
    """Draw from a truncated normal with variance 1 / fan_in after the cut (LeCun), as Keras and JAX do."""
    variance_scaling(canvas)


@scheme("N(0, std²), std = √(2 / ((1 + slope²) · factor))", "mxnet MSRAPrelu", paper=HE, **FANS)
def msra_prelu(
    canvas: Canvas,
    factor_type: Annotated[Literal["avg", "in", "out"], Rule("the fan, or the mean of both")] = "avg",
    slope: Slope = 0.25,
) -> None:
    """Draw from a normal distribution so that the variance is kept through PReLU (He), as MXNet does."""
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
    """Draw from a distribution whose variance is a scale over a fan: the family of Glorot, He and LeCun."""
    fan_in, fan_out = canvas.fans
    variance = scale / {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    if distribution == "uniform":
        canvas.uniform(-math.sqrt(3.0 * variance), math.sqrt(3.0 * variance))
    elif distribution == "untruncated_normal":
        canvas.normal(0.0, math.sqrt(variance))
    else:
        canvas.two_sigma(0.0, math.sqrt(variance) / TRUNCATED_STD)


@scheme("gain · Q, Q Qᵀ = I or Qᵀ Q = I, from the QR factors of N(0, 1)", "torch.nn.init.orthogonal_",
        paper=SAXE, dimensions=(2, None), because="to be a matrix", needs=(_not_complex,))  # fmt: skip
def orthogonal(canvas: Canvas, gain: AnyGain = 1.0) -> None:
    """Draw a random (semi-)orthogonal matrix; further dimensions are flattened."""
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
    """Draw from a normal distribution, with a fixed fraction of zeros in each column."""
    canvas.init.sparse_(canvas.out_in, sparsity, std, generator=canvas.generator)


@scheme("1 on the diagonal, 0 elsewhere", "torch.nn.init.eye_", dimensions=(2, 2),
        because="to have a diagonal", random=False)  # fmt: skip
def eye(canvas: Canvas) -> None:
    """Set to the identity matrix."""
    identity(canvas)


@scheme("gain on the diagonal, 0 elsewhere", "keras Identity", paper=LE, dimensions=(2, 2),
        because="to have a diagonal", random=False)  # fmt: skip
def identity(canvas: Canvas, gain: AnyGain = 1.0) -> None:
    """Set to a multiple of the identity matrix."""
    canvas.tensor.zero_().diagonal().fill_(gain)


@scheme("w[i, i, centre] = 1 in each group, 0 elsewhere", "torch.nn.init.dirac_", paper=ZAGORUYKO,
        dimensions=(3, 5), because="to be a convolution kernel", needs=(_groups_divide,),
        random=False)  # fmt: skip
def dirac(canvas: Canvas, groups: Annotated[int, Rule("groups of the convolution", low=1)] = 1) -> None:
    """Set to the convolution that returns its input."""
    canvas.init.dirac_(canvas.out_in, groups)


@scheme("(1 − |x / f − c|) · (1 − |y / f − c|), f = ⌈k / 2⌉, c = (2f − 1 − f mod 2) / 2f", "mxnet Bilinear",
        paper=LONG, dimensions=(4, 4), because="to be a 2-d convolution kernel",
        needs=(_square,))  # fmt: skip
def bilinear(canvas: Canvas) -> None:
    """Set to the transposed convolution that upsamples by bilinear interpolation."""
    kernel = canvas.out_in
    k = kernel.shape[-1]
    f = math.ceil(k / 2)
    c = (2 * f - 1 - f % 2) / (2 * f)
    tent = [1 - abs(x / f - c) for x in range(k)]
    kernel.copy_(kernel.new_tensor([[y * x for x in tent] for y in tent]))


@scheme("forget_bias for the second quarter (gates i, f, c, o), 0 elsewhere", "mxnet LSTMBias", paper=GERS,
        dimensions=(1, 1), because="to be a bias", needs=(_four_gates,), random=False)  # fmt: skip
def lstm_bias(canvas: Canvas, forget_bias: Annotated[float, Rule("bias of the forget gate")] = 1.0) -> None:
    """Set to 0, except the forget gate of an LSTM."""
    hidden = canvas.tensor.shape[0] // 4
    canvas.tensor.zero_()[hidden : 2 * hidden].fill_(forget_bias)
