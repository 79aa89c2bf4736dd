"""Set values directly: `0.weight[0, 0] = 42`, `0.weight += 1`, `2.bias = @bias.npy`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.edit.guards import check_editable, check_plain
from paramctl.edit.optimizer_reset import settle
from paramctl.edit.report import Change, Edit
from paramctl.errors import NoMatch, ParamctlError, UsageError
from paramctl.files.content import Buffer, Computed, Content, read
from paramctl.files.sources import STDIN, Spool, open_source
from paramctl.model.checkpoint import Checkpoint, Leaf, Param, Storage, dims
from paramctl.model.dtypes import PAIRS, DType
from paramctl.model.indexing import check_index, index_text
from paramctl.model.selection import find_part
from paramctl.model.sharing import also_tied
from paramctl.values import npy
from paramctl.values.arrays import (
    Index,
    NewValues,
    cast,
    encode,
    narrow,
    read_index,
    read_values,
    storage_of,
    with_values,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_OPERATOR = re.compile(r"(?P<op>\+=|-=|\*=|/=|=)\s*")


class Assignment(NamedTuple):
    """One parsed statement: which elements of which param, what to do, and with what."""

    text: str
    at: int  # the param, by its position in checkpoint.params
    part: Index
    target: Param  # the view of the elements that `part` names
    op: str
    value: Value
    how: str  # the statement behind its path: `[0, 0] = 42`


class Value(NamedTuple):
    """What stands on the right: a number, an array from a file, or another param as it is by then."""

    shape: tuple[int, ...]
    number: complex | float | int | None = None
    array: Array | None = None
    param: int | None = None
    part: Index = ()


def set(checkpoint: Checkpoint, *statements: str, reset_optimizer: bool = False) -> Edit:
    """Apply statements `PATH[INDEX] (= | += | -= | *= | /=) VALUE` one after the other.

    VALUE is a number, `@file.npy`, or another PATH; its shape broadcasts as in numpy. Arithmetic is done
    in float32 for narrower floats, as torch does it, and rounded once. With `reset_optimizer` what an
    optimizer remembers of the changed params starts anew. Raises UsageError where a statement cannot apply.
    """
    if not statements:
        raise UsageError("nothing to set", hint="say for example '0.weight[0,0] = 42'")
    assignments = [parse(checkpoint, text) for text in statements]
    targets = dict.fromkeys(step.at for step in assignments)
    for at in targets:
        check_editable(checkpoint, [at], [at], "give it bytes of its own with 'paramctl untie' first")
    also = {at: also_tied(checkpoint, at) for at in targets}
    *earlier, last = _runs(checkpoint, assignments)
    edited = _done(checkpoint, earlier) if earlier else checkpoint
    edited = edited.with_storages(_changed(edited, last))
    changes = [Change(checkpoint.labels[step.at], step.how, also=also[step.at]) for step in assignments]
    edited, moments, notes = settle(checkpoint, edited, targets, reset_optimizer)
    return Edit(edited, (*changes, *moments), notes=notes)


def parse(checkpoint: Checkpoint, text: str) -> Assignment:
    """One statement. Names may hold any character, so the first operator with a name on either side counts."""
    failure: ParamctlError | None = None
    for match in _OPERATOR.finditer(text):
        left, op, right = text[: match.start()], match["op"], text[match.end() :].strip()
        try:
            index, part = _written(checkpoint, left)
            check_plain(checkpoint.params[index])
            value = _value(checkpoint, right)
        except (NoMatch, UsageError) as error:
            failure = failure or error
            continue
        target = narrow(checkpoint.params[index], part)
        _check_shape(target, value, right)
        if target.dtype.name == PAIRS and (value.param is None or op != "="):
            what = f"{target.path or '.'} holds pairs of 4-bit floats, and no number is one"
            raise UsageError(what, hint="'paramctl convert' it to .safetensors first, where each float is a value")
        how = f"{f'[{index_text(part)}] ' if part else ''}{op} {right}"
        return Assignment(text.strip(), index, part, target, op, value, how)
    raise failure or UsageError(
        f"'{text}' is no assignment", hint="say PATH[INDEX] = VALUE, or with +=, -=, *=, /="
    )


def _written(checkpoint: Checkpoint, left: str) -> tuple[int, Index]:
    """What stands left of an operator: a name with the spaces around it, if there is one, else without them."""
    for exact in dict.fromkeys((left.removesuffix(" "), left)):  # one space sets the operator off
        with suppress(NoMatch):
            return _target(checkpoint, exact)
    return _target(checkpoint, left.strip())


def _target(checkpoint: Checkpoint, text: str) -> tuple[int, Index]:
    """A param and an index; brackets that are part of a name, or a position, are tried first."""
    found, part = find_part(checkpoint, text)
    if isinstance(found, Leaf):
        raise UsageError(f"{found.path} is no tensor, and set knows tensors only")
    param = checkpoint.params[found]
    check_index(part, param.shape, param.path)
    return found, part


def _value(checkpoint: Checkpoint, text: str) -> Value:
    if not text:
        raise UsageError("nothing stands right of the operator", hint="give a number, @file.npy or a PATH")
    number = _number(text)
    if number is not None:
        return Value((), number=number)
    if text.startswith("@"):
        array = _load(checkpoint, text[1:])
        return Value(array.shape, array=array)
    index, part = _target(checkpoint, text)
    param = checkpoint.params[index]
    storage_of(checkpoint, param)
    if not param.is_plain:
        raise UsageError(f"{param.path or '.'} is a {param.layout} tensor, and its stored numbers are not its values")
    return Value(narrow(param, part).shape, param=index, part=part)


def _number(text: str) -> complex | float | int | None:
    known = {"true": 1, "false": 0}.get(text.lower())
    if known is not None or text.lower() in ("j", "+j", "-j"):
        return known  # Python takes a lone j for a number
    for kind in (int, float, complex):
        try:
            return kind(text)
        except ValueError:  # also an integer of thousands of digits
            continue
    return None


def _load(checkpoint: Checkpoint, name: str) -> Array:
    """An array from a .npy file, which is never unpickled."""
    if not name:
        raise UsageError("'@' names no file", hint="say @FILE.npy")
    if name == STDIN and checkpoint.file == STDIN:
        raise UsageError("standard input cannot be both the checkpoint and '@-'", hint="name a FILE for one")
    try:
        return npy.load(open_source(name))
    except ParamctlError as error:
        error.file = error.file or ("standard input" if name == STDIN else name)
        raise


def _check_shape(target: Param, value: Value, text: str) -> None:
    matched = zip(reversed(value.shape), reversed(target.shape), strict=False)
    if len(value.shape) > len(target.shape) or any(n not in (1, m) for n, m in matched):
        raise UsageError(
            f"{text} ({dims(value.shape)}) does not broadcast to {target.path or '.'} ({dims(target.shape)})"
        )


_Run = Mapping[int, list[Assignment]]  # statements by the param that they change, or the first of its ties


def _runs(checkpoint: Checkpoint, steps: Sequence[Assignment]) -> Iterator[_Run]:
    """The statements in their order, as many at a time as read nothing that one before them changes.

    A changed param shares bytes with no other but its ties.
    """
    tied = checkpoint.tied_to
    run: dict[int, list[Assignment]] = {}
    for step in steps:
        if step.value.param is not None and tied.get(step.value.param, step.value.param) in run:
            yield run
            run = {}
        run.setdefault(tied.get(step.at, step.at), []).append(step)
    yield run


def _done(checkpoint: Checkpoint, runs: Sequence[_Run]) -> Checkpoint:
    """The checkpoint after some runs. What they make is kept: all that read it would make it again."""
    results = Spool("what the statements made")
    for run in runs:
        changed = _changed(checkpoint, run)
        kept = {key: _kept(storage, checkpoint.storages[key], results) for key, storage in changed.items()}
        checkpoint = checkpoint.with_storages(kept)
    return checkpoint


def _kept(storage: Storage, before: Storage, results: Spool) -> Storage:
    known = {id(part) for part in before.content}
    content = (part if id(part) in known else _kept_part(part, results) for part in storage.content)
    return storage._replace(content=tuple(content))


def _kept_part(part: Content, results: Spool) -> Content:
    if not isinstance(part, Computed):
        return part
    again = results.keep(memoryview(read((part,), 0, part.nbytes)))
    return Computed(part.nbytes, lambda: (again(),))


def _changed(checkpoint: Checkpoint, run: _Run) -> dict[str, Storage]:
    """The storages that a run of statements changes. Raises FormatError if what they compute with is corrupt."""
    all_steps = (step for steps in run.values() for step in steps)
    for key in dict.fromkeys(str(step.target.storage) for step in all_steps if step.op != "="):
        checkpoint.storages[key].check(key)
    changes: dict[str, list[NewValues]] = {}
    for at, steps in run.items():
        change = _change(checkpoint, at, steps)
        if change.view.numel:
            changes.setdefault(str(change.view.storage), []).append(change)
    return {key: with_values(checkpoint.storages[key], *made) for key, made in changes.items()}


def _change(checkpoint: Checkpoint, index: int, steps: list[Assignment]) -> NewValues:
    """The elements of a param that its statements change, and what computes them."""
    param = checkpoint.params[index]
    view = steps[0].target if len(steps) == 1 else param
    itself = view.nbytes if len(steps) > 1 or steps[0].op != "=" else 0
    reads = itself + sum(_read_by(checkpoint, step.value) for step in steps)

    def make() -> Buffer:
        if len(steps) == 1:
            old = None if steps[0].op == "=" else read_index(checkpoint, view, ())
            return encode(_result(checkpoint, steps[0], old), view.dtype)
        values = read_index(checkpoint, param, ())
        for step in steps:
            values[step.part] = _result(checkpoint, step, values[step.part])
        return encode(values, param.dtype)

    if not view.numel:
        return NewValues(view, make)
    for step in steps:
        _check_value(step, param.dtype)
    if param.dtype.category != "float" and any(step.op != "=" or step.value.param is not None for step in steps):
        make()  # what does not fit must be refused before anything is written
    return NewValues(view, make, reads)


def _read_by(checkpoint: Checkpoint, value: Value) -> int:
    """Bytes of the checkpoint that are read for what stands on the right."""
    return 0 if value.param is None else narrow(checkpoint.params[value.param], value.part).nbytes


def _check_value(step: Assignment, dtype: DType) -> None:
    """Refuse, before anything is written, values that the dtype cannot hold."""
    import numpy as np

    if step.value.param is not None or step.op != "=":
        return
    given = _array(step.value)
    made = _cast(given, step, dtype)
    if dtype.category == "float" and not np.array_equal(_finite(made), _finite(given)):
        raise UsageError(f"{step.text}: the value does not fit {dtype.name}")


def _finite(values: Array) -> Array:
    import numpy as np

    with np.errstate(over="ignore"):
        found: Array = np.isfinite(values if values.dtype.kind in "biu" else values.astype(np.float64))
    return found


def _cast(values: Array, step: Assignment, dtype: DType) -> Array:
    """`values` in `dtype`; an error says which statement asked for it."""
    try:
        return cast(values, dtype)
    except UsageError as error:
        raise UsageError(f"{step.text}: {error.what}") from None


def _array(value: Value) -> Array:
    import numpy as np

    return np.asarray(value.number if value.array is None else value.array)


def _result(checkpoint: Checkpoint, step: Assignment, old: Array | None) -> Array:
    """The new elements of a statement's target, in its dtype."""
    import numpy as np

    dtype = step.target.dtype
    given = _given(checkpoint, step.value)
    if old is None or step.op == "=":
        made = given
    elif dtype.category in ("int", "bool", "quantized", "bits"):
        made = _whole(old, step, given)
    else:
        made = _computed(old, step, given)
    return np.broadcast_to(_cast(made, step, dtype), step.target.shape)


def _given(checkpoint: Checkpoint, value: Value) -> Array:
    if value.param is None:
        return _array(value)
    param = checkpoint.params[value.param]
    return read_index(checkpoint, param, value.part) if value.part else read_values(checkpoint, param)


def _computed(old: Array, step: Assignment, given: Array) -> Array:
    """Floats as torch computes them: the narrower ones in float32, or in what an array of wider ones has.

    A single number takes part as what it is, but torch's add and sub first round it to the tensor's dtype.
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
        return _operated(a, step.op, b)


def _whole(old: Array, step: Assignment, given: Array) -> Array:
    """Integers as Python has them: without bounds, and with exact fractions, until they are cast."""
    import numpy as np

    if given.dtype.kind == "c" or not _finite(given).all():
        raise UsageError(f"{step.text}: {step.target.dtype.name} holds whole numbers only")
    if step.op == "/=" and (given == 0).any():
        raise UsageError(f"{step.text}: division by zero")
    a, b = _integers(old), _integers(given)
    if a is None or b is None or not _stays_within(a, step.op, b):
        a, b = _fractions(old), _fractions(given)
    made = np.asarray(a // b if step.op == "/=" else _operated(a, step.op, b))
    broken = (step.op == "/=" and (made * b != a).any()) or any(n.denominator != 1 for n in _objects(made))
    if broken:
        raise UsageError(f"{step.text}: {step.target.dtype.name} holds whole numbers only")
    return np.asarray(np.frompyfunc(int, 1, 1)(made), object) if made.dtype == object else made


def _objects(values: Array) -> Iterator[Any]:
    return iter(values.flat) if values.dtype == object else iter(())


def _integers(values: Array) -> Array | None:
    """`values` as int64, or None where one is a fraction or too large."""
    import numpy as np

    if values.dtype.kind == "V":
        values = values.astype(np.float64)
    if values.size and not (abs(int(values.min())) < 1 << 62 and abs(int(values.max())) < 1 << 62):
        return None
    whole: Array = values.astype(np.int64)
    return whole if np.array_equal(whole, values) else None


def _stays_within(a: Array, op: str, b: Array) -> bool:
    """Whether no result can leave int64."""
    x, y = (max(abs(int(n.min())), abs(int(n.max()))) if n.size else 0 for n in (a, b))
    return op != "*=" or x * y < 1 << 63


def _fractions(values: Array) -> Array:
    """Exact numbers of any size."""
    import numpy as np

    if values.dtype.kind in "biuO":
        exact = np.frompyfunc(Fraction, 1, 1)(values.astype(object))
    else:  # 1.6 is meant as it is written
        exact = np.frompyfunc(lambda n: Fraction(repr(n)), 1, 1)(values.astype(np.float64).astype(object))
    return np.asarray(exact, object)


def _operated(a: Array, op: str, b: Array) -> Array:
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
