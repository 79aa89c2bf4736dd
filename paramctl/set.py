"""Set values directly: `0.weight[0, 0] = 42`, `0.weight += 1`, `2.bias = @bias.npy`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.changes import Change, Edit, also_tied, check_editable, stale_moments
from paramctl.checkpoint import Checkpoint, Leaf, Param
from paramctl.dtypes import DType
from paramctl.errors import FileError, FormatError, ParamctlError, UsageError
from paramctl.indexing import check_index
from paramctl.paths import find_part
from paramctl.segments import Buffer
from paramctl.sources import open_source
from paramctl.values import Index, cast, encode, narrow, read_index, read_values, storage_of, with_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_OPERATOR = re.compile(r"\s*(?P<op>\+=|-=|\*=|/=|=)\s*")


class Assignment(NamedTuple):
    """One parsed statement: which elements of which param, what to do, and with what."""

    text: str
    at: int  # the param, by its position in checkpoint.params
    part: Index
    target: Param  # the view of the elements that `part` names
    op: str
    value: Value


class Value(NamedTuple):
    """What stands on the right: a number, an array from a file, or another param as it is by then."""

    shape: tuple[int, ...]
    number: complex | float | int | None = None
    array: Array | None = None
    param: int | None = None
    part: Index = ()


def set(checkpoint: Checkpoint, *statements: str) -> Edit:
    """Apply statements `PATH[INDEX] (= | += | -= | *= | /=) VALUE` one after the other.

    VALUE is a number, `@file.npy`, or another PATH; its shape broadcasts as in numpy. Arithmetic is done
    in float32 for narrower floats, as torch does it, and rounded once. Raises UsageError where a
    statement cannot apply.
    """
    if not statements:
        raise UsageError("nothing to set", hint="say for example '0.weight[0,0] = 42'")
    assignments = [parse(checkpoint, text) for text in statements]
    changes = []
    for (index, _), group in groupby(assignments, key=_batch):
        steps = list(group)
        check_editable(checkpoint, index, [index])
        checkpoint = _apply(checkpoint, index, steps)
        also = also_tied(checkpoint, index)
        changes += [Change(checkpoint.labels[index], step.text, also=_but(also, checkpoint, index)) for step in steps]
    return Edit(checkpoint, tuple(changes), notes=stale_moments(checkpoint))


def parse(checkpoint: Checkpoint, text: str) -> Assignment:
    """One statement. Names may hold any character, so the first operator whose left side exists counts."""
    failure: ParamctlError | None = None
    for match in _OPERATOR.finditer(text):
        left, op, right = text[: match.start()], match["op"], text[match.end() :]
        try:
            index, part = _target(checkpoint, left.strip())
        except ParamctlError as error:
            failure = failure or error
            continue
        param = checkpoint.params[index]
        check_index(part, param.shape, param.path)
        target = narrow(param, part)
        value = _value(checkpoint, right.strip())
        _check_shape(target, value, right.strip())
        return Assignment(text.strip(), index, part, target, op, value)
    raise failure or UsageError(
        f"'{text}' is no assignment", hint="say PATH[INDEX] = VALUE, or with +=, -=, *=, /="
    )


def _but(also: tuple[str, ...], checkpoint: Checkpoint, index: int) -> tuple[str, ...]:
    """The other paths of a group of ties, its first included where another was named."""
    label = checkpoint.labels[index]
    first = checkpoint.labels[checkpoint.tied_to.get(index, index)]
    return tuple(path for path in dict.fromkeys((first, *also)) if path != label)


def _target(checkpoint: Checkpoint, text: str) -> tuple[int, Index]:
    """A param and an index; brackets that are part of a name, or a position, are tried first."""
    found, part = find_part(checkpoint, text)
    if isinstance(found, Leaf):
        raise UsageError(f"{found.path} is no tensor, and set changes tensors only")
    return found, part


def _value(checkpoint: Checkpoint, text: str) -> Value:
    if not text:
        raise UsageError("nothing stands right of the operator", hint="give a number, @file.npy or a PATH")
    number = _number(text)
    if number is not None:
        return Value((), number=number)
    if text.startswith("@"):
        array = _load(text[1:])
        return Value(array.shape, array=array)
    index, part = _target(checkpoint, text)
    param = checkpoint.params[index]
    check_index(part, param.shape, param.path)
    storage_of(checkpoint, param)
    return Value(narrow(param, part).shape, param=index, part=part)


def _number(text: str) -> complex | float | int | None:
    words = {"true": 1, "false": 0}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float, complex):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _load(name: str) -> Array:
    """An array from a .npy file, which is never unpickled."""
    import numpy as np

    source = open_source(name)
    try:
        with os.fdopen(os.dup(source.fileno()), "rb") as file:
            array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"is no .npy file: {reason}", file=name) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        raise FileError("holds no array of numbers", file=name)
    return array


def _check_shape(target: Param, value: Value, text: str) -> None:
    import numpy as np

    try:
        fits = np.broadcast_shapes(value.shape, target.shape) == target.shape
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(
            f"{text} ({_dims(value.shape)}) does not broadcast to {target.path or '.'} ({_dims(target.shape)})"
        )


def _dims(shape: Sequence[int]) -> str:
    return " × ".join(str(n) for n in shape) or "scalar"


def _batch(step: Assignment) -> tuple[int, int]:
    """Neighbouring statements about one param are done in one go, unless one reads a param."""
    return step.at, -1 if step.value.param is None else id(step)


def _apply(checkpoint: Checkpoint, index: int, steps: list[Assignment]) -> Checkpoint:
    param = checkpoint.params[index]
    storage = storage_of(checkpoint, param)
    if any(step.op != "=" for step in steps):
        storage.check(str(param.storage))
    view = steps[0].target if len(steps) == 1 else param
    if not view.numel:
        return checkpoint

    def make() -> Buffer:
        if len(steps) == 1:
            old = None if steps[0].op == "=" else read_index(checkpoint, view, ())
            return encode(_result(checkpoint, steps[0], old), view.dtype)
        values = read_index(checkpoint, param, ())
        for step in steps:
            values[step.part] = _result(checkpoint, step, values[step.part])
        return encode(values, param.dtype)

    for step in steps:
        _check_value(step.value, step, param.dtype)
    return checkpoint.with_storages({str(param.storage): with_values(storage, view, make)})


def _check_value(value: Value, step: Assignment, dtype: DType) -> None:
    """Refuse, before anything is written, a number that the dtype cannot hold."""
    import numpy as np

    if value.param is not None or step.op != "=":
        return
    given = np.asarray(value.number if value.array is None else value.array)
    made = cast(given, dtype)
    if dtype.category == "float" and not np.array_equal(np.isfinite(made.astype(np.float64)), np.isfinite(given)):
        raise UsageError(f"{step.text}: the value does not fit {dtype.name}")


def _result(checkpoint: Checkpoint, step: Assignment, old: Array | None) -> Array:
    """The new elements of a statement's target, in its dtype."""
    import numpy as np

    dtype = step.target.dtype
    given = _given(checkpoint, step.value)
    if old is None or step.op == "=":
        made = cast(given, dtype)
    else:
        with np.errstate(all="ignore"):
            made = cast(_computed(old, step.op, given, dtype), dtype)
    return np.broadcast_to(made, step.target.shape)


def _given(checkpoint: Checkpoint, value: Value) -> Array:
    import numpy as np

    if value.param is not None:
        param = checkpoint.params[value.param]
        return read_index(checkpoint, param, value.part) if value.part else read_values(checkpoint, param)
    return np.asarray(value.number if value.array is None else value.array)


def _computed(old: Array, op: str, given: Array, dtype: DType) -> Array:
    import numpy as np

    wide: type[Any] | None = None
    if dtype.category == "float" and dtype.bits < 64:
        wide = np.float32  # torch computes narrower floats in float32 and rounds once
    elif dtype.category in ("int", "bool", "quantized", "bits") and op != "/=":
        wide = object if given.dtype.kind in "biu" else np.float64
    a = old.astype(wide) if wide else old
    b = given.astype(wide) if wide and given.dtype.kind != "c" else given
    match op:
        case "+=":
            made = a + b
        case "-=":
            made = a - b
        case "*=":
            made = a * b
        case _:
            made = a / b
    narrow_type = np.uint64 if dtype.name == "uint64" else np.int64
    exact: Array = made.astype(narrow_type) if made.dtype == object else made
    return exact
