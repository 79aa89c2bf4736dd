"""Whether `torch.load(weights_only=True)` would take a pickle, and why not; torch is not asked.

Reference: torch/_weights_only_unpickler.py of torch 2.13, which knows fewer opcodes than pickle has and looks
names up in a table. Only what a pickle asks for is judged: values that make torch fail later are not foreseen.
"""

from __future__ import annotations

import pickle as opcodes
from collections.abc import Callable
from typing import Any

from paramctl.formats.pickles import reader
from paramctl.formats.pickles.known_names import DTYPES, FROM_TYPE, QSCHEMES, REBUILDS, STORAGES, TENSORS, renamed
from paramctl.formats.pickles.machine import Handler, Machine
from paramctl.formats.pickles.nodes import Call, Dict, Global, PyString
from paramctl.formats.pickles.opcodes import HANDLERS, NAMES

_LAYOUT, _ENCODE, _TYPED = "torch.serialization._get_layout", "_codecs.encode", "torch._tensor._rebuild_from_type_v2"
_ONLY_OURS = (
    "torch.float4_e2m1fn", "torch.float6_e2m3fn", "torch.float6_e3m2fn",
    "torch._utils._rebuild_sparse_csr_tensor", "torch._utils._rebuild_xla_tensor",
)  # fmt: skip
_CLASSES = (
    "builtins.bytearray", "builtins.complex", "builtins.set", "collections.Counter", "collections.OrderedDict",
    "torch.Size", "torch.device", "torch.nn.parameter.Parameter",
)  # fmt: skip
ALLOWED = (DTYPES | QSCHEMES | STORAGES | TENSORS | REBUILDS | {*_CLASSES, _LAYOUT, _ENCODE, _TYPED}) - {*_ONLY_OURS}
ADDED = frozenset(  # what `import torch` itself adds to the table
    f"torch.{name}"
    for name in (
        "nested._internal.nested_tensor.NestedTensor",
        "nested._internal.nested_tensor._rebuild_njt",
        "distributed._mesh_layout._FlatLayout",
        "distributed._mesh_layout._MeshLayout",
    )
)
FORMATS_REFUSED = {  # whatever their pickles hold
    "torch-tar": "it is a tar archive, and torch takes none of these",
    "torchscript": "it is a TorchScript archive, and torch takes none of these",
    "torchscript-json": "it is a TorchScript archive of torch before 1.4, and today's torch takes none of these at all",
}
NEVER = ("sys", "os", "posix", "nt")  # modules of which nothing can be allowed

_KNOWN_OPCODES = b"".join((
    opcodes.GLOBAL, opcodes.NEWOBJ, opcodes.REDUCE, opcodes.BUILD, opcodes.APPEND, opcodes.APPENDS, opcodes.SETITEM,
    opcodes.SETITEMS, opcodes.MARK, opcodes.TUPLE, opcodes.TUPLE1, opcodes.TUPLE2, opcodes.TUPLE3, opcodes.NONE,
    opcodes.NEWFALSE, opcodes.NEWTRUE, opcodes.EMPTY_TUPLE, opcodes.EMPTY_LIST, opcodes.EMPTY_DICT, opcodes.EMPTY_SET,
    opcodes.BININT, opcodes.BININT1, opcodes.BININT2, opcodes.BINFLOAT, opcodes.BINUNICODE, opcodes.SHORT_BINSTRING,
    opcodes.BINPERSID, opcodes.BINGET, opcodes.LONG_BINGET, opcodes.BINPUT, opcodes.LONG_BINPUT, opcodes.LONG1,
    opcodes.PROTO, opcodes.STOP,
))  # fmt: skip

_TABLES = ("dict", "collections.OrderedDict", "collections.Counter")
_BUILT = ("torch.Tensor", "torch.nn.parameter.Parameter", "collections.OrderedDict", "collections.Counter")
_NOT_CALLABLE = (DTYPES | QSCHEMES | STORAGES) - {"torch.storage.TypedStorage", "torch.storage.UntypedStorage"}
_NOT_CLASSES = _NOT_CALLABLE | REBUILDS | {_LAYOUT, _ENCODE, _TYPED}


def refusal(data: bytes, offset: int = 0) -> str:
    """Why torch would refuse: the first reason, and all globals where that is one. Empty where it would not."""
    machine = _Loader(data, offset)
    reader.run(machine, _HANDLERS)
    if machine.reason:
        return machine.reason
    if not machine.refused:
        return ""
    names = list(machine.refused)
    return f"{len(names):,} global{'s' if len(names) > 1 else ''}: {', '.join(names)}"


class _Loader(Machine):
    """A machine that notes what torch's would not do."""

    __slots__ = ("reason", "refused")

    def __init__(self, data: bytes, offset: int) -> None:
        super().__init__(data, offset)
        self.reason = ""
        self.refused: dict[str, None] = {}

    def named(self, module: str, name: str) -> Global:
        found = self.globals.get((module, name))
        if found is None:
            found = super().named(module, name)
            path = renamed(found.full)
            if not self.reason and (module in NEVER or not (path in ALLOWED or path in ADDED)):
                self.refused[path] = None
        return found

    def refuse(self, what: str) -> None:
        self.note_reason(f"it {what}")

    def note_reason(self, why: str) -> None:
        """Note a reason that is no global, if it is the first of all."""
        if not self.reason and not self.refused:
            self.reason = f"{why} (byte {self.base + self.opcode_at:,})"


def _allowed(node: Any) -> str:
    """Return the name of an object that is in torch's table, or ""."""
    path = renamed(node.full) if isinstance(node, Global) else ""
    return path if path in ALLOWED or path in ADDED else ""


def _class(node: Any) -> str:
    """Return the class that a value would have when torch loads it."""
    if isinstance(node, Dict):
        return "dict"
    if not isinstance(node, Call):
        return type(node).__name__
    path = _allowed(node.func)
    if path in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return "torch.nn.parameter.Parameter"
    if path in FROM_TYPE:
        return _allowed(node.args[1]) if len(node.args) > 1 else ""
    if path in REBUILDS or path in TENSORS:
        return "torch.Tensor"
    return path


def _of_what(name: str) -> str:
    return f"a {name}" if name else "an object that no allowed class or function makes"


def _check_reduce(m: _Loader) -> None:
    path = _allowed(m.stack[-2])
    if not path or path in _NOT_CALLABLE:
        m.note_reason(f"it calls {path or 'what is no allowed global'}")


def _check_newobj(m: _Loader) -> None:
    path = _allowed(m.stack[-2])
    if not path or path in _NOT_CLASSES:
        m.note_reason(f"it makes an object of {path or 'what is no allowed class'}")


def _check_build(m: _Loader) -> None:
    name = _class(m.stack[-2])
    if name not in _BUILT:
        m.note_reason(f"it sets the state of {_of_what(name)}")


def _check_append(m: _Loader, target: Any) -> None:
    if type(target) is not list:
        m.note_reason(f"it appends to {_of_what(_class(target))}")


def _check_items(m: _Loader, target: Any) -> None:
    name = _class(target)
    if name not in _TABLES:
        m.note_reason(f"it sets items of {_of_what(name)}")


def _check_persistent(m: _Loader) -> None:
    pid = m.stack[-1]
    if isinstance(pid, tuple) and pid:
        kind = pid[0].text if isinstance(pid[0], PyString) else pid[0]
        if kind != "storage":
            m.note_reason("it refers to something outside that is no storage")
    elif type(pid) is not int:
        m.note_reason("it refers to something outside by what is no tuple")


def _check_text(m: _Loader) -> None:
    size = m.data[m.at]
    try:
        m.data[m.at + 1 : m.at + 1 + size].decode("utf-8")
    except UnicodeDecodeError:
        m.note_reason("it has text that is not UTF-8")


def _under_mark(check: Callable[[_Loader, Any], None]) -> Callable[[_Loader], None]:
    return lambda m: check(m, m.marks[-1][-1]) if m.marks else None


_CHECKS: dict[bytes, Callable[[_Loader], None]] = {
    opcodes.REDUCE: _check_reduce,
    opcodes.NEWOBJ: _check_newobj,
    opcodes.BUILD: _check_build,
    opcodes.APPEND: lambda m: _check_append(m, m.stack[-2]),
    opcodes.APPENDS: _under_mark(_check_append),
    opcodes.SETITEM: lambda m: _check_items(m, m.stack[-3]),
    opcodes.SETITEMS: _under_mark(_check_items),
    opcodes.BINPERSID: _check_persistent,
    opcodes.SHORT_BINSTRING: _check_text,
}


def _unknown(m: _Loader) -> None:
    m.note_reason(f"opcode {NAMES[m.data[m.opcode_at]]}, which torch does not read here")


def _checked(handler: Handler, check: Callable[[_Loader], None]) -> Handler:
    def handle(machine: Machine) -> None:
        assert isinstance(machine, _Loader)
        check(machine)
        handler(machine)

    return handle


def _handlers() -> list[Handler]:
    table: list[Handler] = list(HANDLERS)
    for code in NAMES:
        if code is not None and code not in _KNOWN_OPCODES:
            table[code] = _checked(HANDLERS[code], _unknown)
    for opcode, check in _CHECKS.items():
        table[opcode[0]] = _checked(HANDLERS[opcode[0]], check)
    return table


_HANDLERS = _handlers()
