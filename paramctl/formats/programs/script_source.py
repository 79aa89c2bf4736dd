"""What the code in a TorchScript archive says of its classes, read as text line by line; none of it is compiled.

Reference: torch/csrc/jit/serialization/python_print.cpp, which writes one statement a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from paramctl.errors import FormatError
from paramctl.formats.containers.zips import Archive
from paramctl.formats.pickles.nodes import Global
from paramctl.formats.pytorch.archives import pickle_limit

MAX_CODE = 64 << 20  # bytes of all files of code together, inflated
ROOT = "__torch__"  # all classes lie in it
_CLASS = re.compile(r"class ([^\s(:]+)(?:\(([^)]*)\))?:")
_NAMES = re.compile(r"  __(parameters|buffers)__ = \[(.*)\]")
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)",? ?')
_FINAL = re.compile(r"  ([^\s:]+) : Final\[[^=]*\] = (.*)")
_NUMBERS = re.compile(r"\(((?:-?[0-9]{1,18}, ?)*(?:-?[0-9]{1,18})?)\)")
_ESCAPE = re.compile(r"\\([0-7]{3}|.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "b": "\b"}


class ScriptClass(NamedTuple):
    """A class: its base, the attributes that are parameters and buffers, and its constants.

    `buffers` is None where torch was too old to tell them from other tensors: until 1.5 each tensor was one.
    """

    base: str
    parameters: frozenset[str] = frozenset()
    buffers: frozenset[str] | None = None
    constants: Mapping[str, object] = {}

    @property
    def is_module(self) -> bool:
        return self.base == "Module"


class Code:
    """The classes of an archive, each file of code read when one of its classes is asked for."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        self._archive = archive
        self._prefix = prefix
        self._files: dict[str, dict[str, ScriptClass]] = {}
        self._left = MAX_CODE

    def find(self, name: Global) -> ScriptClass | None:
        """Return the class of that name, or None if the archive has no code for it."""
        if name.module not in self._files:
            self._files[name.module] = self._read(name.module)
        return self._files[name.module].get(name.name)

    def _read(self, module: str) -> dict[str, ScriptClass]:
        record = self._archive.find(f"{self._prefix}code/{module.replace('.', '/')}.py")
        if record is None:
            return {}
        self._left -= record.nbytes
        if self._left < 0:
            raise FormatError(f"has more code than {MAX_CODE:,} bytes")
        return classes(self._archive.read(record, pickle_limit(record)).decode("utf-8", "replace"))


def is_script(node: object) -> bool:
    """Return whether a node names a class that is defined in an archive's own code."""
    return isinstance(node, Global) and (node.module == ROOT or node.module.startswith(f"{ROOT}."))


def classes(text: str) -> dict[str, ScriptClass]:
    """Return the classes in one file of code, by their names in it."""
    found: dict[str, ScriptClass] = {}
    name = ""
    for line in text.split("\n"):
        if line.startswith("class "):
            match = _CLASS.match(line)
            name = match[1] if match else ""
            if match:
                found[name] = ScriptClass((match[2] or "").strip(), constants={})
        elif line.startswith("  def "):
            name = ""  # what follows are statements
        elif name and line.startswith("  "):
            found[name] = _with_line(found[name], line)
    return found


def _with_line(known: ScriptClass, line: str) -> ScriptClass:
    """Return a class with the facts in one line of its body added."""
    if match := _NAMES.match(line):
        names = frozenset(_names(match[2]))
        return known._replace(parameters=names) if match[1] == "parameters" else known._replace(buffers=names)
    if (match := _FINAL.match(line)) and (value := _constant(match[2])) is not None:
        assert isinstance(known.constants, dict)
        known.constants[match[1]] = value
    return known


def _names(text: str) -> Iterator[str]:
    """Yield the texts in a list one by one; nothing if it is not a list."""
    at = 0
    while match := _NAME.match(text, at):
        yield _unescaped(match[1])
        at = match.end()


def _constant(text: str) -> object:
    """Return a number, a bool, a text or a tuple of integers; None for any other expression."""
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if match := _NUMBERS.fullmatch(text):
        return tuple(int(number) for number in match[1].split(",") if number.strip())
    if match := _NAME.fullmatch(text):
        return _unescaped(match[1])
    return _number(text)


def _number(text: str) -> float | None:
    try:
        return float(text) if len(text) < 40 else None
    except ValueError:
        return None


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1], 8)) if m[1].isdigit() else _ESCAPES.get(m[1], m[1]), text)
