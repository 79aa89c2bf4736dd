"""A set of shards and the index that names them, as transformers writes it; each shard is a file of its own.

The listing has the shards in the order of their numbers, each in its own. A tie across shards is an entry
`alias: kept` in the index's metadata, as huggingface_hub writes it, because a shard can tie its own tensors only.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from paramctl.errors import FormatError, ParamctlError, UsageError, some
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Segment
from paramctl.files.set_names import Part
from paramctl.files.sources import Source, open_source
from paramctl.formats.sets import shard_index
from paramctl.formats.sets.shard_division import SAFETENSORS, STEMS, divided, division_of
from paramctl.formats.sets.shard_index import ShardIndex
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Entry, Loss, Param, Storage, View
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding
    from paramctl.formats.protocol import Format, Writes

NAME = shard_index.NAME
SUFFIXES: tuple[str, ...] = shard_index.ENDINGS
WRITES: Writes = "any"
KEEPS_TIES = True
SPARE = 64  # files that are open beside the shards, before and after a write


class At(NamedTuple):
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
class Document:
    """The parts needed to write a set back: its index, and its shards as checkpoints of their own."""

    source: Source
    index: ShardIndex
    shards: tuple[Shard, ...]
    saved: _ByName | _ByFile


class _ByName(Mapping[str, Storage]):
    """The storages of safetensors shards under their own keys, the names of tensors: a set has each in one shard."""

    def __init__(self, index: ShardIndex, shards: Sequence[Shard]) -> None:
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


class _ByFile(Mapping[str, Storage]):
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


def recognises(head: bytes, source: Source) -> bool:
    """Return whether this is the index of a set."""
    return shard_index.recognises(head, source)


def members(source: Source) -> Iterable[str]:
    """Return the names of the shards."""
    return [name for name in shard_index.read(source).shards if not shard_index.why_unsafe(name)]


def read(source: Source) -> Checkpoint:
    """List a set. Raises FormatError where a shard is none, or holds something else than the index says."""
    index = shard_index.read(source)
    if not index.weight_map:
        raise FormatError("index names no tensors")
    for name in index.shards:
        if why := shard_index.why_unsafe(name):
            raise FormatError(f"shard {name!r} {why}")
    _allow_open(2 * len(index.shards) + SPARE)
    folder = Path(source.name).parent
    shards = tuple(Shard(name, _read_shard(folder / name)) for name in index.shards)
    _check_places(index, shards)
    named = all(shard.checkpoint.format == SAFETENSORS for shard in shards)
    saved = _ByName(index, shards) if named else _ByFile(shards)
    listed = _named_entries if named else _moved_entries
    entries = [entry for i, shard in enumerate(shards) for entry in listed(i, shard)]
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=(*entries, *_aliases(index, entries)),
        saved=saved,
        modules={name: module for shard in shards for name, module in shard.checkpoint.modules.items()},
        metadata=_common([shard.checkpoint.metadata for shard in shards]),
        sources=(source, *(shard.source for shard in shards)),
        document=Document(source, index, shards, saved),
    )


def _allow_open(files: int) -> None:
    """Let this process have that many files open at once, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        most = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _read_shard(path: Path) -> Checkpoint:
    from paramctl.formats import registry

    try:
        return registry.read_single(open_source(str(path)))
    except ParamctlError as error:
        error.file = error.file or str(path)
        raise


def _check_places(index: ShardIndex, shards: Iterable[Shard]) -> None:
    """Raise FormatError unless every tensor is where the index says, and nowhere else."""
    held_in = {param.path: name for name, checkpoint in shards for param in checkpoint.params}
    if held_in == index.weight_map and len(held_in) == sum(len(shard.checkpoint.params) for shard in shards):
        return
    named: dict[str, set[str]] = {}
    for path, name in index.weight_map.items():
        named.setdefault(name, set()).add(path)
    for name, checkpoint in shards:
        held = {param.path for param in checkpoint.params}
        own = {param.path for i, param in enumerate(checkpoint.params) if i not in checkpoint.tied_to}
        for paths, what in (
            (named[name] - held, "lacks {}, which the index says it holds"),
            (own - named[name], "holds {}, which the index does not list"),
            (held & index.aliases.keys(), "holds {}, which the index says is another name of a tensor"),
        ):
            if paths:
                raise FormatError(f"shard {name} {what.format(some(sorted(paths)))}")


def _named_entries(number: int, shard: Shard) -> Iterable[Entry]:
    """Return the tensors of a safetensors shard, unchanged, as those of the set; its aliases have a place."""
    params = shard.checkpoint.params
    if all(param.path == param.storage for param in params):
        return params
    return [p if p.path == p.storage else p._replace(place=At(number, i)) for i, p in enumerate(params)]


def _moved_entries(number: int, shard: Shard) -> Iterator[Entry]:
    """Yield the entries of a shard whose storages have numbers as those of the set."""
    position = -1
    for entry in shard.checkpoint.entries:
        if isinstance(entry, Param):
            position += 1
            entry = _moved(entry, shard.name, At(number, position))
        yield entry


def _moved(param: Param, name: str, at: At | None) -> Param:
    """Return a param of a shard as one of the set."""
    storage = None if param.storage is None else f"{name}/{param.storage}"
    parts = tuple(_moved(part, name, None) for part in param.components) if param.components else ()
    return Param(*param[:5], storage, *param[6:10], parts, param.flags, at, param.quantizer)


def _aliases(index: ShardIndex, entries: Iterable[Entry]) -> Iterator[Param]:
    """Params that only the index names, each the same as another."""
    if not index.aliases:
        return
    numbers = {name: i for i, name in enumerate(index.shards)}
    held: dict[str, Param] = {}
    for entry in entries:
        if isinstance(entry, Param) and entry.path in index.weight_map:
            number = numbers[index.weight_map[entry.path]]
            if not isinstance(entry.place, At) or entry.place.shard == number:  # where the index says that it is
                held.setdefault(entry.path, entry)
    for alias, path in index.aliases.items():
        yield held[path]._replace(path=alias, place=At(numbers[index.weight_map[path]], -1))


def _common(several: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata that all shards have in common."""
    first, *others = several
    return {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what the format of the shards cannot hold; a set that was read holds everything."""
    if isinstance(checkpoint.document, Document):
        return []
    return _format(division_of(checkpoint).form).losses(replace(checkpoint, document=None, keys={}))


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the places in the shards that hold tensors which no path names any more."""
    if not isinstance(checkpoint.document, Document):
        return []
    return [place for sub in checkpoint.derived(_apart).subs for place in _format(sub.format).unlisted_tensors(sub)]


def layout_set(checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
    """Return the shards and the index; in a set that was read, an unchanged shard is one extent of its file."""
    document = checkpoint.document
    parts = _new(checkpoint, names) if not isinstance(document, Document) else _edited(checkpoint, document, names)
    return list(parts)


def verify(path: Path, meant: Checkpoint) -> None:
    """Nothing beyond reading it back: each shard was looked at when it was written."""


def verify_part(path: Path, was: str, meant: Checkpoint) -> None:
    """Read a shard that was just written, and open it with its own library."""
    from paramctl.formats.read_back import verify_listing

    sub = next(sub for name, sub in _listings(meant) if name == was)
    verify_listing(_read_shard(path), sub)
    _format(sub.format).verify(path, sub)


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about the shards, each with the name of its file."""
    assert isinstance(checkpoint.document, Document)
    for name, shard in checkpoint.document.shards:
        for finding in _format(shard.format).audit(shard, on_progress):
            yield finding._replace(file=name)


def apart(source: Source, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about each shard that can be read, and why others cannot."""
    from paramctl.findings import unreadable

    for name in members(source):
        try:
            shard = _read_shard(Path(source.name).parent / name)
        except ParamctlError as error:
            yield unreadable(error.what, name)
            continue
        yield from (finding._replace(file=name) for finding in _format(shard.format).audit(shard, on_progress))


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles in all shards, each with the name of its file."""
    from paramctl.formats import registry

    for name in members(source):
        shard = open_source(str(Path(source.name).parent / name))
        if form := registry.single(shard):
            yield from ((f"{name}: {part}", run) for part, run in form.code(shard))


def _format(name: str) -> Format:
    from paramctl.formats.registry import FORMATS

    return next(form for form in FORMATS if name == form.NAME)


def _subs(checkpoint: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """Yield each shard as a checkpoint of its own, as it is now, with the name that it has unless it gets another."""
    document = checkpoint.document
    edited: dict[str, dict[str, Storage]] = {}
    if isinstance(document, Document):
        keys = checkpoint.derived(_apart).keys
        for key, storage in checkpoint.edited.items():
            if place := document.saved.find(key) or keys.get(key):
                edited.setdefault(document.shards[place[0]].name, {})[place[1]] = storage
    for name, sub in _listings(checkpoint):
        yield name, sub.with_storages(edited[name]) if name in edited else sub


def _listings(checkpoint: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the shards of `_subs` without new values in what was read: good for listings only."""
    document = checkpoint.document
    if not isinstance(document, Document):
        yield from checkpoint.derived(divided).named(checkpoint)
        return
    for shard, sub in zip(document.shards, checkpoint.derived(_apart).subs, strict=True):
        if sub.params:
            yield shard.name, sub


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


def _apart(checkpoint: Checkpoint) -> _Apart:
    """Give every param to the shard that holds its bytes, or where that is another one than its own, to the index."""
    document = checkpoint.document
    assert isinstance(document, Document)
    changes = [_Changes(shard.checkpoint) for shard in document.shards]
    keys: dict[str, tuple[int, str]] = {}
    elsewhere: list[tuple[int, Param]] = []
    places = _places(document)
    for param in checkpoint.params:
        at = param.place if isinstance(param.place, At) else places[param.path]
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


def _places(document: Document) -> dict[str, At]:
    """Return the places of the tensors that the shards hold under their own names."""
    shards = enumerate(document.shards)
    found = ((i, at, param) for i, shard in shards for at, param in enumerate(shard.checkpoint.params))
    return {param.path: At(i, at) for i, at, param in found if param.path == param.storage}


def _own(
    param: Param, at: At, document: Document, changes: list[_Changes], keys: dict[str, tuple[int, str]]
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
    """Names that the index gives to tensors in another shard than their own; what nothing names there goes there."""
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


def _edited(checkpoint: Checkpoint, document: Document, names: Mapping[str, str]) -> Iterator[Part]:
    before = dict(document.shards)
    subs = dict(_subs(checkpoint))
    for name, sub in subs.items():
        same = sub is before[name]
        segments = (_whole(sub.sources[0]),) if same else tuple(_format(sub.format).layout(sub))
        yield Part(names.get(name, name), segments, name)
    name = Path(document.source.name).name
    yield Part(names.get(name, name), _index(checkpoint, document, subs, names), name)


def _whole(source: Source) -> Extent:
    return Extent(source, 0, source.size)


def _index(
    checkpoint: Checkpoint, document: Document, subs: Mapping[str, Checkpoint], names: Mapping[str, str]
) -> tuple[Segment, ...]:
    """Return the index: unchanged if it is still true, else with what changed."""
    index, aliases = document.index, checkpoint.derived(_apart).aliases
    aliased = {p.path for _, old in document.shards for i, p in enumerate(old.params) if i in old.tied_to}
    listed = aliased & index.weight_map.keys()
    held = {path: name for name, sub in subs.items() for path in _named(sub, listed)}
    weight_map = {path: names.get(held[path], held[path]) for path in _as_sorted(held, list(index.weight_map))}
    counted = _totals(subs.values())
    if counted == _totals(shard.checkpoint for shard in document.shards):
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
    return (_json({**index.document, "metadata": metadata, "weight_map": weight_map}),)


def _as_sorted(held: Iterable[str], before: list[str]) -> list[str]:
    """Return the paths that an index names, in an order like that of the paths it named before."""
    if before == sorted(before):
        return sorted(held)
    rank = {path: i for i, path in enumerate(before)}
    return sorted(held, key=lambda path: (rank.get(path, len(rank)), path))


def _named(sub: Checkpoint, listed: Container[str] = ()) -> Iterator[str]:
    """Yield the paths in a shard that the index is to name: those it holds, and of its aliases those listed."""
    for i, param in enumerate(sub.params):
        if i not in sub.tied_to or sub.format != SAFETENSORS or param.path in listed:
            yield param.path


def _totals(subs: Iterable[Checkpoint]) -> dict[str, int]:
    """Return the counts of an index: bytes and values, those of tied tensors once."""
    own = [param for sub in subs for i, param in enumerate(sub.params) if i not in sub.tied_to]
    return {"total_parameters": sum(param.numel for param in own), "total_size": sum(param.nbytes for param in own)}


def _json(document: Mapping[str, object]) -> Literal:
    """Return an index as transformers writes it."""
    return Literal((json.dumps(document, indent=2) + "\n").encode())


def _new(checkpoint: Checkpoint, names: Mapping[str, str]) -> Iterator[Part]:
    if not checkpoint.params:
        raise UsageError("there is no tensor, and a set of shards needs one")
    weight_map: dict[str, str] = {}
    subs = list(_subs(checkpoint))
    for name, sub in subs:
        weight_map |= dict.fromkeys(_named(sub), names.get(name, name))
        yield Part(names.get(name, name), tuple(_format(sub.format).layout(sub)), name)
    if len(weight_map) < sum(len(sub.params) - len(sub.tied_to) for _, sub in subs):
        raise UsageError("two tensors print alike, and an index has one name for each")
    stem, suffix = STEMS[division_of(checkpoint).form]
    name = f"{stem}{suffix}.index.json"
    document = {"metadata": _totals(sub for _, sub in subs), "weight_map": dict(sorted(weight_map.items()))}
    yield Part(names.get(name, name), (_json(document),), name)
