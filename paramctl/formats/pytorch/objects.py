"""The object that torch.save wrote, walked: state_dicts, training checkpoints and whole modules as entries.

The walk never recurses, follows no cycle, and is bounded by the size of the pickle, however often its
parts are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from paramctl.errors import FormatError, Unsupported
from paramctl.formats.pickles.nodes import ARGS, Call, Dict, Global, Persistent, PyString
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.pytorch.layers import (
    MODULE_KEYS,
    OPTIMIZER_KEYS,
    ModuleState,
    describe_layer,
    find_state,
    marks_of,
)
from paramctl.formats.pytorch.plain_values import key_text, numpy_scalar, object_text, plain_value
from paramctl.formats.pytorch.tensor_places import Remembered, Step, Storages, TensorPlace
from paramctl.formats.pytorch.tensors import is_tensor, read_tensor
from paramctl.model.budget import Budget
from paramctl.model.checkpoint import Entry, Kind, Leaf, Module
from paramctl.model.keys import Found, InTuple, Keys, Position, path_of

MAX_DEPTH = 500  # containers within containers; a real model stays under 50
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
    """List every tensor and scalar of a pickled object.

    Raises FormatError if the walk finds no end, Unsupported if modules hold values and all of them in plain attributes.
    """
    listing = Walk(pickle, storages).run()
    if listing.modules and not listing.entries and pickle.persistent:
        raise Unsupported(
            "holds values in attributes of modules alone, as quantized layers do (_packed_params)",
            hint="save its state_dict(), which names them",
        )
    return listing


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
        self.states: dict[int, ModuleState | None] = {}
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
            self.entries.append(read_tensor(TensorPlace(path, kind, node, step, position, module), self.storages))
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
            own: Kind = "optimizer" if self.is_marked(node, OPTIMIZER_KEYS) else kind
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
        return self.is_marked(node, MODULE_KEYS)

    def layer(self, node: Call, state: Dict) -> Module:
        """Return the class of a module, which is described once."""
        if id(node) not in self.layers:
            self.layers[id(node)] = describe_layer(node, state)
        return self.layers[id(node)]

    def as_plain(self, node: object) -> tuple[object, int]:
        """Return a node as `plain_value` has it, and how many characters are in it; of a list both are found once."""
        if not isinstance(node, list | tuple):
            plain = plain_value(node)
            return plain, _characters(plain)
        if id(node) not in self.plain:
            plain = plain_value(node)
            self.plain[id(node)] = plain, _characters(plain)
        return self.plain[id(node)]

    def leaf(self, path: str, node: object) -> Leaf:
        """Return the entry of an object that is no tensor and holds none."""
        found = numpy_scalar(node)
        plain, characters = self.as_plain(node) if found is None else (found, 0)
        self.text.spend(characters)
        if node is None or plain is not None:
            return Leaf(path, plain)
        if isinstance(node, Dict):
            return Leaf(path, {})
        if isinstance(node, Persistent):
            return Leaf(path, f"storage of {self.storages.find(node).nbytes:,} bytes", True)
        return Leaf(path, object_text(node), True, _remembers(node))


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


def _ordered_dict(node: Call, here: Step, kind: Kind) -> Iterator[tuple[str, object, Step, int, Kind]] | None:
    """Python 2's OrderedDict, which came as a list of pairs, themselves lists, in its arguments."""
    func = node.func
    if not (isinstance(func, Global) and func.full == "collections.OrderedDict"):
        return None
    given = node.args[0] if isinstance(node.args, tuple) and node.args else None
    if not isinstance(given, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in given):
        return None
    arguments = Step(node.args, here, ARGS)
    held = Step(given, arguments, 0)
    return ((key_text(pair[0]), pair[1], Step(pair, held, i), 1, kind) for i, pair in enumerate(given))


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
    held = state.get("state") if isinstance(state, Dict) and marks_of(state) >= OPTIMIZER_KEYS else None
    of_params = (value for _, value in islice(held.pairs, SEARCHED)) if isinstance(held, Dict | Call) else ()
    moments = (value for found in of_params if isinstance(found, Dict) for _, value in islice(found.pairs, SEARCHED))
    return any(is_tensor(value) for value in moments)
