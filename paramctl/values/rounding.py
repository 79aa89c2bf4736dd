"""Round values to floats of fewer than 32 bits as torch does.

Reference: c10/util/Float8_*.h, Half.h and BFloat16.h of torch: whatever the values are, they become float32 first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paramctl.model.dtypes import DType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

SATURATED = {"float8_e4m3fn": 448.0}  # dtypes that take their largest value for larger ones and infinities


def narrowed(values: Array, dtype: DType) -> Array:
    """Return values in a float dtype of fewer than 32 bits."""
    import numpy as np

    with np.errstate(all="ignore"):
        single = values.astype(np.float32)
        if dtype.name == "float8_e8m0fnu":
            return _exponents(single).view(numpy_dtype(dtype))
        most = SATURATED.get(dtype.name)
        return (single if most is None else np.clip(single, -most, most)).astype(numpy_dtype(dtype))


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """Return what numpy and ml_dtypes call a dtype; elements of 6 bits too."""
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(ml_dtypes, dtype.name)) if dtype.name.startswith("float6_") else dtype.to_numpy()


def _exponents(single: Array) -> Array:
    """Return the nearest powers of 2 as float8_e8m0fnu has them: biased exponents alone, without a sign.

    Zero becomes the least power, infinities become NaN, and a value half way becomes the larger power.
    """
    import numpy as np

    bits = single.view(np.uint32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    up = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
    rounded: Array = np.where(exponent == 0xFF, exponent, exponent + up).astype(np.uint8)
    return rounded
