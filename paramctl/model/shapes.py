"""Check the counts and shapes that a file claims, where they enter: every reader passes its numbers through here.

A file may claim a count of 5,000 digits or 2**33 elements in no bytes. What passes is what torch can hold: whole
numbers below 2**63, and shapes of up to 64 dimensions whose number of elements is below 2**63 too. Every module may
import this one, which imports nothing but the errors.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from operator import mul
from typing import TypeGuard

from paramctl.errors import FormatError

MAX_INT = 2**63  # torch counts in 64 bits with a sign
MAX_DIMS = 64  # the most that torch and numpy have
MAX_DIGITS = 18  # of a number in a text; all of these are below MAX_INT
SHOWN_BITS = 1000  # of an integer that is printed in full; Python refuses some that are much longer

Sizes = tuple[int, ...]


def is_count(found: object) -> TypeGuard[int]:
    """Return whether a value is a number of things: a whole number from 0 on that fits 64 bits, and no bool."""
    return type(found) is int and 0 <= found < MAX_INT


def count(found: object, what: str) -> int:
    """Return a number of things. Raise FormatError, which says `what`, for anything else."""
    if not is_count(found):
        raise FormatError(what)
    return found


def sizes(found: object, name: str, what: str = "shape") -> Sizes:
    """Return sizes, strides or offsets of a tensor, one for each dimension. Raise FormatError for anything else."""
    if not isinstance(found, tuple | list):
        raise FormatError(f"tensor '{name}' has a {what} that is not a list of sizes")
    if len(found) > MAX_DIMS:
        raise FormatError(f"tensor '{name}' has {len(found):,} dimensions, over the limit of {MAX_DIMS}")
    for n in found:
        if type(n) is not int or not 0 <= n < MAX_INT:  # is_count, without the call
            raise FormatError(f"tensor '{name}' has a {what} that is not a list of sizes")
    return found if type(found) is tuple else tuple(found)


def shape(found: object, name: str) -> Sizes:
    """Return the shape of a tensor. Raise FormatError where it is none, or has more elements than torch can count."""
    dims = sizes(found, name)
    if not 0 < prod(dims) < MAX_INT and max(accumulate(dims, mul), default=1) >= MAX_INT:
        # Multiplied in this order, as torch and safetensors do: behind a 0 anything goes.
        raise FormatError(f"tensor '{name}' has a shape too large for any file")
    return dims


def view(found: object, strides: object, name: str) -> tuple[Sizes, Sizes]:
    """Return the shape of a tensor and as many strides. Raise FormatError where they are none."""
    dims, steps = shape(found, name), sizes(strides, name, "stride")
    if len(dims) != len(steps):
        raise FormatError(f"tensor '{name}' has {len(dims)} sizes and {len(steps)} strides")
    return dims, steps


def number(text: str) -> int | None:
    """Return the whole number that up to MAX_DIGITS digits spell; None for any other text."""
    return int(text) if len(text) <= MAX_DIGITS and text.isascii() and text.isdigit() else None


def is_short(n: int) -> bool:
    """Return whether an integer is printed in full."""
    return n.bit_length() < SHOWN_BITS


def int_text(n: int) -> str:
    """Return an integer in digits, or how long it is where those would be hundreds."""
    return str(n) if is_short(n) else f"an integer of {n.bit_length():,} bits"
