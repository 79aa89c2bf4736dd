"""Which places of a torch pickle must change so that it says what an edited Checkpoint says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paramctl.checkpoint import Checkpoint, Kind, Param, View
from paramctl.formats.pickle_nodes import Call, Dict, Global, PyString
from paramctl.formats.torch_objects import is_module_state
from paramctl.formats.torch_tensors import Place, Step, is_tensor, retargeted, storage_id

Edits = Mapping[tuple[int, int], Any]

OWN = ("_parameters", "_buffers", "_modules")  # attributes of a module that are listed as what they hold
MAX_DEPTH = 100  # containers within containers, down from a module's attributes


def edits(checkpoint: Checkpoint, saved: Iterable[Param]) -> Edits:
    """Replacements for `pickle_writer.write`: (container, position) → node. Empty while only values changed.

    `saved` are the params as they were read.
    """
    before = {id(param.place): param.view for param in saved}
    placed = [(param, param.place) for param in checkpoint.params if isinstance(param.place, Place)]
    changed = [(param, place) for param, place in placed if param.view != before[id(place)]]
    if not changed:
        return {}
    return _Rewriter(checkpoint, placed, before).run(changed)


class _Rewriter:
    """Collects replacements; a container that several paths share is copied for the path that changes."""

    def __init__(
        self, checkpoint: Checkpoint, placed: list[tuple[Param, Place]], before: Mapping[int, View]
    ) -> None:
        self.checkpoint = checkpoint
        self.replace: dict[tuple[int, int], Any] = {}
        self.copies: dict[Step, Any] = {}
        self.staying: set[int] = set()  # the nodes of params that stay what they are
        self.is_module: dict[int, bool] = {}
        self.mentions: dict[int, Mapping[int, list[tuple[Step, int]]]] = {}
        self.inside: dict[tuple[Step, Step], Step] = {}
        self.users = _users(placed)
        self.nodes: dict[tuple[View, Kind], tuple[Call, bool]] = {}
        for param, place in placed:
            if param.view == before[id(place)]:
                self.nodes.setdefault((param.view, place.kind), (place.node, place.module is not None))
                self.staying.add(id(place.node))

    def run(self, changed: list[tuple[Param, Place]]) -> Edits:
        for param, place in changed:
            node = self.node_for(param, place)
            for container, position in self.references(place):
                self.replace[id(container), position] = node
        return self.replace

    def node_for(self, param: Param, place: Place) -> Call:
        """The node that says what `param` is now: in modules, tied parameters are one object, as tied buffers are."""
        shared, in_module = self.nodes.get((param.view, place.kind), (None, False))
        if shared is not None and in_module and place.module is not None:
            return shared
        key = str(param.storage)
        nbytes = self.checkpoint.storages[key].nbytes
        node = retargeted(place.node, param, storage_id(key, param.dtype, nbytes, param.device or "cpu"))
        self.nodes.setdefault((param.view, place.kind), (node, place.module is not None))
        return node

    def references(self, place: Place) -> Iterator[tuple[Any, int]]:
        """Where a tensor stands: its own place and, in a module, everywhere else that module names it.

        Modules around it may mean another of its places; they follow once it has no other left.
        """
        assert place.step is not None, "a bare tensor has nothing to be tied to"
        yield self.own(place.step), place.position
        for n, attributes in enumerate(self.modules_around(place)):
            if n == 0 or id(place.node) not in self.staying:
                yield from self.elsewhere(attributes, place.node)

    def modules_around(self, place: Place) -> Iterator[Step]:
        """The attributes of the module a tensor belongs to, and of those that module is in, outwards."""
        step = place.step if place.module is not None else None
        while step is not None:
            if id(step.container) not in self.is_module:
                self.is_module[id(step.container)] = is_module_state(step.container)
            if self.is_module[id(step.container)]:
                yield step
            step = step.parent

    def elsewhere(self, attributes: Step, node: Call) -> Iterator[tuple[Any, int]]:
        """Plain attributes of a module that hold the same tensor (`_flat_weights` of an LSTM)."""
        state = attributes.container
        if id(state) not in self.mentions:
            self.mentions[id(state)] = _mentions(state)
        for step, position in self.mentions[id(state)].get(id(node), ()):
            yield self.own(self.within(attributes, step)), position

    def within(self, base: Step, step: Step) -> Step:
        """`step`, which counts from the container of `base`, as a step from the root."""
        if step.parent is None:
            return base
        if (base, step) not in self.inside:
            self.inside[base, step] = Step(step.container, self.within(base, step.parent), step.position)
        return self.inside[base, step]

    def own(self, step: Step) -> Any:
        """The container of `step`, or its copy where other paths share it."""
        if step in self.copies:
            return self.copies[step]
        if not self.is_shared(step):
            return step.container
        copy = self.copies[step] = _copy(step.container)
        assert step.parent is not None, "the root has one path"
        self.replace[id(self.own(step.parent)), step.position] = copy
        return copy

    def is_shared(self, step: Step | None) -> bool:
        """Whether a container, or one that holds it, is reached by more than one path."""
        while step is not None:
            if self.users[id(step.container)] > 1:
                return True
            step = step.parent
        return False


def _users(placed: list[tuple[Param, Place]]) -> Counter[int]:
    """By how many paths each container is reached."""
    seen: set[Step] = set()
    users: Counter[int] = Counter()
    for _, place in placed:
        step = place.step
        while step is not None and step not in seen:
            seen.add(step)
            users[id(step.container)] += 1
            step = step.parent
    return users


def _mentions(attributes: Any) -> Mapping[int, list[tuple[Step, int]]]:
    """Where the attributes of a module hold a tensor, by its id, also in lists, tuples and dicts in them.

    The module's own parameters, buffers and sub-modules are not looked into.
    """
    found: dict[int, list[tuple[Step, int]]] = {}
    todo = [(Step(attributes, None, 0), 0)]
    seen = {id(attributes)}
    while todo:
        step, depth = todo.pop()
        for position, held in _held(step.container):
            if is_tensor(held):
                found.setdefault(id(held), []).append((step, position))
            elif depth < MAX_DEPTH and id(held) not in seen:
                seen.add(id(held))
                todo.append((Step(held, step, position), depth + 1))
    return found


def _held(container: Any) -> Iterator[tuple[int, Any]]:
    """What lies in a plain container, with its position as `pickle_writer.write` counts."""
    if isinstance(container, list | tuple):
        yield from enumerate(container)
    elif isinstance(container, Dict):
        yield from ((i, held) for i, (key, held) in enumerate(container.pairs) if _text(key) not in OWN)
    elif isinstance(container, Call) and isinstance(container.func, Global) and container.func.module == "collections":
        for i, (verb, held) in enumerate(container.mutations or ()):
            yield i, held[1] if verb == "items" else held


def _text(key: object) -> object:
    return key.text if isinstance(key, PyString) else key


def _copy(container: Any) -> Any:
    if isinstance(container, Dict):
        copy = Dict()
        copy.pairs = list(container.pairs)
        return copy
    if isinstance(container, Call):
        call = Call(container.func, container.args, container.kwargs, container.how)
        call.mutations = list(container.mutations) if container.mutations is not None else None
        return call
    return list(container) if isinstance(container, list) else tuple(list(container))
