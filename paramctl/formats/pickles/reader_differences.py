r"""Where the programs that read pickles differ from one another, and what paramctl does there.

Four read what a checkpoint holds: `_pickle.c` of CPython ("C", behind `pickle.load`, and so behind
`torch.load(weights_only=False)`), `Lib/pickle.py` ("Python", of which dill's and other unpicklers are subclasses),
`torch/_weights_only_unpickler.py` ("torch", the default of `torch.load`), and the machine of `pickle_opcodes`, which
looks nothing up. C reads from bytes, from a file, or from a file with `peek`: three ways.

The rule. A listing takes what all of them read alike, and refuses the rest. A verdict goes on wherever C or Python
would: what a listing refuses is noted (`Machine.refuse`), not raised. Where they read different things, and both go
on, there is no verdict on either: the pickle is refused as dangerous (`DISAGREE`, `HIDDEN`).

| opcode | the readers | paramctl |
|---|---|---|
| FRAME | From bytes, C ignores frames. From a file, it drops what is left of a frame when an opcode or argument goes beyond its end (not BINBYTES and BYTEARRAY8, which go on behind it). Python raises at the end of a frame, and reads on from one that the file cuts short. torch does not know FRAME. | Reads each frame on its own. What crosses the end, a frame in a frame, one that ends behind the data, and STOP before the end (after which C leaves the file at the frame's end, Python at STOP) are refused as dangerous. |
| STOP | Marks and values may be left below; all take the topmost value. | The same. |
| PROTO | C and Python refuse protocols above 5, torch takes any. The last one counts: below 3, names of Python 2 are mapped, and from 4 on, dots in a name are attributes. | Refuses above 5. Judges each name as if it were mapped and walked, which is the most that it could mean. |
| INT | C reads with `strtol`, base 0: `010` is 8, `0x1f` is 31, blanks before it and a NUL after it end it; two characters that make 0 or 1 (`+1`, ` 0`) are a bool. Python takes `int(text, 0)`: `010` and NUL are errors, and only `00` and `01` are bools. Both take underscores, and refuse over 4,300 decimal digits. | Takes what `int(text, 0)` does, up to 4,300 characters, unless C makes it a bool. |
| LONG | As INT without the bools; C reads up to a NUL; one `L` at the end is dropped. | Takes what `int(text, 0)` does. |
| FLOAT | C takes no blanks, no underscores, and no overflow (`1e999`), and reads up to a NUL. Python takes `float(text)`. | Takes what both do. |
| LONG1, LONG4 | Of any length; `str()` of one above 4,300 digits raises. A negative length is an error. | Makes the number, and never prints one here. |
| STRING | Must be quoted up to the newline, in both; an older C cut blanks off. | The same. |
| BINSTRING | C takes the length for unsigned, Python for signed: there 2^31 and more is an error. | An error: a pickle has at most 256 MB. |
| STRING, BINSTRING, SHORT_BINSTRING | Decoded as `encoding=` says: torch.load has UTF-8, `pickle.load` ASCII, "bytes" leaves them. torch knows the last one only. | Keeps the bytes. Text that names something is taken for UTF-8, else Latin-1. |
| UNICODE, BINUNICODE and the like | C and Python decode alike. torch takes a BINUNICODE that the file cuts short, and then fails. | Refuses what is cut short. |
| BYTEARRAY8, BINBYTES8 | C allocates what is announced, then reads. | Looks at what is left first. |
| NEXT_BUFFER | An error where no `buffers=` are given, as torch.load gives none. | Refused. |
| READONLY_BUFFER | Makes a view of what is on the stack, without any buffers. | Listing refuses, verdict goes on. |
| POP | On a MARK, both take the MARK off; C keeps the marks beside the stack, Python a stack for each. | The same. |
| TUPLE1, TUPLE2, TUPLE3, DUP, PUT, … | Neither reaches below the last MARK. | The same. |
| PUT, LONG_BINPUT | A negative index is an error in all. C allocates twice the index, so that a huge one ends memory; from 2^63 on it is an error; Python has a dict. C reads the digits up to a NUL. | Refuses negative ones; keeps a dict. |
| GET | Decimal, with zeros, blanks or underscores. | The same: `int(text)`, not `int(text, 0)`. |
| MEMOIZE | The index is the number of entries, not the highest plus 1, in C and Python. | The same. |
| APPEND | C calls `extend` if the object has one, Python `append`, torch takes lists only. | Lists only; a verdict counts both as called. |
| APPENDS | C and Python call `extend`, or else `append`. Without items, C does nothing, whatever is on the stack; Python looks the method up. | As C. |
| SETITEMS, ADDITEMS | Without items, C does nothing, whatever is on the stack. Python needs `add`, torch a dict. | As C. Items that are set on a tensor are refused by the listing. |
| SETITEM, SETITEMS, DICT | A key without a value is an error: Python and torch set the others first. On other objects than dicts, keys need not be hashable. | An error; the listing takes dicts and objects that a call made. |
| GLOBAL, INST | UTF-8 and ASCII. An empty name is an error in C. torch looks the whole path up in a table. | Names that are not UTF-8 are taken for Latin-1. |
| STACK_GLOBAL | Needs exact `str`, which may also be what a call returned, or a text of a module. torch does not know it. | The listing takes text that the file spells out; the verdict on a name that is computed is "dangerous". |
| EXT1, EXT2, EXT4 | Look up what the program registered with copyreg (as a pickle can); an error otherwise. | Listing refuses, verdict: dangerous. |
| REDUCE | C needs a tuple or an object of a subclass, which a call may have made; Python and torch take anything that can be iterated. | The listing takes tuples that the file spells out; the verdict on others is "dangerous". |
| NEWOBJ, NEWOBJ_EX | C needs a type, and calls its slot; Python calls `cls.__new__`, which an object may have been given; torch a class of its table. The keywords may be any dict. | As REDUCE. |
| OBJ, INST | A class without arguments is made by `__new__`, unless it has `__getinitargs__`; anything else is called. | Both count as made. |
| BUILD | `__setstate__`, which may have been planted in the object. C wants a dict (or a pair of them) and does nothing with None; Python does nothing with what is false. Any object will do, classes and modules too. torch has a list of classes. | The listing takes objects that a call made; the verdict follows what was planted, and calls a change of a class or module dangerous. |
| PERSID, BINPERSID | PERSID is ASCII. What the ids mean, the caller says. | The ids are kept. |
"""  # noqa: E501  (a table has long lines)

from __future__ import annotations

import math

MAX_DIGITS = 4300  # of a number that is written as text, as in CPython
DISAGREE = "do not load it: programs that read pickles do not agree on what it holds"
HIDDEN = "do not load it: it hides what it does from whoever looks into it"


def whole_number(text: bytes) -> int:
    """Return the number of INT or LONG. Raises ValueError where C and Python do not read the same."""
    value = int(text, 0)
    if len(text) == 2 and value in (0, 1):
        raise ValueError("C takes it for a bool")
    return value


def decimal(text: bytes) -> float:
    """Return the number of FLOAT. Raises ValueError where C and Python do not read the same."""
    value = float(text)
    if text.strip() != text or b"_" in text or (math.isinf(value) and b"n" not in text.lower()):
        raise ValueError("C refuses it")
    return value


def memo_index(text: bytes) -> tuple[int, bool]:
    """Return the index of GET or PUT as C reads it, and whether Python does the same. Raises ValueError for none."""
    digits, nul, _ = text.partition(b"\0")
    digits = digits.strip()
    index = int(digits[: 3 * MAX_DIGITS])  # int() refuses more digits, unless a program allows any number of them
    return index, not nul and index < 1 << 63 and len(digits) <= MAX_DIGITS
