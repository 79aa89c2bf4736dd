"""Draw the values of one param by a scheme, as bytes in its dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramctl.errors import UsageError
from paramctl.model.dtypes import DType
from paramctl.schemes.generators import own_generators, seed_for
from paramctl.schemes.scheme import Canvas, Kernel, Shape
from paramctl.schemes.user_function import UserFunction, filled
from paramctl.values.torch_import import import_torch

if TYPE_CHECKING:
    import torch
from paramctl.schemes.defaults import resolve
from paramctl.schemes.spec import Spec
from paramctl.schemes.target import Target


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

    from paramctl.values.arrays import encode

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
