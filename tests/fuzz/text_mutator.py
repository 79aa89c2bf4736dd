"""Change source code by lines and words."""

from __future__ import annotations

from random import Random

from fuzz import values


def mutate(data: bytes, rng: Random, other: bytes) -> bytes:
    """Return source code with lines or words moved, missing or new."""
    if rng.random() < 0.5:
        lines = data.splitlines(keepends=True)
        values.rearranged(lines, rng, other.splitlines(keepends=True) or lines, longest=3)
        return b"".join(lines)
    words = data.split(b" ")
    at = rng.randrange(len(words))
    words[at] = rng.choice((*values.WORDS, *values.TEXTS)).encode("utf-8", "surrogatepass")
    return b" ".join(words)
