"""Which places of a torch pickle must change so that it says what an edited Checkpoint says.

A place that changed names its new tensor. A whole module holds its tensors elsewhere too (`_flat_weights`
of an LSTM, or any object in its attributes), and there one rule holds: a module means its own tensor,
else that of the modules in it, by all that is reached from it without passing a registered module. What it
reaches follows in place where no path names the old tensor any more, and else in copies of its own.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Container, Iterable, Mapping
from functools import cached_property
from typing import Any

from paramctl.errors import Unsupported
from paramctl.formats.pickles.nodes import Call, Dict, FrozenSet, Set, is_key, slots
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.pytorch.ownership import Graph, Modules, attributes, find
from paramctl.formats.pytorch.tensor_nodes import NameStorage, retargeted, storage_id
from paramctl.formats.pytorch.tensor_places import Step, TensorPlace
from paramctl.model.checkpoint import Checkpoint, Kind, Param, View

COPIED = 4_000_000  # things in copies of what is shared, beside one for each opcode of the file
Edits = Mapping[tuple[int, int], Any]


def unlisted_tensors(checkpoint: Checkpoint, own: type[Any]) -> list[str]:
    """Return the places of `Editor.unlisted_tensors`, if the checkpoint's document is of the format's `own` class."""
    document: Any = checkpoint.document
    return document.editor.unlisted_tensors(checkpoint) if isinstance(document, own) else []


class Editor:
    """Edits of one pickle, whose `saved` params are as they were read; `name` makes the ids of storages."""

    def __init__(self, pickle: Pickle, saved: Iterable[Param], name: NameStorage = storage_id) -> None:
        self.pickle = pickle
        self.name = name
        self.before = {id(param.place): param.view for param in saved}

    @property
    def rewriter(self) -> type[Rewriter]:
        """What collects the edits."""
        return Rewriter

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.pickle.root)

    def edits(self, checkpoint: Checkpoint) -> Edits:
        """Return replacements for `pickle_writer.write`: (container, position) → node. Empty if only values changed."""
        return self.rewriter(self, checkpoint).run()

    def unlisted_tensors(self, checkpoint: Checkpoint) -> list[str]:
        """Return the places that would still hold tensors which no path names any more, as text like a path."""
        rewriter = self.rewriter(self, checkpoint)
        return rewriter.unlisted_tensors() if rewriter.are_mentioned(rewriter.orphans) else []


class Rewriter:
    """Collects replacements; a container that several paths share is copied for the path that changes."""

    def __init__(self, editor: Editor, checkpoint: Checkpoint) -> None:
        self.editor = editor
        self.checkpoint = checkpoint
        self.replace: dict[tuple[int, int], Any] = {}
        self.owned: dict[Step, Any] = {}
        self.made: dict[int, Any] = {}  # all copies, by their own ids
        self.keys: dict[int, set[int]] = {}
        self.placed = [(param, param.place) for param in checkpoint.params if isinstance(param.place, TensorPlace)]
        self.changed: list[tuple[Param, TensorPlace]] = []
        self.nodes: dict[tuple[View, Kind], tuple[Call, bool]] = {}
        staying: set[int] = set()
        for param, place in self.placed:
            if param.view == editor.before[id(place)]:
                self.nodes.setdefault((param.view, place.kind), (place.node, place.module is not None))
                staying.add(id(place.node))
            else:
                self.changed.append((param, place))
        self.moved = {id(place.node) for _, place in self.changed}
        self.orphans = self.moved - staying
        self.budget = editor.pickle.opcodes + COPIED

    def run(self) -> Edits:
        if not self.changed:
            return {}
        now: dict[int, Call] = {}
        for param, place in self.changed:
            assert place.step is not None, "a bare tensor has nothing to be tied to"
            now[id(place)] = node = self.node_for(param, place)
            self.replace[id(self.own(place.step)), place.position] = node
        in_modules = any(place.module is not None for _, place in self.changed)
        if in_modules and (self.made or self.are_mentioned(self.moved)):
            self.follow(now)
        return self.replace

    def unlisted_tensors(self) -> list[str]:
        """Return the places that hold orphans, after all replacements that are possible."""
        try:
            self.run()
        except Unsupported:
            return []  # and nothing will be written
        graph = self.editor.graph
        within = {*graph.leading_to(self.orphans), *self.made}

        def child(node: Any, position: int, held: Any) -> Any:
            return self.replace.get((id(node), position), held)

        return find(graph.root, child, within, self.orphans)

    def are_mentioned(self, nodes: Container[int]) -> bool:
        """Return whether any of the tensors is held by more than the places it is listed at."""
        listed = {
            (id(place.step.container), place.position, id(place.node))
            for _, place in self.placed
            if place.step is not None and id(place.node) in nodes
        }
        known = Counter(node for _, _, node in listed)
        return any(len(self.editor.graph.holders(node)) > count for node, count in known.items())

    # --- places --------------------------------------------------------------------------------

    def node_for(self, param: Param, place: TensorPlace) -> Call:
        """Return the node of `param` as it is now: in modules, tied parameters are one object, as tied buffers are."""
        shared, in_module = self.nodes.get((param.view, place.kind), (None, False))
        if shared is not None and in_module and place.module is not None:
            return shared
        key = str(param.storage)
        nbytes = self.checkpoint.storages[key].nbytes
        node = retargeted(place.node, param, self.editor.name(key, param.dtype, nbytes, param.device or "cpu"))
        self.nodes.setdefault((param.view, place.kind), (node, place.module is not None))
        return node

    def own(self, step: Step) -> Any:
        """Return the container of `step`, or its copy if other paths share it."""
        if step not in self.owned:
            self.owned[step] = step.container
            if self.is_shared(step):
                assert step.parent is not None, "the root has one path"
                copy = self.owned[step] = self.copy(step.container)
                self.replace[id(self.own(step.parent)), step.position] = copy
        return self.owned[step]

    def is_shared(self, step: Step | None) -> bool:
        """Return whether a container, or one that holds it, is reached by more than one path."""
        while step is not None:
            if self.users[id(step.container)] > 1:
                return True
            step = step.parent
        return False

    @cached_property
    def users(self) -> Counter[int]:
        """By how many paths each container is reached."""
        seen: set[Step] = set()
        users: Counter[int] = Counter()
        for _, place in self.placed:
            step = place.step
            while step is not None and step not in seen:
                seen.add(step)
                users[id(step.container)] += 1
                step = step.parent
        return users

    # --- what modules hold beside ----------------------------------------------------------------

    def follow(self, now: Mapping[int, Call]) -> None:
        """Replace what modules hold of the tensors that moved, beside the places they are listed at."""
        modules = Modules(place for _, place in self.placed)
        meant = self.meant(modules, now)
        common = self.common(now)
        copied = {id(step.container) for step, own in self.owned.items() if own is not step.container}
        barrier = modules.bodies | modules.above
        inner = self.editor.graph.leading_to({*self.moved, *copied}, barrier)
        together = Walk(self, common, inner, self.outside(inner, modules.above))
        for state, wanted in meant.items():
            if all(id(new) == node for node, new in wanted.items()):
                continue
            copies = self.copies_on_the_way(state)
            if not copies and all(common.get(node) is new for node, new in wanted.items()):
                together.run(state)
            else:
                Walk(self, ChainMap({**wanted, **copies}, common), inner, inner).run(state)

    def meant(self, modules: Modules, now: Mapping[int, Call]) -> dict[Step, dict[int, Call]]:
        """Return, for each module around a tensor that moved, which tensor the module means by it from now on.

        That is its own, first of all one that moved; else one in it, first of all one that stays.
        """
        best: dict[Step, dict[int, tuple[int, Call]]] = {}
        for _, place in self.placed:
            if id(place.node) not in self.moved:
                continue
            new = now.get(id(place), place.node)
            for n, state in enumerate(modules.around(place)):
                rank = int(new is place.node) if n == 0 else 2 + int(new is not place.node)
                known = best.setdefault(state, {})
                if id(place.node) not in known or rank < known[id(place.node)][0]:
                    known[id(place.node)] = rank, new
        return {state: {node: new for node, (_, new) in known.items()} for state, known in best.items()}

    def common(self, now: Mapping[int, Call]) -> dict[int, Call]:
        """Return the new nodes of tensors that no path names any more, if all places of a tensor agree."""
        found: dict[int, Call] = {}
        torn: set[int] = set()
        for _, place in self.changed:
            if place.module is not None and id(place.node) in self.orphans:
                new = found.setdefault(id(place.node), now[id(place)])
                if new is not now[id(place)]:
                    torn.add(id(place.node))
        return {node: new for node, new in found.items() if node not in torn}

    def outside(self, inner: Mapping[int, Any], above: Container[int]) -> set[int]:
        """Return those of `inner` that are reached from outside of all modules."""
        holders = self.editor.graph.holders
        todo = [node for key, node in inner.items() if any(id(holder) in above for holder in holders(key))]
        found = {id(node) for node in todo}
        while todo:
            for _, held in slots(todo.pop()):
                if id(held) in inner and id(held) not in found:
                    found.add(id(held))
                    todo.append(held)
        return found

    def copies_on_the_way(self, state: Step) -> dict[int, Any]:
        """Return the copies of a module and of those around it, by the id of the original."""
        found: dict[int, Any] = {}
        step: Step | None = state
        while step is not None:
            if self.own(step) is not step.container:
                found[id(step.container)] = self.own(step)
            step = step.parent
        return found

    def put(self, container: Any, position: int, new: Any) -> None:
        """Replace what a container holds; a key that it has already would push an item out, and is not put."""
        if is_key(position):
            if id(container) not in self.keys:
                self.keys[id(container)] = {id(held) for at, held in slots(container) if is_key(at)}
            if id(new) in self.keys[id(container)]:
                return
            self.keys[id(container)].add(id(new))
        self.replace[id(container), position] = new

    def copy(self, container: Any) -> Any:
        """Return a copy, as long as there are not far more copies than a real model asks for."""
        self.budget -= sum(1 for _ in slots(container))
        if self.budget < 0:
            raise Unsupported("its modules share their parts so often that copies of them would not end")
        copy = _copy(container)
        self.made[id(copy)] = copy
        return copy


class Walk:
    """Replaces tensors by others in all that modules reach; containers that must stay as they are get copied.

    Of the containers only `inner` are looked into, which lead to any of the tensors.
    """

    def __init__(
        self, rewriter: Rewriter, moves: Mapping[int, Any], inner: Container[int], stay: Container[int]
    ) -> None:
        self.rewriter = rewriter
        self.moves = moves
        self.inner = inner
        self.stay = stay
        self.met: dict[int, Any] = {}
        self.todo: list[tuple[Any, Any]] = []

    def run(self, state: Step) -> None:
        """Walk what the attributes of one module hold."""
        for step, position, held in attributes(state):
            self.renew(self.rewriter.own(step), position, held)
        self.drain()

    def drain(self) -> None:
        """Walk what has been met and not been looked into."""
        while self.todo:
            before, after = self.todo.pop()
            for position, held in slots(before):
                self.renew(after, position, held)

    def renew(self, container: Any, position: int, held: Any) -> None:
        new = self.moves.get(id(held), held)
        if new is held and id(held) in self.inner:
            if id(held) not in self.met:
                self.met[id(held)] = self.rewriter.copy(held) if id(held) in self.stay else held
                self.todo.append((held, self.met[id(held)]))
            new = self.met[id(held)]
        if new is not held:
            self.rewriter.put(container, position, new)


def _copy(container: Any) -> Any:
    copy: Any
    if isinstance(container, Dict):
        copy = Dict()
        copy.pairs = list(container.pairs)
    elif isinstance(container, Set):
        copy = Set()
        copy.items = list(container.items)
    elif isinstance(container, FrozenSet):
        copy = FrozenSet(container.items)
    elif isinstance(container, Call):
        copy = Call(container.func, container.args, container.kwargs, container.how)
        copy.mutations = list(container.mutations) if container.mutations is not None else None
    else:
        copy = list(container) if isinstance(container, list) else tuple(list(container))
    return copy
