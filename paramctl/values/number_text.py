"""Numbers as words: each value of a tensor as text, all of one width, as numpy prints them.

The rules are those numpy and torch share. Floats are in scientific notation where the largest is 1e8 or
more, the smallest below 1e-4, or one a thousand times the other. (numpy 2.4 is scientific from 1e6 in
float32 and 1e3 in float16, which hides the digits of 1234567.) Words have the digits that tell a value
from its neighbours, never more than `precision` of them behind the point. Floats of 16 bits or fewer
print as the float32 they are equal to, as in torch: 0.1 in bfloat16 is 0.1001.

The values may be too many to hold: they come in blocks that can be gone through again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

Blocks = Callable[[], Iterable["Array"]]
Speller = Callable[["Array"], list[str]]

PIECE = 1 << 12  # values whose words are held at a time

LARGE = 1e8  # floats that are scientific from here on,
SMALL = 1e-4  # below here,
RATIO = 1000  # or where the largest is more than so many times the smallest


def words(blocks: Blocks, precision: int) -> Iterator[str]:
    """Yield the values of all blocks, in order, as text of the same width: that of the widest of them."""
    pieces = _pieces(blocks)
    spell = _speller(pieces, precision)
    for piece in pieces():
        yield from spell(piece)


def plain(values: Array) -> Array:
    """`values` in a dtype that numpy itself knows; floats of 16 bits or fewer as float32, which holds them all."""
    import numpy as np

    known = values.dtype.kind in "biufc" and values.dtype.isbuiltin == 1
    return values if known and values.dtype != np.float16 else values.astype(np.float32)


def _pieces(blocks: Blocks) -> Blocks:
    """Yield the same values a few at a time, flat, in dtypes that numpy knows."""

    def pieces() -> Iterator[Array]:
        for block in blocks():
            flat = block.reshape(-1)
            for start in range(0, flat.size, PIECE):
                yield plain(flat[start : start + PIECE])

    return pieces


def _speller(pieces: Blocks, precision: int) -> Speller:
    """Return the speller of a tensor's pieces, which decide together how each is spelled."""
    first = next(iter(pieces()), None)
    match "" if first is None else first.dtype.kind:
        case "f":
            return _floats(pieces, precision).spell
        case "c":
            real = _floats(lambda: (piece.real for piece in pieces()), precision)
            imag = _floats(lambda: (piece.imag for piece in pieces()), precision, "+")
            return lambda piece: list(map(_complex, real.spell(piece.real), imag.spell(piece.imag)))
        case "b":
            return lambda piece: [" True" if one else "False" for one in piece.tolist()]
        case _:
            return _integers(pieces)


def _complex(real: str, imag: str) -> str:
    """Both parts as numpy joins them: the j before the space that pads the second."""
    digits = imag.rstrip(" ")
    return f"{real}{digits}j{imag[len(digits) :]}"


def _integers(pieces: Blocks) -> Speller:
    width = max((len(str(end)) for piece in pieces() for end in (piece.min(), piece.max())), default=0)
    return lambda piece: _formatted(piece, f"%{width}d")


def _formatted(values: Array, pattern: str) -> list[str]:
    """Return every value in the pattern, all at once: that is many times as fast as one by one."""
    return (f"{pattern}|" * values.size % tuple(values.tolist())).split("|")[:-1]


class _Range(NamedTuple):
    """The range of some floats after one look at them; `smallest` is the least except zero, or infinite."""

    low: float
    high: float
    smallest: float
    is_negative: bool  # whether any finite one has a minus sign, even a zero
    has_others: bool  # NaN or infinities
    is_below: bool  # minus infinity among them


NOTHING = _Range(float("inf"), -float("inf"), float("inf"), False, False, False)


class _Floats(NamedTuple):
    """The spelling of a tensor's floats: `digits` behind the point, in `width` characters."""

    scientific: bool
    digits: int
    width: int
    exponent: int  # digits of the longest exponent
    sign: str  # "+" where positive numbers have one too

    def spell(self, piece: Array) -> list[str]:
        """Return the text of some of the values."""
        found = _digits(piece, self.digits, self.scientific, self.sign)
        if not self.scientific:
            return [word.rstrip("0").ljust(len(word)).rjust(self.width) for word in found]
        if self.exponent > 2:
            found = [_with_exponent(word, self.exponent) for word in found]
        return [word.rjust(self.width) for word in found]


def _floats(pieces: Blocks, precision: int, sign: str = "") -> _Floats:
    seen = reduce(_wider, map(_range, pieces()))
    largest = max(abs(seen.low), abs(seen.high)) if seen.low <= seen.high else 0.0
    scientific = _is_scientific(largest, seen.smallest, next(iter(pieces())).dtype)
    digits = _most_digits(pieces, precision, scientific)
    exponent = _longest_exponent(largest, seen.smallest, digits) if scientific else 0
    left = _integer_width(pieces, seen, digits, scientific, sign) if seen.low <= seen.high else 0
    width = left + 1 + digits + (2 + exponent if scientific else 0)
    if seen.has_others:
        width = max(width, len("nan"), len("inf") + (bool(sign) or seen.is_below))
    return _Floats(scientific, digits, width, exponent, sign)


def _is_scientific(largest: float, smallest: float, dtype: np.dtype[Any]) -> bool:
    """Return whether numbers of such sizes are not to be read with all their zeros."""
    import numpy as np

    # In their own dtype: the float32 nearest to 0.0001 lies below it, and is meant to be it.
    top, least = dtype.type(largest), dtype.type(smallest)
    with np.errstate(over="ignore"):
        return bool(largest >= LARGE or least < dtype.type(SMALL) or top / least > RATIO)


def _range(piece: Array) -> _Range:
    import numpy as np

    finite = piece[np.isfinite(piece)]
    if not finite.size:
        return NOTHING._replace(has_others=True, is_below=bool((piece == -np.inf).any()))
    sizes = np.abs(finite[finite != 0])
    return _Range(
        float(finite.min()),
        float(finite.max()),
        float(sizes.min()) if sizes.size else float("inf"),
        bool(np.signbit(finite).any()),
        finite.size < piece.size,
        bool((piece == -np.inf).any()),
    )


def _wider(one: _Range, other: _Range) -> _Range:
    """Return the range of both together."""
    return _Range(
        min(one.low, other.low),
        max(one.high, other.high),
        min(one.smallest, other.smallest),
        one.is_negative or other.is_negative,
        one.has_others or other.has_others,
        one.is_below or other.is_below,
    )


def _with_exponent(word: str, digits: int) -> str:
    """Return a number with that many digits in its exponent: 1.e+05 as 1.e+005."""
    mantissa, e, exponent = word.partition("e")
    return f"{mantissa}{e}{exponent[0]}{exponent[1:].zfill(digits)}" if e else word


def _most_digits(pieces: Blocks, precision: int, scientific: bool) -> int:
    """Digits behind the point of the number that needs the most; the rest is not looked at once that is `precision`."""
    import numpy as np

    most = 0
    for piece in pieces():
        if most == precision:
            break
        finite = piece[np.isfinite(piece)]
        if not scientific and (finite == np.rint(finite)).all():
            continue
        for word in _shortest(finite, precision, scientific):
            mantissa = word.partition("e")[0].rstrip("0")
            most = max(most, len(mantissa) - mantissa.index(".") - 1)
    return most


def _longest_exponent(largest: float, smallest: float, digits: int) -> int:
    words = [f"{size:.{digits}e}" for size in (largest, smallest) if size not in (0, float("inf"))]
    return max((len(word) - word.index("e") - 2 for word in words), default=2)


def _integer_width(pieces: Blocks, seen: _Range, digits: int, scientific: bool, sign: str) -> int:
    """Characters before the point of the widest, its sign included."""
    import numpy as np

    signed = 1 if sign or seen.is_negative else 0
    if scientific:
        return 1 + signed
    ends = np.array([seen.low, seen.high], next(iter(pieces())).dtype)
    return max(1 + signed, *(word.index(".") for word in _digits(ends, digits, False, sign)))


def _digits(values: Array, digits: int, scientific: bool, sign: str = "") -> list[str]:
    """Return each value with `digits` digits behind the point, rounded to the nearest and to even between two.

    Not scientific, those in which it no longer differs from its neighbours are zeros: float32 shows no
    more than was in it.
    """
    import numpy as np

    if not np.isfinite(values).all():
        words = iter(_digits(values[np.isfinite(values)], digits, scientific, sign))
        return [next(words) if ok else f"{one:{sign}}" for ok, one in zip(np.isfinite(values), values, strict=True)]
    if _tells_apart(values, digits, scientific):
        return _formatted(values, f"%#{sign}.{digits}{'e' if scientific else 'f'}")
    if scientific:
        plus = bool(sign)
        return [np.format_float_scientific(one, digits, trim="k", sign=plus, min_digits=digits) for one in values]
    shortest = _shortest(values, digits, scientific, sign)
    return [word.ljust(word.index(".") + 1 + digits, "0") for word in shortest]


def _shortest(values: Array, digits: int, scientific: bool, sign: str = "") -> list[str]:
    """Return each finite value with the digits that tell it from its neighbours, up to `digits` behind the point."""
    import numpy as np

    if _tells_apart(values, digits, scientific):
        return _digits(values, digits, scientific, sign)
    plus = bool(sign)
    if scientific:
        return [np.format_float_scientific(one, digits, sign=plus) for one in values]
    return [
        f"{one:{sign}#.0f}" if one == np.rint(one) else np.format_float_positional(one, digits, sign=plus)
        for one in values
    ]


def _tells_apart(values: Array, digits: int, scientific: bool) -> bool:
    """Return whether neighbours of any of these finite values lie nearer than `digits` digits can say.

    Then the decimal nearest to the value, which Python knows how to find, is also the shortest.
    """
    import numpy as np

    sizes = np.abs(values)
    info = np.finfo(values.dtype)
    if scientific:
        return bool(float(info.eps) * 10.0 ** (digits + 1) <= 1 and not (sizes[sizes != 0] < info.tiny).any())
    largest = sizes.max(initial=0)
    return bool((values == np.rint(values)).all() or float(np.spacing(largest)) < 10.0**-digits)
