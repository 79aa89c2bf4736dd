"""Formats that are imported when they are first used: a command pays for the one format of its file, not for all."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramctl.files.sources import Source

MayBe = Callable[[bytes, "Source"], bool]


class Later:
    """Stands for a format's module in this package; `NAME` and `SUFFIXES` are the module's own.

    Unless `may_be` is true of a file's head, the file is not of this format, and the module is not asked.
    What the module does not provide is answered by `read_only`: the format is read and not written.
    """

    def __init__(self, module: str, name: str, suffixes: tuple[str, ...], may_be: MayBe) -> None:
        self._module = f"paramctl.formats.{module}"
        self.NAME = name
        self.SUFFIXES = suffixes
        self._may_be = may_be

    def recognises(self, head: bytes, source: Source) -> bool:
        """Return whether a file is of this format."""
        return self._may_be(head, source) and bool(import_module(self._module).recognises(head, source))

    def __getattr__(self, name: str) -> Any:
        module = import_module(self._module)
        return getattr(module, name) if hasattr(module, name) else getattr(_read_only(self.NAME), name)


def _read_only(name: str) -> Any:
    from paramctl.formats.read_only import ReadOnly

    return ReadOnly(name)


def begins(*heads: bytes, at: int = 0) -> MayBe:
    """Return a test for one of these bytes at that place."""
    return lambda head, _: head.startswith(heads, at)


def called(*endings: str, begins: bytes) -> MayBe:
    """Return a test for the end of a file's name, or the start of its text."""
    return lambda head, source: source.name.endswith(endings) or head.lstrip().startswith(begins)


def holds(mark: bytes) -> MayBe:
    """Return a test for these bytes among the first."""
    return lambda head, _: mark in head


def always(head: bytes, source: Source) -> bool:
    """Return True: every file may be of this format."""
    return True
