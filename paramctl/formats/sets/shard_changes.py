"""Lay out the shards of a set again: those that changed, and the index that names what they hold."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from paramctl.errors import UsageError
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Segment
from paramctl.files.set_names import Part
from paramctl.files.sources import Source
from paramctl.formats.set_index import SetIndex
from paramctl.formats.sets.shard_division import SAFETENSORS, divided
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Param, Storage, View

if TYPE_CHECKING:
    from paramctl.formats.protocol import Format


class _Apart(NamedTuple):
    """The shards as checkpoints without new values, the names that only the index gives, and where new storages go."""

    subs: tuple[Checkpoint, ...]
    aliases: Mapping[str, str]
    keys: Mapping[str, tuple[int, str]]


class _Changes:
    """The changes of one shard: params that changed, by position, that go, and that come."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.changed: dict[int, Param] = {}
        self.gone: set[int] = set()
        self.come: list[Param] = []
        self.taken: set[str] = set()

    def key_for(self, path: str) -> str:
        """Return a key for a new storage: a number if the shard has numbers."""
        if self.checkpoint.format == SAFETENSORS:
            key = path
            while key in self.taken or key in self.checkpoint.storages:
                key += "'"
        else:
            numbers = map(shapes.number, (*self.checkpoint.storages, *self.taken))
            number = max((n for n in numbers if n is not None), default=-1) + 1
            key = str(number)
        self.taken.add(key)
        return key

    def made(self) -> Checkpoint:
        """Return the shard as it is now. Raises UsageError if its format cannot give or take a tensor."""
        if not (self.changed or self.gone or self.come):
            return self.checkpoint
        if self.checkpoint.format != SAFETENSORS and (self.gone or self.come):
            path = self.come[0].path if self.come else self.checkpoint.params[min(self.gone)].path
            what = f"{path} cannot be tied to a tensor of another shard: {self.checkpoint.format} has no such ties"
            raise UsageError(what, hint="make it one file first, with 'paramctl convert'")
        made = self.checkpoint.with_params(self.changed)
        if not (self.gone or self.come):
            return made
        gone = {id(made.params[i]) for i in self.gone}
        return replace(made, entries=(*(entry for entry in made.entries if id(entry) not in gone), *self.come))


def parted(checkpoint: Checkpoint) -> _Apart:
    """Give every param to the shard that holds its bytes, or where that is another one than its own, to the index."""
    document = checkpoint.document
    assert isinstance(document, ShardedDocument)
    changes = [_Changes(shard.checkpoint) for shard in document.shards]
    keys: dict[str, tuple[int, str]] = {}
    elsewhere: list[tuple[int, Param]] = []
    places = _places(document)
    for param in checkpoint.params:
        at = param.place if isinstance(param.place, ShardPlace) else places[param.path]
        number, own = _own(param, at, document, changes, keys)
        shard = changes[number]
        if number != at.shard or (at.position < 0 and param.storage not in keys):
            changes[at.shard].gone.update({at.position} - {-1})
            elsewhere.append((number, own))
        elif at.position < 0:
            shard.come.append(own)
        elif own.view != (was := shard.checkpoint.params[at.position]).view:
            shard.changed[at.position] = own._replace(place=was.place, components=was.components)
    aliases = _elsewhere(elsewhere, changes)
    return _Apart(tuple(change.made() for change in changes), aliases, keys)


def _places(document: ShardedDocument) -> dict[str, ShardPlace]:
    """Return the places of the tensors that the shards hold under their own names."""
    shards = enumerate(document.shards)
    found = ((i, at, param) for i, shard in shards for at, param in enumerate(shard.checkpoint.params))
    return {param.path: ShardPlace(i, at) for i, at, param in found if param.path == param.storage}


def _own(
    param: Param, at: ShardPlace, document: ShardedDocument, changes: list[_Changes], keys: dict[str, tuple[int, str]]
) -> tuple[int, Param]:
    """Return the number of the shard that holds a param's bytes, and the param as that shard has it."""
    if param.storage is None:
        return at.shard, param._replace(place=None)
    place = document.saved.find(param.storage)
    if place is None:
        if param.storage not in keys:
            keys[param.storage] = at.shard, changes[at.shard].key_for(param.path)
        place = keys[param.storage]
    return place[0], param._replace(storage=place[1], place=None)


def _elsewhere(params: Iterable[tuple[int, Param]], changes: list[_Changes]) -> dict[str, str]:
    """Give each param to the shard of its number; return those that another param there stands for, with its name."""
    aliases: dict[str, str] = {}
    first: dict[int, dict[View, str]] = {}
    for number, param in params:
        if number not in first:
            first[number] = _first(changes[number])
        kept = first[number].setdefault(param.view, param.path)
        if kept == param.path or changes[number].checkpoint.format != SAFETENSORS:
            changes[number].come.append(param)
        else:
            aliases[param.path] = kept
    return aliases


def _first(change: _Changes) -> dict[View, str]:
    """Return the path that a shard has for each view."""
    found: dict[View, str] = {}
    for i, param in enumerate(change.checkpoint.params):
        if i not in change.gone:
            now = change.changed.get(i, param)
            found.setdefault(now.view, now.path)
    for param in change.come:
        found.setdefault(param.view, param.path)
    return found


def edited_set(checkpoint: Checkpoint, document: ShardedDocument, names: Mapping[str, str]) -> Iterator[Part]:
    before = dict(document.shards)
    subs = dict(shards_of(checkpoint))
    for name, sub in subs.items():
        same = sub is before[name]
        segments = (_whole(sub.sources[0]),) if same else tuple(format_of(sub.format).layout(sub))
        yield Part(names.get(name, name), segments, name)
    name = Path(document.source.name).name
    yield Part(names.get(name, name), _index(checkpoint, document, subs, names), name)


def _whole(source: Source) -> Extent:
    return Extent(source, 0, source.size)


def _index(
    checkpoint: Checkpoint, document: ShardedDocument, subs: Mapping[str, Checkpoint], names: Mapping[str, str]
) -> tuple[Segment, ...]:
    """Return the index: unchanged if it is still true, else with what changed."""
    index, aliases = document.index, checkpoint.derived(parted).aliases
    aliased = {p.path for _, old in document.shards for i, p in enumerate(old.params) if i in old.tied_to}
    listed = aliased & index.weight_map.keys()
    held = {path: name for name, sub in subs.items() for path in named_paths(sub, listed)}
    weight_map = {path: names.get(held[path], held[path]) for path in _as_sorted(held, list(index.weight_map))}
    counted = totals_of(subs.values())
    if counted == totals_of(shard.checkpoint for shard in document.shards):
        counted = {}
    if weight_map == index.weight_map and aliases == index.aliases and not counted:
        return (_whole(document.source),)
    metadata = index.document.get("metadata", {})
    if isinstance(metadata, dict):
        metadata = {key: counted.get(key, value) for key, value in metadata.items() if key not in index.aliases}
    if aliases:  # there is no other place for them
        metadata = metadata if isinstance(metadata, dict) else {}
        if taken := sorted(aliases.keys() & metadata.keys()):
            what = f"{taken[0]} cannot be tied to a tensor of another shard: the index has something else of that name"
            raise UsageError(what, hint="tie the others to it, or keep it untied")
        metadata = {**metadata, **aliases}
    return (index_json({**index.document, "metadata": metadata, "weight_map": weight_map}),)


def _as_sorted(held: Iterable[str], before: list[str]) -> list[str]:
    """Return the paths that an index names, in an order like that of the paths it named before."""
    if before == sorted(before):
        return sorted(held)
    rank = {path: i for i, path in enumerate(before)}
    return sorted(held, key=lambda path: (rank.get(path, len(rank)), path))


def named_paths(sub: Checkpoint, listed: Container[str] = ()) -> Iterator[str]:
    """Yield the paths in a shard that the index is to name: those it holds, and of its aliases those listed."""
    for i, param in enumerate(sub.params):
        if i not in sub.tied_to or sub.format != SAFETENSORS or param.path in listed:
            yield param.path


def totals_of(subs: Iterable[Checkpoint]) -> dict[str, int]:
    """Return the counts of an index: bytes and values, those of tied tensors once."""
    own = [param for sub in subs for i, param in enumerate(sub.params) if i not in sub.tied_to]
    return {"total_parameters": sum(param.numel for param in own), "total_size": sum(param.nbytes for param in own)}


def index_json(document: Mapping[str, object]) -> Literal:
    """Return an index as transformers writes it."""
    return Literal((json.dumps(document, indent=2) + "\n").encode())


class ShardPlace(NamedTuple):
    """The place where a param was read: the number of its shard, its position there; -1 if only the index names it.

    A param without a place is the one that the index says is in a shard under that name.
    """

    shard: int
    position: int


class Shard(NamedTuple):
    name: str
    checkpoint: Checkpoint

    @property
    def source(self) -> Source:
        return self.checkpoint.sources[0]


@dataclass(frozen=True)
class ShardedDocument:
    """The parts needed to write a set back: its index, and its shards as checkpoints of their own."""

    source: Source
    index: SetIndex
    shards: tuple[Shard, ...]
    saved: ByName | ByFile


def format_of(name: str) -> Format:
    from paramctl.formats.registry import FORMATS

    return next(form for form in FORMATS if name == form.NAME)


def shards_of(checkpoint: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """Yield each shard as a checkpoint of its own, as it is now, with the name that it has unless it gets another."""
    document = checkpoint.document
    edited: dict[str, dict[str, Storage]] = {}
    if isinstance(document, ShardedDocument):
        keys = checkpoint.derived(parted).keys
        for key, storage in checkpoint.edited.items():
            if place := document.saved.find(key) or keys.get(key):
                edited.setdefault(document.shards[place[0]].name, {})[place[1]] = storage
    for name, sub in listings(checkpoint):
        yield name, sub.with_storages(edited[name]) if name in edited else sub


class ByName(Mapping[str, Storage]):
    """The storages of safetensors shards under their own keys, the names of tensors: a set has each in one shard."""

    def __init__(self, index: SetIndex, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._weight_map = index.weight_map
        self._numbers = {shard.name: i for i, shard in enumerate(shards)}

    def __getitem__(self, key: str) -> Storage:
        return self._shards[self._numbers[self._weight_map[key]]].checkpoint.storages[key]

    def __iter__(self) -> Iterator[str]:
        return (key for shard in self._shards for key in shard.checkpoint.storages)

    def __len__(self) -> int:
        return sum(len(shard.checkpoint.storages) for shard in self._shards)

    def find(self, key: str) -> tuple[int, str] | None:
        """Return the number of the shard that has a storage, and its key there; None if no shard has it."""
        return (self._numbers[self._weight_map[key]], key) if key in self else None


class ByFile(Mapping[str, Storage]):
    """The storages of all shards, under the name of the shard, a slash, and their own key."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self.shards = {shard.name: (i, shard.checkpoint.storages) for i, shard in enumerate(shards)}

    def __getitem__(self, key: str) -> Storage:
        name, _, inner = key.partition("/")
        return self.shards[name][1][inner]

    def __iter__(self) -> Iterator[str]:
        return (f"{name}/{key}" for name, (_, storages) in self.shards.items() for key in storages)

    def __len__(self) -> int:
        return sum(len(storages) for _, storages in self.shards.values())

    def find(self, key: str) -> tuple[int, str] | None:
        """Return the number of the shard that has a storage, and its key there; None if no shard has it."""
        name, slash, inner = key.partition("/")
        number, storages = self.shards.get(name, (-1, {}))
        return (number, inner) if slash and inner in storages else None


def listings(checkpoint: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the shards of `shards_of` without new values in what was read: good for listings only."""
    document = checkpoint.document
    if not isinstance(document, ShardedDocument):
        yield from checkpoint.derived(divided).named(checkpoint)
        return
    for shard, sub in zip(document.shards, checkpoint.derived(parted).subs, strict=True):
        if sub.params:
            yield shard.name, sub
