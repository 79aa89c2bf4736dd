"""Bound the work that one file may cause, in proportion to its own size."""

from __future__ import annotations

from paramctl.errors import FormatError

SPARE = 10_000  # steps that every file has, however small


class Budget:
    """Steps that are left for walks over the parts of a file, which may share each other without end."""

    __slots__ = ("left",)

    def __init__(self, steps: int, spare: int = SPARE) -> None:
        self.left = steps + spare

    def spend(self, steps: int) -> None:
        """Take some steps. Raise FormatError where the file has none left."""
        self.left -= steps
        if self.left < 0:
            raise FormatError("shares its parts so often that listing them would not end")
