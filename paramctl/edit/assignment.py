"""Parse the statements of `set`: `PATH[INDEX] (= | += | -= | *= | /=) VALUE`."""

from __future__ import annotations

import re
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.edit.guards import check_plain
from paramctl.errors import NoMatch, ParamctlError, UsageError
from paramctl.files.sources import STDIN, open_source
from paramctl.model.checkpoint import Checkpoint, Leaf, Param, dims
from paramctl.model.dtypes import PAIRS
from paramctl.model.selections.indexing import check_index, index_text
from paramctl.model.selections.positions import positions
from paramctl.model.selections.selection import find_part, is_pattern, model_params, readings, select
from paramctl.values import npy
from paramctl.values.arrays import Index, narrow, storage_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_OPERATOR = re.compile(r"(?P<op>\+=|-=|\*=|/=|=)\s*")


class Assignment(NamedTuple):
    """One parsed statement: the elements of a param, the operator, and the value."""

    text: str
    at: int  # the param, by its position in checkpoint.params
    part: Index
    target: Param  # the view of the elements that `part` names
    op: str
    value: Value
    how: str  # the statement behind its path: `[0, 0] = 42`


class Value(NamedTuple):
    """The right side of a statement: a number, an array from a file, or another param."""

    shape: tuple[int, ...]
    number: complex | float | int | None = None
    array: Array | None = None
    param: int | None = None
    part: Index = ()


def parse(checkpoint: Checkpoint, text: str) -> Assignment:
    """Return one parsed statement. Names may hold any character: the first operator with a name on each side counts."""
    failure: ParamctlError | None = None
    for match in _OPERATOR.finditer(text):
        left, op, right = text[: match.start()], match["op"], text[match.end() :].strip()
        try:
            index, part = _left_side(checkpoint, left)
            check_plain(checkpoint.params[index])
            value = _value(checkpoint, right)
        except (NoMatch, UsageError) as error:
            failure = failure or error
            continue
        target = narrow(checkpoint.params[index], part)
        _check_shape(target, value, right)
        if target.dtype.name == PAIRS and (value.param is None or op != "="):
            what = f"{target.path or '.'} holds pairs of 4-bit floats, and a single number is not a pair"
            raise UsageError(what, hint="'paramctl convert' it to .safetensors first, where each float is a value")
        how = f"{f'[{index_text(part)}] ' if part else ''}{op} {right}"
        return Assignment(text.strip(), index, part, target, op, value, how)
    raise failure or UsageError(
        f"'{text}' is not an assignment", hint="say PATH[INDEX] = VALUE, or with +=, -=, *=, /="
    )


def parse_all(checkpoint: Checkpoint, text: str) -> list[Assignment]:
    """Return one statement, or, where a pattern stands left of the operator, one for each param that it names."""
    try:
        return [parse(checkpoint, text)]
    except (NoMatch, UsageError):
        several = _for_each(checkpoint, text)
        if not several:
            raise
        return several


def _for_each(checkpoint: Checkpoint, text: str) -> list[Assignment]:
    """Return the statements that one with a pattern stands for, such as `**.bias = 0`; tied params once."""
    for match in _OPERATOR.finditer(text):
        left, right = text[: match.start()].strip(), f"{match['op']} {text[match.end() :].strip()}"
        for path, index in readings(left):
            if not is_pattern(path):
                continue
            try:
                indices = select(checkpoint, [path], among=model_params(checkpoint)).indices
            except NoMatch:
                continue
            part = f"[{index_text(index)}]" if index else ""
            leaders = dict.fromkeys(checkpoint.tied_to.get(i, i) for i in indices)
            place_of = positions(checkpoint, leaders)  # found by position: names may print alike
            return [_statement(checkpoint, at, f"{place_of[at]}{part} {right}", f"{part} {right}") for at in leaders]
    return []


def _statement(checkpoint: Checkpoint, at: int, text: str, rest: str) -> Assignment:
    """Return the statement for one param of several; errors call it by the param's path and the `rest`."""
    return parse(checkpoint, text)._replace(text=f"{checkpoint.labels[at]}{rest}")


def _left_side(checkpoint: Checkpoint, left: str) -> tuple[int, Index]:
    """Return the param and index left of an operator: a name with the spaces around it, else without them."""
    for exact in dict.fromkeys((left.removesuffix(" "), left)):  # one space sets the operator off
        with suppress(NoMatch):
            return _find_target(checkpoint, exact)
    return _find_target(checkpoint, left.strip())


def _find_target(checkpoint: Checkpoint, text: str) -> tuple[int, Index]:
    """Return a param and an index; brackets that are part of a name, or a position, are tried first."""
    found, part = find_part(checkpoint, text)
    if isinstance(found, Leaf):
        raise UsageError(f"{found.path} is not a tensor, and set changes tensors only")
    param = checkpoint.params[found]
    check_index(part, param.shape, param.path)
    return found, part


def _value(checkpoint: Checkpoint, text: str) -> Value:
    """Return the right side of a statement."""
    if not text:
        raise UsageError("there is no value right of the operator", hint="give a number, @file.npy or a PATH")
    number = _number(text)
    if number is not None:
        return Value((), number=number)
    if text.startswith("@"):
        array = _load(checkpoint, text[1:])
        return Value(array.shape, array=array)
    index, part = _find_target(checkpoint, text)
    param = checkpoint.params[index]
    storage_of(checkpoint, param)
    if not param.is_plain:
        raise UsageError(f"{param.path or '.'} is a {param.layout} tensor, and its stored numbers are not its values")
    return Value(narrow(param, part).shape, param=index, part=part)


def _number(text: str) -> complex | float | int | None:
    """Return the number that a text stands for, or None."""
    known = {"true": 1, "false": 0}.get(text.lower())
    if known is not None or text.lower() in ("j", "+j", "-j"):
        return known  # Python takes a lone j for a number
    for kind in (int, float, complex):
        try:
            number = kind(text)
        except ValueError:  # also an integer of thousands of digits
            continue
        if "inf" not in text.lower() and abs(number) == inf:
            raise UsageError(f"{text} is larger than any float64", hint="say inf for infinity")
        return number
    return None


def _load(checkpoint: Checkpoint, name: str) -> Array:
    """Return the array of a .npy file, which is never unpickled."""
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
    """Raise UsageError unless the value broadcasts to the target."""
    matched = zip(reversed(value.shape), reversed(target.shape), strict=False)
    if len(value.shape) > len(target.shape) or any(n not in (1, m) for n, m in matched):
        raise UsageError(
            f"{text} ({dims(value.shape)}) does not broadcast to {target.path or '.'} ({dims(target.shape)})"
        )
