"""The object that torch.save wrote, walked: state_dicts, training checkpoints and whole modules as entries.

The walk never recurses, follows no cycle, and is bounded by the size of the pickle, however often its
parts are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.formats.pickles.nodes import ARGS, Call, Dict, FrozenSet, Global, Persistent, PyString, Set, describe
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.pytorch.layers import describe_layer
from paramctl.formats.pytorch.tensors import Place, Remembered, Step, Storages, is_tensor, read_tensor
from paramctl.model.budget import Budget
from paramctl.model.checkpoint import Entry, Kind, Leaf, Module
from paramctl.model.keys import Found, InTuple, Keys, Position, path_of
from paramctl.model.shapes import int_text, is_short

MAX_DEPTH = 500  # containers within containers; a real model stays under 50
PLAIN_ITEMS = 10_000  # elements of a list of numbers that are listed as one value
WALKED = 4  # things that are looked at for each opcode of a pickle: some are reached on several paths
WRITTEN = 16  # characters of paths and texts for each byte of it, for the same reason
ANY_TEXT = 1 << 22  # characters of them that any file may have
SEARCHED = 20  # params, and values of each, among which an optimizer's moments are looked for


class Listing(NamedTuple):
    """The entries of a pickled object in order, and the class of each layer by path."""

    entries: tuple[Entry, ...]
    modules: dict[str, Module]


class _Frame(NamedTuple):
    """A container that is being walked."""

    children: Iterator[tuple[str, object, Step, int, Kind]]
    path: str
    named: bool
    module: Step | None
    identity: int


def list_object(pickle: Pickle, storages: Storages) -> Listing:
    """List every tensor and scalar of a pickled object. Raises FormatError if the walk finds no end."""
    return Walk(pickle, storages).run()


def keys_in(pickle: Pickle, storages: Storages) -> Mapping[str, Keys]:
    """Return the keys that lead to each tensor and scalar of a pickled object, found when they are asked for.

    A module counts as one container, and what is in it goes by its name there.
    """

    def find() -> Mapping[str, Keys]:
        walk = _KeyWalk(pickle, storages)
        walk.run()
        return walk.keys

    return Found(find)


class Walk:
    """The entries of one pickled object; a subclass may know more containers."""

    def __init__(self, pickle: Pickle, storages: Storages) -> None:
        self.storages = Remembered(storages)
        self.root = pickle.root
        self.budget = Budget(WALKED * pickle.opcodes)
        self.text = Budget(WRITTEN * pickle.end, ANY_TEXT)
        self.entries: list[Entry] = []
        self.modules: dict[str, Module] = {}
        self.open: set[int] = set()
        self.frames: list[_Frame] = []
        self.plain: dict[int, tuple[object, int]] = {}
        self.marks: dict[int, frozenset[str]] = {}
        self.states: dict[int, State | None] = {}
        self.objects: dict[int, Leaf] = {}  # what is listed of each object that holds nothing
        self.layers: dict[int, Module] = {}

    def run(self) -> Listing:
        self.visit("", False, self.root, None, 0, "tensor", None)
        while self.frames:
            frame = self.frames[-1]
            for name, node, step, position, kind in frame.children:
                path = f"{frame.path}.{name}" if frame.named else name
                if self.visit(path, True, node, step, position, kind, frame.module):
                    break
            else:
                self.open.discard(frame.identity)
                self.frames.pop()
        return Listing(tuple(self.entries), self.modules)

    def visit(
        self, path: str, named: bool, node: object, step: Step | None, position: int, kind: Kind, module: Step | None
    ) -> bool:
        """List a leaf, or open a container and say so."""
        self.text.left -= len(path)  # without the call: most of a file are tensors
        if self.text.left < 0:
            self.text.spend(0)
        if self.objects and id(node) in self.objects:
            self.budget.spend(1)
            self.entries.append(self.objects[id(node)]._replace(path=path))
            return False
        self.budget.left -= _size(node)
        if self.budget.left < 0:
            self.budget.spend(0)
        if type(node) is Call and is_tensor(node):
            self.entries.append(read_tensor(Place(path, kind, node, step, position, module), self.storages))
            return False
        if id(node) in self.open:
            self.entries.append(Leaf(path, "(contains itself)", True))
            return False
        children, owner = self.children(node, path, step, position, kind)
        if children is None:
            leaf = self.leaf(path, node)
            if leaf.is_object:
                self.objects[id(node)] = leaf
            self.entries.append(leaf)
            return False
        if len(self.frames) >= MAX_DEPTH:
            raise FormatError(f"nests deeper than {MAX_DEPTH} containers")
        self.open.add(id(node))
        self.frames.append(_Frame(children, path, named, owner or module if owner else None, id(node)))
        return True

    def children(
        self, node: object, path: str, step: Step | None, position: int, kind: Kind
    ) -> tuple[Iterator[tuple[str, object, Step, int, Kind]] | None, Step | None]:
        """Return an iterator over a container's children, and the container's own step if it is a module."""
        here = Step(node, step, position)
        if isinstance(node, Dict):
            own: Kind = "optimizer" if self.is_marked(node, _OPTIMIZER) else kind
            return (_pairs(node, here, own) if node.pairs else None), None
        if isinstance(node, list | tuple):
            plain = not node or self.as_plain(node)[0] is not None
            return (None if plain else _elements(node, here, kind)), None
        if not isinstance(node, Call):
            return None, None
        state = self.module_state(node, here)
        if state is not None:
            self.modules[path] = self.layer(node, state.container)
            return _module_children(state), here
        if node.pairs:
            return _items(node, here, kind), None
        if node.elements:
            return _appended(node, here, kind), None
        return _ordered_dict(node, here, kind), None

    def module_state(self, node: Call, here: Step) -> Step | None:
        """Return the step of a module's attributes, which are searched for once, however often the object is met."""
        if id(node) not in self.states:
            self.budget.spend(sum(_size(held) for verb, held in node.mutations or () if verb == "build"))
            self.states[id(node)] = find_state(node, self.is_state)
        state = self.states[id(node)]
        if state is None:
            return None
        self.budget.spend(len(state.attributes.pairs))
        return state.step(node, here)

    def is_marked(self, node: object, marks: frozenset[str]) -> bool:
        """Return whether a dict holds something under all these keys; what its keys are is found out once."""
        if type(node) is not Dict:
            return False
        if id(node) not in self.marks:
            self.marks[id(node)] = marks_of(node)
        return marks <= self.marks[id(node)]

    def is_state(self, node: object) -> bool:
        """Return whether a node holds the attributes of a module."""
        return self.is_marked(node, _MODULE)

    def layer(self, node: Call, state: Dict) -> Module:
        """Return the class of a module, which is described once."""
        if id(node) not in self.layers:
            self.layers[id(node)] = describe_layer(node, state)
        return self.layers[id(node)]

    def as_plain(self, node: object) -> tuple[object, int]:
        """Return a node as `_plain` has it, and how many characters are in it; of a list both are found once."""
        if not isinstance(node, list | tuple):
            plain = _plain(node)
            return plain, _characters(plain)
        if id(node) not in self.plain:
            plain = _plain(node)
            self.plain[id(node)] = plain, _characters(plain)
        return self.plain[id(node)]

    def leaf(self, path: str, node: object) -> Leaf:
        """Return the entry of an object that is no tensor and holds none."""
        found = _numpy_scalar(node)
        plain, characters = self.as_plain(node) if found is None else (found, 0)
        self.text.spend(characters)
        if node is None or plain is not None:
            return Leaf(path, plain)
        if isinstance(node, Dict):
            return Leaf(path, {})
        if isinstance(node, Persistent):
            return Leaf(path, f"storage of {self.storages.find(node).nbytes:,} bytes", True)
        return Leaf(path, _object_text(node), True, _remembers(node))


class _KeyWalk(Walk):
    """A walk that notes which keys lead to what it lists."""

    def __init__(self, pickle: Pickle, storages: Storages) -> None:
        super().__init__(pickle, storages)
        self.keys: dict[str, Keys] = {}

    def visit(
        self, path: str, named: bool, node: object, step: Step | None, position: int, kind: Kind, module: Step | None
    ) -> bool:
        opened = super().visit(path, named, node, step, position, kind, module)
        if not opened and (keys := self.keys_to(path, step, position)):
            self.keys[path] = keys
        return opened

    def keys_to(self, path: str, step: Step | None, position: int) -> Keys:
        """Return the keys of the containers on the way to an entry, and where one has none the rest of its path."""
        way: list[tuple[Any, int]] = []
        while step is not None:
            way.append((step.container, position))
            position, step = step.position, step.parent
        keys: list[str | int] = []
        for container, at in reversed(way):
            key = None if self.is_state(container) else _key_of(container, at)
            if key is None:
                rest = path[len(path_of(tuple(keys))) + 1 :] if keys else path
                return (*keys, rest)
            keys.append(key)
        return tuple(keys)


def _key_of(container: Any, position: int) -> str | int | None:
    """Return the key of what lies there in a dict, a list or a tuple; None in anything else."""
    if isinstance(container, Dict):
        key = container.pairs[position][0]
    elif isinstance(container, list):
        return Position(position)
    elif isinstance(container, tuple):
        return InTuple(position)
    elif isinstance(container, Call) and container.mutations and container.mutations[position][0] == "items":
        key = container.mutations[position][1][0]
    else:
        return None
    return key if isinstance(key, int) and not isinstance(key, bool) and key.bit_length() < 64 else key_text(key)


def _size(node: object) -> int:
    """Return how many things a node holds, all of which are looked at each time it is met."""
    if type(node) is Call:
        return 1 + (len(node.mutations) if node.mutations else 0)
    if type(node) is Dict:
        return 1 + len(node.pairs)
    return 1 + len(node) if type(node) is list or type(node) is tuple else 1


def _characters(plain: object) -> int:
    """Return how many characters a value has, and texts in a list."""
    if isinstance(plain, str):
        return len(plain)
    return sum(map(_characters, plain)) if isinstance(plain, list | tuple) else 0


def _pairs(node: Dict, here: Step, kind: Kind) -> Iterator[tuple[str, object, Step, int, Kind]]:
    """Yield a dict's values; of two pairs with one key the later counts, as in Python."""
    for i in _last_of_each(node.pairs):
        key, child = node.pairs[i]
        yield key_text(key), child, here, i, kind


def _last_of_each(pairs: Sequence[tuple[object, object]]) -> Iterator[int]:
    last = {_identity(key): i for i, (key, _) in enumerate(pairs)}
    if len(last) == len(pairs):
        yield from range(len(pairs))
        return
    first_seen = dict.fromkeys(_identity(key) for key, _ in pairs)
    yield from (last[identity] for identity in first_seen)


def _identity(key: object) -> object:
    """Return what tells a key from the others of its dict, without hashing deep."""
    if isinstance(key, PyString):
        return key.text
    if key is None or isinstance(key, str | bytes | int | float):
        return key
    return (id(key),)


def _items(node: Call, here: Step, kind: Kind) -> Iterator[tuple[str, object, Step, int, Kind]]:
    positions = [i for i, (verb, _) in enumerate(node.mutations or ()) if verb == "items"]
    pairs = [(node.mutations or [])[i][1] for i in positions]
    own: Kind = "optimizer" if {"state", "param_groups"} <= {_identity(key) for key, _ in pairs} else kind
    for i in _last_of_each(pairs):
        yield key_text(pairs[i][0]), pairs[i][1], here, positions[i], own


def _appended(node: Call, here: Step, kind: Kind) -> Iterator[tuple[str, object, Step, int, Kind]]:
    positions = [i for i, (verb, _) in enumerate(node.mutations or ()) if verb == "append"]
    for n, i in enumerate(positions):
        yield str(n), (node.mutations or [])[i][1], here, i, kind


def _elements(
    node: list[object] | tuple[object, ...], here: Step, kind: Kind
) -> Iterator[tuple[str, object, Step, int, Kind]]:
    for i, child in enumerate(node):
        yield str(i), child, here, i, kind


def _ordered_dict(
    node: Call, here: Step, kind: Kind
) -> Iterator[tuple[str, object, Step, int, Kind]] | None:
    """Python 2's OrderedDict, which came as a list of pairs, themselves lists, in its arguments."""
    func = node.func
    if not (isinstance(func, Global) and func.full == "collections.OrderedDict"):
        return None
    given = node.args[0] if isinstance(node.args, tuple) and node.args else None
    if not isinstance(given, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in given):
        return None
    arguments = Step(node.args, here, ARGS)
    held = Step(given, arguments, 0)
    return (
        (key_text(pair[0]), pair[1], Step(pair, held, i), 1, kind) for i, pair in enumerate(given)
    )


def is_module_state(node: object) -> bool:
    """Return whether a node holds the attributes of a `torch.nn.Module`."""
    return isinstance(node, Dict) and marks_of(node) >= _MODULE


def marks_of(node: Dict) -> frozenset[str]:
    """Return which of the keys that tell modules and optimizers from other dicts hold something, in one pass."""
    found: dict[str, object] = {}
    for key, value in node.pairs:
        name = key.text if type(key) is PyString else key
        if type(name) is str and name in _MARKS:
            found[name] = value  # of two the later counts, as in Python
    return frozenset(name for name, value in found.items() if value is not None)


_MODULE = frozenset({"_parameters", "_modules"})
_OPTIMIZER = frozenset({"state", "param_groups"})
_MARKS = _MODULE | _OPTIMIZER


class State(NamedTuple):
    """The attributes of a module: the dict, its position in the object, and the tuple there that it is the first of."""

    attributes: Dict
    position: int
    within: tuple[object, ...] | None

    def step(self, node: Call, here: Step) -> Step:
        """Return the step of the attributes, on the way that `here` has come to the object."""
        if self.within is None:
            return Step(self.attributes, here, self.position)
        return Step(self.attributes, Step(self.within, here, self.position), 0)


def find_state(node: Call, is_state: Callable[[object], bool] = is_module_state) -> State | None:
    """Return the attributes of an object, if it is a `torch.nn.Module` of any class."""
    for i, (verb, state) in enumerate(node.mutations or ()):
        if verb != "build":
            continue
        within = state if isinstance(state, tuple) and state else None
        found = within[0] if within else state
        if is_state(found):
            return State(found, i, within)
    given = node.args if isinstance(node.args, tuple) and node.args else None
    if given and is_state(given[0]):  # torch.fx.GraphModule is rebuilt from its attributes
        return State(given[0], ARGS, given)
    return None


def _module_children(state: Step) -> Iterator[tuple[str, object, Step, int, Kind]]:
    """Yield a module's parameters, buffers and sub-modules, in the order of its attributes."""
    kinds: dict[str, Kind] = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "tensor"}
    for i, (key, held) in enumerate(state.container.pairs):
        kind = kinds.get(key_text(key))
        if kind is None:
            continue
        step = Step(held, state, i)
        if isinstance(held, Dict):
            found = _pairs(held, step, kind)
        elif isinstance(held, Call):
            found = _items(held, step, kind) if held.pairs else _ordered_dict(held, step, kind) or iter(())
        else:
            continue
        yield from (child for child in found if child[1] is not None)


def _remembers(node: object) -> bool:
    """Return whether an object is an optimizer, and holds a tensor for one of the first params it moves."""
    state = node.state if isinstance(node, Call) else None
    held = state.get("state") if isinstance(state, Dict) and marks_of(state) >= _OPTIMIZER else None
    of_params = (value for _, value in islice(held.pairs, SEARCHED)) if isinstance(held, Dict | Call) else ()
    moments = (value for found in of_params if isinstance(found, Dict) for _, value in islice(found.pairs, SEARCHED))
    return any(is_tensor(value) for value in moments)


def key_text(key: object) -> str:
    """Return the name that a dict key prints as."""
    if isinstance(key, str):
        return key
    if isinstance(key, PyString):
        return key.text
    if key is None or isinstance(key, bool | float | bytes):
        return repr(key)
    if isinstance(key, int):
        return int_text(key)
    plain = _plain(key, 100)
    return str(plain) if isinstance(plain, tuple) else describe(key)


def _object_text(node: object) -> str:
    if isinstance(node, bytes | bytearray):
        return f"{len(node):,} bytes"
    if isinstance(node, int):
        return int_text(node)
    if isinstance(node, Set | FrozenSet):
        return f"a set of {len(node.items):,}"
    return describe(node)


def _plain(node: object, budget: int = PLAIN_ITEMS) -> object:
    """Return a scalar, or a list or tuple of scalars and of lists of them, as JSON has them; None for all else."""
    if isinstance(node, bool | float | str):
        return node
    if isinstance(node, int):
        return node if is_short(node) else None
    if isinstance(node, PyString):
        return node.text
    if not isinstance(node, list | tuple) or len(node) > budget:
        return None
    out = []
    for item in node:
        if isinstance(item, list | tuple) and any(isinstance(x, list | tuple) for x in item[:budget]):
            return None
        value = _plain(item, budget - len(node))
        if value is None and item is not None:
            return None
        out.append(value)
        budget -= len(item) if isinstance(item, list | tuple) else 0
    return tuple(out) if isinstance(node, tuple) else out


def _numpy_scalar(node: object) -> float | int | None:
    """Return the number in `numpy.core.multiarray.scalar(dtype, bytes)`, as trainers leave them behind; else None."""
    import struct

    if not (isinstance(node, Call) and isinstance(node.func, Global) and node.func.name == "scalar"):
        return None
    if not node.func.module.startswith("numpy.") or not isinstance(node.args, tuple) or len(node.args) != 2:
        return None
    dtype, data = node.args
    if isinstance(data, Call) and data.args and isinstance(data.args[0], str):
        data = data.args[0].encode("latin-1", "replace")  # _codecs.encode(text, 'latin1')
    word = dtype.args[0] if isinstance(dtype, Call) and dtype.args else None
    word = word.text if isinstance(word, PyString) else word
    code = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "u1": "B", "b1": "?"}.get(str(word))
    if code is None or not isinstance(data, bytes) or len(data) != struct.calcsize(code):
        return None
    value: float | int = struct.unpack(f"<{code}", data)[0]
    return value
