"""Look up the handler of each opcode of a pickle, and its name, by its byte.

Reference: Lib/pickletools.py of CPython, and `reader_differences`, which lists where the programs that read pickles
differ.
"""

from __future__ import annotations

from paramctl.formats.pickles.machine import Handler
from paramctl.formats.pickles.object_opcodes import OBJECT_OPCODES
from paramctl.formats.pickles.value_opcodes import VALUE_OPCODES, unknown

_OPCODES = {**VALUE_OPCODES, **OBJECT_OPCODES}
HANDLERS: list[Handler] = [_OPCODES.get(bytes([i]), ("", unknown))[1] for i in range(256)]
NAMES: dict[int | None, str] = {code[0]: name for code, (name, _) in _OPCODES.items()}
