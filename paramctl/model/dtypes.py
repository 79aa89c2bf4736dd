"""One table: every dtype, its size, and its spelling in each place that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class DType(NamedTuple):
    """An element type.

    `name` is torch's name without its prefix (or the format's own, where torch has none). `bits` is
    the size of one element. The other fields are its spelling elsewhere, empty where that place has no
    word for it: `safetensors` in a header, `storage` the class that stands for it in a torch pickle,
    `numpy` an attribute of numpy or ml_dtypes.
    """

    name: str
    bits: int
    category: str  # float, complex, int, bool, quantized, bits
    numpy: str = ""
    safetensors: str = ""
    storage: str = ""

    @property
    def is_float(self) -> bool:
        return self.category == "float"

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 where elements are smaller than a byte."""
        return self.bits // 8

    def nbytes(self, numel: int) -> int:
        """Bytes that `numel` elements take, rounded up to whole bytes."""
        return (self.bits * numel + 7) // 8

    def to_numpy(self) -> np.dtype[np.generic]:
        """Return the numpy dtype that reads these bytes, in the machine's order.

        Types that numpy has no word for at all (`bits8`, `quint4x2`) read as raw bytes.
        """
        import ml_dtypes
        import numpy as np

        if not self.numpy:
            return np.dtype(f"u{max(self.itemsize, 1)}")
        found: np.dtype[np.generic] = np.dtype(getattr(np, self.numpy, None) or getattr(ml_dtypes, self.numpy))
        return found


_TABLE = (
    DType("float64", 64, "float", "float64", "F64", "DoubleStorage"),
    DType("float32", 32, "float", "float32", "F32", "FloatStorage"),
    DType("float16", 16, "float", "float16", "F16", "HalfStorage"),
    DType("bfloat16", 16, "float", "bfloat16", "BF16", "BFloat16Storage"),
    DType("complex128", 128, "complex", "complex128", "", "ComplexDoubleStorage"),
    DType("complex64", 64, "complex", "complex64", "C64", "ComplexFloatStorage"),
    DType("complex32", 32, "complex"),
    DType("int64", 64, "int", "int64", "I64", "LongStorage"),
    DType("int32", 32, "int", "int32", "I32", "IntStorage"),
    DType("int16", 16, "int", "int16", "I16", "ShortStorage"),
    DType("int8", 8, "int", "int8", "I8", "CharStorage"),
    DType("uint64", 64, "int", "uint64", "U64"),
    DType("uint32", 32, "int", "uint32", "U32"),
    DType("uint16", 16, "int", "uint16", "U16"),
    DType("uint8", 8, "int", "uint8", "U8", "ByteStorage"),
    DType("bool", 8, "bool", "bool", "BOOL", "BoolStorage"),
    DType("float8_e4m3fn", 8, "float", "float8_e4m3fn", "F8_E4M3"),
    DType("float8_e5m2", 8, "float", "float8_e5m2", "F8_E5M2"),
    DType("float8_e4m3fnuz", 8, "float", "float8_e4m3fnuz", "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 8, "float", "float8_e5m2fnuz", "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", 8, "float", "float8_e8m0fnu", "F8_E8M0"),
    # One torch element holds two values; a safetensors F4 counts the values themselves.
    DType("float4_e2m1fn_x2", 8, "bits"),
    DType("float4_e2m1fn", 4, "float", "float4_e2m1fn", "F4"),
    DType("float6_e2m3fn", 6, "float", "", "F6_E2M3"),
    DType("float6_e3m2fn", 6, "float", "", "F6_E3M2"),
    DType("qint8", 8, "quantized", "int8", "", "QInt8Storage"),
    DType("quint8", 8, "quantized", "uint8", "", "QUInt8Storage"),
    DType("qint32", 32, "quantized", "int32", "", "QInt32Storage"),
    DType("quint4x2", 4, "quantized", "", "", "QUInt4x2Storage"),
    DType("quint2x4", 2, "quantized", "", "", "QUInt2x4Storage"),
    DType("bits8", 8, "bits"),
    DType("bits16", 16, "bits"),
    DType("bits1x8", 8, "bits"),
    DType("bits2x4", 8, "bits"),
    DType("bits4x2", 8, "bits"),
)

PAIRS = "float4_e2m1fn_x2"  # torch has two 4-bit floats for one element
BY_NAME = {d.name: d for d in _TABLE}
BY_SAFETENSORS = {d.safetensors: d for d in _TABLE if d.safetensors}
BY_STORAGE = {d.storage: d for d in _TABLE if d.storage}
