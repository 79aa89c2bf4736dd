"""Compute the new elements of a param from a statement of `set`, as torch and Python would."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from paramctl.edit.assignment import Assignment, Value
from paramctl.errors import UsageError
from paramctl.model.checkpoint import Checkpoint
from paramctl.model.dtypes import DType
from paramctl.values.arrays import cast, read_index, read_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def new_elements(checkpoint: Checkpoint, step: Assignment, old: Array | None) -> Array:
    """Return the new elements of a statement's target, in its dtype."""
    import numpy as np

    dtype = step.target.dtype
    given = _right_side_values(checkpoint, step.value)
    if old is None or step.op == "=":
        made = given
    elif dtype.category in ("int", "bool", "quantized", "bits"):
        made = _integer_result(old, step, given)
    else:
        made = _float_result(old, step, given)
    return np.broadcast_to(_cast(made, step, dtype), step.target.shape)


def check_value(step: Assignment, dtype: DType) -> None:
    """Raise UsageError, before anything is written, for values that the dtype cannot hold."""
    import numpy as np

    if step.value.param is not None or step.op != "=":
        return
    given = _literal_values(step.value)
    made = _cast(given, step, dtype)
    if dtype.category != "float":
        return
    fits = np.array_equal(_finite(made), _finite(given)) and np.array_equal(_infinite(made), _infinite(given))
    if not fits:
        raise UsageError(f"{step.text}: the value does not fit {dtype.name}")


def _infinite(values: Array) -> Array:
    """Return where values are infinite."""
    import numpy as np

    found: Array = np.isinf(values if values.dtype.kind in "biu" else values.astype(np.float64))
    return found


def _finite(values: Array) -> Array:
    """Return where values are finite."""
    import numpy as np

    with np.errstate(over="ignore"):
        found: Array = np.isfinite(values if values.dtype.kind in "biu" else values.astype(np.float64))
    return found


def _cast(values: Array, step: Assignment, dtype: DType) -> Array:
    """Return `values` in `dtype`; an error names the statement."""
    try:
        return cast(values, dtype)
    except UsageError as error:
        raise UsageError(f"{step.text}: {error.what}") from None


def _literal_values(value: Value) -> Array:
    """Return the number or array of a right side."""
    import numpy as np

    return np.asarray(value.number if value.array is None else value.array)


def _right_side_values(checkpoint: Checkpoint, value: Value) -> Array:
    """Return the values of the right side."""
    if value.param is None:
        return _literal_values(value)
    param = checkpoint.params[value.param]
    return read_index(checkpoint, param, value.part) if value.part else read_values(checkpoint, param)


def _float_result(old: Array, step: Assignment, given: Array) -> Array:
    """Return the result for floats as torch computes it: narrow ones in float32, or wider with a wider array.

    A single number is used as it is, but torch's add and sub first round it to the tensor's dtype.
    """
    import numpy as np

    dtype = step.target.dtype
    a, b = old, given
    if dtype.category == "float" and dtype.bits < 64 and given.dtype.kind != "c":
        single = step.value.number is not None or (given.ndim == 0 and old.ndim > 0)
        wide = np.float64 if not single and given.dtype.kind == "f" and given.dtype.itemsize > 4 else np.float32
        with np.errstate(all="ignore"):
            a, b = old.astype(wide), given.astype(wide)
            if single and step.op in ("+=", "-="):
                b = b.astype(old.dtype).astype(wide)
    with np.errstate(all="ignore"):
        return _apply_operator(a, step.op, b)


def _integer_result(old: Array, step: Assignment, given: Array) -> Array:
    """Return the result for integers as Python computes it: unbounded and exact, before the cast."""
    import numpy as np

    if given.dtype.kind == "c" or not _finite(given).all():
        raise UsageError(f"{step.text}: {step.target.dtype.name} holds whole numbers only")
    if step.op == "/=" and (given == 0).any():
        raise UsageError(f"{step.text}: division by zero")
    a, b = _as_int64(old), _as_int64(given)
    if a is None or b is None or not _stays_within(a, step.op, b):
        a, b = _as_fractions(old), _as_fractions(given)
    made = np.asarray(a // b if step.op == "/=" else _apply_operator(a, step.op, b))
    broken = (step.op == "/=" and (made * b != a).any()) or any(n.denominator != 1 for n in _python_numbers(made))
    if broken:
        raise UsageError(f"{step.text}: {step.target.dtype.name} holds whole numbers only")
    return np.asarray(np.frompyfunc(int, 1, 1)(made), object) if made.dtype == object else made


def _python_numbers(values: Array) -> Iterator[Any]:
    """Yield the numbers of an array of Python objects; nothing for other arrays."""
    return iter(values.flat) if values.dtype == object else iter(())


def _as_int64(values: Array) -> Array | None:
    """Return `values` as int64, or None if one is a fraction or too large."""
    import numpy as np

    if values.dtype.kind == "V":
        values = values.astype(np.float64)
    if values.size and not (abs(int(values.min())) < 1 << 62 and abs(int(values.max())) < 1 << 62):
        return None
    whole: Array = values.astype(np.int64)
    return whole if np.array_equal(whole, values) else None


def _stays_within(a: Array, op: str, b: Array) -> bool:
    """Return whether no result can leave int64."""
    x, y = (max(abs(int(n.min())), abs(int(n.max()))) if n.size else 0 for n in (a, b))
    return op != "*=" or x * y < 1 << 63


def _as_fractions(values: Array) -> Array:
    """Return `values` as exact fractions."""
    import numpy as np

    if values.dtype.kind in "biuO":
        exact = np.frompyfunc(Fraction, 1, 1)(values.astype(object))
    else:  # 1.6 is meant as it is written
        exact = np.frompyfunc(lambda n: Fraction(repr(n)), 1, 1)(values.astype(np.float64).astype(object))
    return np.asarray(exact, object)


def _apply_operator(a: Array, op: str, b: Array) -> Array:
    """Return the result of an arithmetic operator."""
    match op:
        case "+=":
            made = a + b
        case "-=":
            made = a - b
        case "*=":
            made = a * b
        case _:
            made = a / b
    return made
