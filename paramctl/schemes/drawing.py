"""Draw the values of one param by a scheme, as bytes in its dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramctl.errors import UsageError
from paramctl.model.dtypes import DType
from paramctl.schemes.generators import seed_for, seeded_generators
from paramctl.schemes.scheme import Canvas, Kernel, Shape
from paramctl.schemes.user_function import UserFunction, fill_with
from paramctl.values.torch_import import import_torch

if TYPE_CHECKING:
    import torch
from paramctl.schemes.defaults import resolve
from paramctl.schemes.drawn_param import DrawnParam
from paramctl.schemes.spec import Spec


def why_not(spec: Spec, shape: Shape, dtype: DType, kernel: Kernel = "torch") -> str | None:
    """Return the reason why a scheme cannot apply to such a tensor, or None. Does not import torch."""
    if not isinstance(spec.scheme, UserFunction):
        return spec.scheme.why_not(shape, dtype, spec.arguments, kernel) or None
    if dtype.category in ("quantized", "bits") or dtype.bits < 8:
        return f"paramctl cannot hand {dtype.name} elements to a function"
    return None


def check(spec: Spec, param: DrawnParam) -> Spec:
    """Return the concrete spec for `param`. Raises UsageError if it cannot apply. Does not import torch."""
    concrete = resolve(spec, param).spec
    if concrete is None:
        raise UsageError(
            f"{spec.text} cannot apply to {param.text}: the framework has no default for it",
            hint="name a scheme for it",
        )
    if reason := why_not(concrete, param.shape, param.dtype, param.kernel):
        raise _cannot(concrete, param, reason)
    return concrete


def _cannot(spec: Spec, param: DrawnParam, reason: str) -> UsageError:
    """Return the error that a scheme cannot apply."""
    what = f"{spec.scheme.name} cannot apply to {param.text}: {reason}"
    return UsageError(what, hint="name another scheme for it")


def draw(spec: Spec, param: DrawnParam, current: bytes | None = None) -> bytes | memoryview:
    """Return the drawn bytes of `param`, little-endian in C order, from its own generator.

    `current` are its present bytes, from which a user's function starts (zeros without). No global random state
    changes. Raises UsageError if the scheme cannot apply.
    """
    concrete = check(spec, param)
    if 0 in param.shape:
        return b""
    if isinstance(concrete.scheme, UserFunction):
        return _bytes(fill_with(concrete.scheme, param, current), param.dtype)
    return _bytes(_from_scheme(concrete, param), param.dtype)


def _bytes(tensor: torch.Tensor, dtype: DType) -> bytes | memoryview:
    """Return the bytes of a tensor in a dtype."""
    if dtype.bits % 8:
        return _packed(tensor, dtype)
    return tensor.reshape(-1).view(import_torch().uint8).numpy().data


def _packed(tensor: torch.Tensor, dtype: DType) -> bytes:
    """Return float4 or float6 values, which torch does not have, rounded by ml_dtypes."""
    import ml_dtypes

    from paramctl.values.arrays import encode

    return bytes(encode(tensor.numpy().astype(getattr(ml_dtypes, dtype.name)), dtype))


def _from_scheme(spec: Spec, param: DrawnParam) -> torch.Tensor:
    """Return values drawn in the param's dtype, or in the nearest dtype torch can draw in, then rounded."""
    import warnings

    torch = import_torch()
    dtype = getattr(torch, param.dtype.name, torch.float32)
    wide = torch.complex64 if param.dtype.category == "complex" else torch.float32
    try:
        with warnings.catch_warnings():  # torch warns of what we know: complex32, bounds far from the mean
            warnings.simplefilter("ignore")
            tensor = _filled(spec, param, dtype)
            if tensor is None:
                tensor = _filled(spec, param, wide)
            return tensor.to(dtype)  # type: ignore[union-attr]
    except (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise _cannot(spec, param, str(error).partition("\n")[0]) from error


def _filled(spec: Spec, param: DrawnParam, dtype: torch.dtype) -> torch.Tensor | None:
    """Return a filled tensor, or None if torch does not implement the draw in `dtype`."""
    torch, seed = import_torch(), seed_for(param.seed, param.path)
    tensor = torch.empty(param.shape, dtype=dtype)
    canvas = Canvas(torch.nn.init, tensor, torch.Generator().manual_seed(seed), param.kernel)
    try:
        with seeded_generators(seed), torch.no_grad():
            spec.scheme.function(canvas, **spec.arguments)
            if spec.zero_row is not None:
                tensor[spec.zero_row].zero_()
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        return None
    return tensor  # type: ignore[no-any-return]
