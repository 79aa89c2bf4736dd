"""Draw the params of weight normalisation: a direction, and the magnitude that is its norm.

Under weight normalisation a layer's weight is magnitude · direction / ‖direction‖. With the direction drawn, and with
its norm as the magnitude, the weight is what was drawn.
Reference: torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.values.arrays import cast, decoded, encode

if TYPE_CHECKING:
    from paramctl.files.content import Buffer

SUFFIXES = (("weight_g", "weight_v"), ("original0", "original1"))  # of magnitudes and directions


def direction_of(checkpoint: Checkpoint, at: int) -> int | None:
    """Return the position of the direction whose magnitude a param is; None if it is no magnitude."""
    param = checkpoint.params[at]
    layer, _, name = param.path.rpartition(".")
    for magnitude, direction in SUFFIXES:
        if name == magnitude:
            for other in checkpoint.own_params.get(layer, ()):
                held = checkpoint.params[other]
                if held.path.rpartition(".")[2] == direction and _fits(param.shape, held.shape):
                    return other
    return None


def _fits(magnitude: tuple[int, ...], direction: tuple[int, ...]) -> bool:
    """Return whether a magnitude has one number for each slice of a direction, or one in all."""
    if not magnitude:
        return True
    return len(magnitude) == len(direction) and all(m in (1, d) for m, d in zip(magnitude, direction, strict=True))


def norm(drawn: Buffer, direction: Param, magnitude: Param) -> Buffer:
    """Return the bytes of a magnitude: the norms of the slices of a direction that has the bytes `drawn`."""
    import numpy as np

    raw = np.frombuffer(drawn, f"<u{direction.dtype.itemsize}").reshape(direction.shape)
    values = decoded(raw.astype(raw.dtype.newbyteorder("=")), direction._replace(flags=frozenset()))
    shape = magnitude.shape or (1,) * len(direction.shape)
    axes = tuple(i for i, size in enumerate(shape) if size == 1)
    wide = np.abs(values.astype(np.complex128 if direction.dtype.category == "complex" else np.float64))
    made = np.sqrt(np.sum(wide * wide, axis=axes)).reshape(magnitude.shape)
    return encode(cast(made, magnitude.dtype), magnitude.dtype)
