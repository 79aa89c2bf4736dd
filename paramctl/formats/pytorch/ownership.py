"""Who holds whom in a torch pickle, and which of its containers belong to modules.

Every walk is iterative and visits each container once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from paramctl.formats.pickles.nodes import Call, Dict, FrozenSet, PyString, Set, is_key, slots
from paramctl.formats.pytorch.layers import ModuleState, find_state, is_module_state
from paramctl.formats.pytorch.plain_values import key_text
from paramctl.formats.pytorch.tensor_places import Step, TensorPlace
from paramctl.formats.pytorch.tensors import is_tensor

OWN = ("_parameters", "_buffers", "_modules")  # attributes of a module that are listed as what they hold
_CONTAINERS = (list, tuple, Dict, Set, FrozenSet, Call)


class Graph:
    """The holders of each container and tensor of a pickle. Tensors are not looked into."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._first: dict[int, Any] = {}  # most have one holder, and a list for each takes its time
        self._others: dict[int, list[Any]] = {}
        todo = [root] if type(root) in _CONTAINERS and not is_tensor(root) else []
        seen = {id(root)}
        while todo:
            node = todo.pop()
            for _, held in slots(node):
                if type(held) not in _CONTAINERS or held == ():
                    continue
                key = id(held)
                if key in self._first:
                    self._others.setdefault(key, []).append(node)
                    continue
                self._first[key] = node
                if key not in seen and not is_tensor(held):
                    todo.append(held)

    def holders(self, key: int) -> list[Any]:
        """Return the containers that hold the node whose id is `key`, once for each time they hold it."""
        return [self._first[key], *self._others.get(key, ())] if key in self._first else []

    def leading_to(self, targets: Iterable[int], stop: Container[int] = ()) -> dict[int, Any]:
        """Return the containers through which `targets` are reached, by their ids; none at `stop` or before it."""
        found: dict[int, Any] = {}
        todo = list(targets)
        while todo:
            for holder in self.holders(todo.pop()):
                if id(holder) not in found and id(holder) not in stop:
                    found[id(holder)] = holder
                    todo.append(id(holder))
        return found


class Modules:
    """The registered modules of a pickle, as the paths to its tensors tell them.

    `bodies` are the ids of the containers of modules down to the dicts of their parameters, `above` of
    those around the outermost modules.
    """

    def __init__(self, places: Iterable[TensorPlace]) -> None:
        self.bodies: set[int] = set()
        self.above: set[int] = set()
        self._is_state: dict[int, bool] = {}
        self._found: dict[int, ModuleState | None] = {}
        self._add_on_the_way(places)
        self._add_without_tensors()

    def _add_on_the_way(self, places: Iterable[TensorPlace]) -> None:
        self._states: dict[int, Dict] = {}
        inside: dict[Step, bool] = {}
        for place in places:
            way: list[Step] = []
            step = place.step if place.module is not None else None
            while step is not None and step not in inside:
                way.append(step)
                step = step.parent
            within = step is not None and inside[step]
            for step in reversed(way):
                state = self._state(step.container) if type(step.container) is Call else None
                if state is not None:
                    self._states[id(step.container)] = state.attributes
                inside[step] = within = within or state is not None
                (self.bodies if within else self.above).add(id(step.container))

    def _add_without_tensors(self) -> None:
        todo = [*self._states.values()]
        while todo:
            held = todo.pop().get("_modules")
            for _, module in held.pairs if isinstance(held, Dict | Call) else ():
                if type(module) is not Call or id(module) in self._states:
                    continue
                state = self._state(module)
                if state is not None:
                    self.bodies.add(id(module))
                    self._states[id(module)] = state.attributes
                    todo.append(state.attributes)

    def _state(self, node: Call) -> ModuleState | None:
        """Return the attributes of an object that is a module, searched for once."""
        if id(node) not in self._found:
            self._found[id(node)] = find_state(node)
        return self._found[id(node)]

    def around(self, place: TensorPlace) -> Iterator[Step]:
        """Yield the attributes of the module a tensor belongs to, and of the modules around it, outwards."""
        step = place.step if place.module is not None else None
        while step is not None:
            if id(step.container) not in self._is_state:
                self._is_state[id(step.container)] = is_module_state(step.container)
            if self._is_state[id(step.container)]:
                yield step
            step = step.parent


def attributes(state: Step) -> Iterator[tuple[Step, int, Any]]:
    """Yield what a module holds beside parameters, buffers and sub-modules: container, position, held object."""
    step, below = state, None
    while True:
        for position, held in slots(step.container):
            if step is state and not is_key(position) and _text(state.container.pairs[position][0]) in OWN:
                continue
            if held is not below:
                yield step, position, held
        if type(step.container) is Call:
            return
        assert step.parent is not None, "a module's attributes lie in its object"
        step, below = step.parent, step.container


def find(
    root: Any, child: Callable[[Any, int, Any], Any], within: Container[int], targets: Container[int]
) -> list[str]:
    """Return where `targets` lie under `root`, as text like a path; only containers `within` are looked into.

    `child` tells what is really at a position.
    """
    found: list[str] = []
    way: dict[int, tuple[int, str | None]] = {}
    todo = [root]
    seen = {id(root)}
    for node in todo:
        for (position, held), name in zip(slots(node), _names(node), strict=True):
            held = child(node, position, held)
            if id(held) in targets:
                found.append(_path(way, id(node), name))
            elif id(held) in within and id(held) not in seen:
                seen.add(id(held))
                way[id(held)] = id(node), name
                todo.append(held)
    return list(dict.fromkeys(found))


def _names(node: Any) -> Iterator[str | None]:
    """Yield what each slot of a node adds to a path; None if it adds nothing."""
    if isinstance(node, list | tuple):
        yield from map(str, range(len(node)))
    elif isinstance(node, Dict):
        own = OWN if is_module_state(node) else ()
        for key, _ in node.pairs:
            yield from (None, None if _text(key) in own else key_text(key))
    elif isinstance(node, Set | FrozenSet):
        yield from (None for _ in node.items)
    else:
        yield from (None, None) if node.kwargs is None else (None, None, None)
        appended = 0
        for verb, value in node.mutations or ():
            if verb == "items":
                yield from (None, key_text(value[0]))
            elif verb == "append":
                yield str(appended)
                appended += 1
            else:
                yield None


def _path(way: Mapping[int, tuple[int, str | None]], at: int, name: str | None) -> str:
    names = [name]
    while at in way:
        at, name = way[at]
        names.append(name)
    return ".".join(name for name in reversed(names) if name is not None)


def _text(key: object) -> object:
    return key.text if isinstance(key, PyString) else key
