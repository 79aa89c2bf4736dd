"""Which places of a torch pickle must change so that it says what an edited Checkpoint says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paramctl.checkpoint import Checkpoint, Kind, Param, View
from paramctl.formats.pickle_nodes import Call, Dict
from paramctl.formats.torch_tensors import Place, Step, retargeted, storage_id

Edits = Mapping[tuple[int, int], Any]


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
        self.users = _users(placed)
        self.nodes: dict[tuple[View, Kind], tuple[Call, bool]] = {}
        for param, place in placed:
            if param.view == before[id(place)]:
                self.nodes.setdefault((param.view, place.kind), (place.node, place.module is not None))

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
        """Where a tensor stands: its own place and, in a module, everywhere else that module names it."""
        assert place.step is not None, "a bare tensor has nothing to be tied to"
        yield self.own(place.step), place.position
        if place.module is not None:
            yield from self.elsewhere(place.module, place.node)

    def elsewhere(self, module: Step, node: Call) -> Iterator[tuple[Any, int]]:
        """Plain attributes of a module that hold the same tensor (`_flat_weights` of an LSTM)."""
        owner = self.own(module)
        for i, (verb, state) in enumerate(owner.mutations or ()):
            state = self.replace.get((id(owner), i), state)
            if verb != "build" or not isinstance(state, Dict):
                continue
            for j, (key, held) in enumerate(state.pairs):
                if key in ("_parameters", "_buffers", "_modules"):
                    continue
                if held is node:
                    yield state, j
                elif isinstance(held, list) and any(item is node for item in held):
                    if self.is_shared(module):
                        held = self.copies_of(held, state, j)
                    yield from ((held, n) for n, item in enumerate(held) if item is node)

    def copies_of(self, held: list[Any], state: Dict, position: int) -> list[Any]:
        """A copy of a list of tensors that belongs to a module that was itself copied."""
        found = self.replace.get((id(state), position))
        if found is None:
            found = self.replace[id(state), position] = list(held)
        return found

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
