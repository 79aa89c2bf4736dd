"""The first bytes of a tar archive, by the rules of Python's tarfile: torch.load asks it before its old format.

A header counts by its checksum alone, of signed or unsigned bytes, and by numbers in all its number fields; no magic is
asked for. A number is octal, as Python's `int` reads it, or in base 256.
"""

from __future__ import annotations

BLOCK = 512
SUM = slice(148, 156)
SIZE = slice(124, 136)
NUMBERS = (slice(100, 108), slice(108, 116), slice(116, 124), SIZE, slice(136, 148), slice(329, 337), slice(337, 345))


def recognises(block: bytes) -> bool:
    """Return whether tarfile takes a block for the header of a member."""
    if len(block) < BLOCK or (said := number(block[SUM])) is None:
        return False
    block = block[:BLOCK]
    others = block[:148] + b" " * 8 + block[156:]
    total = sum(others)
    if said != total and said != total - 256 * sum(byte > 127 for byte in others):
        return False
    return any(block) and all(number(block[field]) is not None for field in NUMBERS)


def number(field: bytes) -> int | None:
    """Return the number in a field, as tarfile reads it; None where there is none."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    try:
        return int(field.split(b"\0", 1)[0].decode("ascii").strip() or "0", 8)
    except ValueError:
        return None
