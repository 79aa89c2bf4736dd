"""What a pickle names and calls, in the order in which it does, hidden results included.

It is the machine of `pickles`, which imports, looks up and calls nothing, with notes taken as it goes: what a
call is given is looked at when it is made, because the pickle may change it afterwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.formats.pickles import reader
from paramctl.formats.pickles.fx_source import MAX_SOURCE, is_plain_forward
from paramctl.formats.pickles.known_names import FROM_TYPE, JAGGED, REBUILDS, canonical, is_dtype
from paramctl.formats.pickles.machine import Handler, Machine
from paramctl.formats.pickles.nodes import Call, Dict, Global, Persistent, PyString, class_of
from paramctl.formats.pickles.object_opcodes import decoded
from paramctl.formats.pickles.opcodes import HANDLERS
from paramctl.formats.pickles.reader_differences import DISAGREE

RESULT = "(…)"  # in place of a name: what a call returns
MAX_PATH = 200  # characters of a path that getattr() calls reach
MAX_ARGUMENTS = 12  # that a function which rebuilds a tensor takes
MAX_RELAYS = 8  # functions that call a function that calls a function
MAX_ATTRIBUTES = 200  # of a graph module
MAX_SOURCES = 4 * MAX_SOURCE  # characters of all graph modules of a pickle

HOOKS = {  # called by an opcode; `append` or `extend` by APPEND, depending on who reads
    "a": ("extend", "append"),
    "e": ("extend", "append"),
    "\x90": ("add",),
    "b": ("__setstate__",),
    "s": (),
    "u": (),
}
PLANTED = frozenset(name for names in HOOKS.values() for name in names)
CHANGES = "changes a class, function or module for the whole program"


class Name:
    """A class, function or module that a pickle names, or reaches from one it names."""

    __slots__ = ("called", "canonical", "excused", "harm", "made", "module", "note", "path", "walk")

    def __init__(self, module: str, walk: str) -> None:
        self.module = module
        self.walk = walk  # what is looked up in the module; attributes of attributes with dots between
        self.path = f"{module}{walk}" if walk == RESULT else f"{module}.{walk}"
        self.canonical = canonical(self.path)
        self.called = False
        self.made = False  # as a class of which an object is made
        self.excused = False  # what it is here for is plain, and its effect is noted elsewhere
        self.harm = ""  # what this very use of it does, where that makes it dangerous
        self.note = ""  # what this very use of it does, where it does not


class _Planted(NamedTuple):
    """The names that a state would put in place of those that an opcode calls, and how far the state was read."""

    state: Any
    read: int
    found: dict[str, Any]


class Trace(Machine):
    """A machine that takes notes of every name."""

    __slots__ = ("bound", "graphs", "names", "planted", "reached", "refusals", "sources", "states")

    def __init__(self, data: bytes, offset: int) -> None:
        super().__init__(data, offset)
        self.names: dict[tuple[str, str], Name] = {}
        self.reached: dict[int, tuple[Call, Name]] = {}  # the results of getattr() on a name
        self.planted: dict[int, tuple[Call, dict[str, Any]]] = {}
        self.states: dict[int, _Planted] = {}
        self.graphs: dict[tuple[str, str], bool] = {}
        self.sources = 0
        self.refusals = 0  # of what a listing refuses and CPython's unpickler carries out

    def refuse(self, what: str) -> None:
        self.refusals += 1

    def named(self, module: str, name: str) -> Global:
        self.note(module, name)
        return super().named(module, name)

    def note(self, module: str, walk: str) -> Name:
        """Return the notes on a name, which begin when it first appears."""
        found = self.names.get((module, walk))
        if found is None:
            found = self.names[module, walk] = Name(module, walk)
        return found

    def static(self, node: Any) -> Name | None:
        """Return the name that a node stands for, if it is one or was reached from one by getattr(); else None."""
        name = class_of(node)
        if name is not None:
            return self.note(name.module, name.name)
        found = self.reached.get(id(node))
        return found[1] if found else None

    def calls(self, func: Any, args: tuple[Any, ...], made: bool, call: Call | None = None) -> None:
        """Note that a function is called, and what that does to what it is given."""
        for _ in range(MAX_RELAYS):
            name = self.static(func)
            if name is None:
                self.unknown(func)
                return
            name.called = True
            name.made |= made
            relay = self.special(name, args, call)
            if relay is None:
                return
            func, args, made = relay
            call = None
        self.unknown(func)

    def unknown(self, func: Any, harm: str = "calls what another call returns") -> None:
        """Note that the result of a call is called, or does other harm."""
        inner = self.static(func.func) if isinstance(func, Call) else None
        name = self.note(inner.path if inner else RESULT, RESULT)
        name.called = True
        name.harm = harm

    def computes(self, made: Call) -> None:
        """Note that a name is looked up which is not written in the file, but computed."""
        for part in made.args:
            name = self.static(part)
            if name is not None:
                name.harm = "holds the name of what is looked up next"
            elif not isinstance(part, str | PyString):
                self.unknown(part, "computes the name of what is looked up next")

    def special(self, name: Name, args: tuple[Any, ...], call: Call | None) -> tuple[Any, tuple[Any, ...], bool] | None:
        """Note the special uses of some functions. Returns the call that this one makes in turn, or None."""
        path = name.canonical
        if path in REBUILDS:
            self.excuse_dtypes(args)
        elif path == "builtins.getattr":
            self.gets(name, args, call)
        elif path == "builtins.type" and len(args) != 1:
            name.harm = "makes a new class of what the file holds"
        elif path == "torch.fx.graph_module.reduce_graph_module":
            self.compiles(name, args)
        elif path in _MAKERS:
            name.excused = True
            return (args[0], (), True) if args else None
        elif path in FROM_TYPE:
            return self.from_type(name, args)
        return None

    def excuse_dtypes(self, args: tuple[Any, ...]) -> None:
        """Note that the names of dtypes among a tensor's arguments are harmless."""
        for node in args[:MAX_ARGUMENTS]:
            if isinstance(node, Global) and is_dtype(node.full):
                self.note(node.module, node.name).excused = True

    def from_type(self, name: Name, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], bool] | None:
        """`_rebuild_from_type_v2(func, type, args, state)` calls func, whatever that is."""
        func = self.static(args[0]) if args else None
        if func is None or func.canonical not in (*REBUILDS, JAGGED):
            name.harm = "calls the functions it is given"
        if not args:
            return None
        return args[0], args[2] if len(args) > 2 and isinstance(args[2], tuple) else (), False

    def gets(self, name: Name, args: tuple[Any, ...], call: Call | None) -> None:
        """getattr() of a name and a text is the path it reaches; of anything else it may reach everything."""
        attribute = _text(args[1]) if len(args) in (2, 3) else None
        start = self.static(args[0]) if args else None
        base = start or (self.class_of(args[0]) if args else None)
        if base is None or attribute is None or call is None or len(base.path) + len(attribute) > MAX_PATH:
            name.harm = "reaches any attribute of any object"
            return
        name.excused = True
        reached = self.note(base.module, f"{base.walk}.{attribute}")
        if start is not None:
            self.reached[id(call)] = call, reached

    def class_of(self, node: Any) -> Name | None:
        """Return the class of an object, if the call that made it names one."""
        name = self.static(node.func) if isinstance(node, Call) else None
        if name is None or len(name.path) > MAX_PATH:
            return None
        return name if node.how != "reduce" or is_class(name) else None

    def compiles(self, name: Name, args: tuple[Any, ...]) -> None:
        """Judge the source of a graph module, as it is now."""
        body, imports = args if len(args) == 2 else (None, None)
        attributes = body if isinstance(body, Dict) and len(body.pairs) <= MAX_ATTRIBUTES else Dict()
        tracer = attributes.get("_tracer_cls")
        if tracer is not None:
            self.calls(tracer, (), True)
        code = _text(attributes.get("_code") or attributes.get("code"))
        source = (_text(imports) or "", code or "")
        if source not in self.graphs:
            self.sources += len(source[0]) + len(source[1])
            self.graphs[source] = bool(code) and self.sources <= MAX_SOURCES and is_plain_forward("".join(source))
        if self.graphs[source]:
            name.note = "compiles and runs Python source that the file holds: it is imports and one plain forward()"
        else:
            name.harm = "compiles and runs Python source that the file holds, and that is more than a plain forward()"

    def builds(self, target: Any, state: Any) -> None:
        """Note what BUILD plants in an object, to be called by a later opcode."""
        for part in state[:2] if isinstance(state, tuple) else (state,):
            found = self.hooks(part)
            if found:
                _, planted = self.planted.setdefault(id(target), (target, {}))
                planted.update(found)

    def hooks(self, state: Any) -> dict[str, Any]:
        """Return what a state holds under the names that opcodes call: anything, if a call makes the state.

        Its pairs are read once, however often it is used.
        """
        if isinstance(state, Call | Global | Persistent):
            return dict.fromkeys(PLANTED, state)
        pairs = state.pairs if isinstance(state, Dict) else ()
        before = self.states.get(id(state))
        read, found = (before.read, before.found) if before else (0, {})
        if len(pairs) > read:
            for i in range(read, len(pairs)):
                key = _text(pairs[i][0])
                if key in PLANTED:
                    found = {**found, str(key): pairs[i][1]}
            self.states[id(state)] = _Planted(state, len(pairs), found)
        return found

    def triggers(self, opcode: str) -> None:
        """Note the call of a function that was planted in an object."""
        planted = self.planted.get(id(self.stack[-1])) if self.planted else None
        for hook in HOOKS[opcode] if planted else ():
            if planted and hook in planted[1]:
                self.calls(planted[1][hook], (), False)

    def changes(self, target: Any) -> None:
        """Note that something is changed, if it is not the pickle's own."""
        name = self.static(target)
        if name is not None:
            name.called, name.harm = True, CHANGES


_NO_ITEM = object()  # what nothing is set, appended or added to
_MAKERS = ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__")


def run(trace: Trace) -> None:
    """Run a pickle to its end. Raises FormatError where it is malformed; the notes up to there stay."""
    reader.run(trace, _TRACING)


def is_class(name: Name) -> bool:
    """Return whether a name is used as a class, or looks like one."""
    return name.made or name.walk.rpartition(".")[2].lstrip("_")[:1].isupper()


def _text(node: object) -> str | None:
    """Return the text of a node; of a Python 2 string, which is decoded each time, only if it is short."""
    if isinstance(node, PyString):
        return node.text if len(node.raw) <= MAX_PATH else None
    return node if isinstance(node, str) else None


def _tracing(trace: Machine) -> Trace:
    assert isinstance(trace, Trace)
    return trace


def _calling(handler: Handler, made: bool) -> Handler:
    def call(machine: Machine) -> None:
        trace = _tracing(machine)
        before = trace.refusals
        handler(machine)
        made_now = trace.stack[-1]
        trace.calls(made_now.func, made_now.args, made, made_now)
        if trace.refusals != before and (name := trace.static(made_now.func)):
            name.harm = "is called with what the file does not spell out"

    return call


def _mutating(handler: Handler, opcode: str) -> Handler:
    def mutate(machine: Machine) -> None:
        trace = _tracing(machine)
        item = trace.stack[-1] if trace.stack else _NO_ITEM
        handler(machine)
        target = trace.stack[-1]
        trace.triggers(opcode)
        if item is not _NO_ITEM and not isinstance(target, list | Dict):
            trace.changes(target)
        if opcode == "b":
            trace.builds(target, item)

    return mutate


def _framing(handler: Handler) -> Handler:
    def frame(machine: Machine) -> None:
        try:
            handler(machine)
        except FormatError as error:  # one that the end of the file cuts short is read by some, and not by others
            error.hint = DISAGREE
            raise

    return frame


def _naming(handler: Handler) -> Handler:
    def name(machine: Machine) -> None:
        try:
            handler(machine)
        except FormatError:  # where the file ends inside a line, pickle.py takes it, but for its last letter
            lines = machine.data[machine.opcode_at + 1 :].split(b"\n", 2)
            if len(lines) < 3:
                lines[-1] = lines[-1][:-1]
                machine.named(decoded(lines[0]), decoded(lines[1]) if len(lines) > 1 else "")
            raise

    return name


def _looking_up(handler: Handler) -> Handler:
    def look_up(machine: Machine) -> None:
        handler(machine)
        trace = _tracing(machine)
        if type(trace.stack[-1]) is Call:
            trace.computes(trace.stack[-1])

    return look_up


def _handlers() -> list[Handler]:
    table: list[Handler] = list(HANDLERS)
    for opcode, made in ((b"R", False), (b"\x81", True), (b"\x92", True), (b"o", False), (b"i", False)):
        table[opcode[0]] = _calling(HANDLERS[opcode[0]], made)
    for code in b"ci":
        table[code] = _naming(table[code])
    for name in HOOKS:
        table[ord(name)] = _mutating(HANDLERS[ord(name)], name)
    table[0x93] = _looking_up(HANDLERS[0x93])
    table[0x95] = _framing(HANDLERS[0x95])
    return table


_TRACING = _handlers()
