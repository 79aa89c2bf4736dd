"""A set of shards and the index that names them, as transformers writes it; each shard is a file of its own.

The listing has the shards in the order of their numbers, each in its own. A tie across shards is an entry
`alias: kept` in the index's metadata, as huggingface_hub writes it, because a shard can tie its own tensors only.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paramctl.errors import FormatError, ParamctlError, UsageError, some
from paramctl.files.set_names import Part
from paramctl.files.sources import Source, open_source
from paramctl.formats import set_index
from paramctl.formats.set_index import SetIndex
from paramctl.formats.sets import shard_index
from paramctl.formats.sets.shard_changes import (
    ByFile,
    ByName,
    Shard,
    ShardedDocument,
    ShardPlace,
    edited_set,
    format_of,
    index_json,
    listings,
    named_paths,
    parted,
    shards_of,
    totals_of,
)
from paramctl.formats.sets.shard_division import SAFETENSORS, STEMS, division_of
from paramctl.model.checkpoint import Checkpoint, Entry, Loss, Param
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding
    from paramctl.formats.protocol import Writes

NAME = shard_index.NAME
SUFFIXES: tuple[str, ...] = set_index.ENDINGS
WRITES: Writes = "any"
KEEPS_TIES = True
KEEPS_METADATA = True
SPARE = 64  # files that are open beside the shards, before and after a write


def recognises(head: bytes, source: Source) -> bool:
    """Return whether this is the index of a set."""
    return shard_index.recognises(head, source)


def members(source: Source) -> Iterable[str]:
    """Return the names of the shards."""
    return [name for name in shard_index.read(source).shards if not set_index.why_unsafe(name)]


def read(source: Source) -> Checkpoint:
    """List a set. Raises FormatError where a shard is none, or holds something else than the index says."""
    index = shard_index.read(source)
    if not index.weight_map:
        raise FormatError("index names no tensors")
    for name in index.shards:
        if why := set_index.why_unsafe(name):
            raise FormatError(f"shard {name!r} {why}")
    _allow_open(2 * len(index.shards) + SPARE)
    folder = Path(source.name).parent
    shards = tuple(Shard(name, _read_shard(folder / name)) for name in index.shards)
    _check_places(index, shards)
    named = all(shard.checkpoint.format == SAFETENSORS for shard in shards)
    saved = ByName(index, shards) if named else ByFile(shards)
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
        document=ShardedDocument(source, index, shards, saved),
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


def _check_places(index: SetIndex, shards: Iterable[Shard]) -> None:
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
    return [p if p.path == p.storage else p._replace(place=ShardPlace(number, i)) for i, p in enumerate(params)]


def _moved_entries(number: int, shard: Shard) -> Iterator[Entry]:
    """Yield the entries of a shard whose storages have numbers as those of the set."""
    position = -1
    for entry in shard.checkpoint.entries:
        if isinstance(entry, Param):
            position += 1
            entry = _moved(entry, shard.name, ShardPlace(number, position))
        yield entry


def _moved(param: Param, name: str, at: ShardPlace | None) -> Param:
    """Return a param of a shard as one of the set."""
    storage = None if param.storage is None else f"{name}/{param.storage}"
    parts = tuple(_moved(part, name, None) for part in param.components) if param.components else ()
    return Param(*param[:5], storage, *param[6:10], parts, param.flags, at, *param[13:])


def _aliases(index: SetIndex, entries: Iterable[Entry]) -> Iterator[Param]:
    """Yield the params that only the index names, each the same as another."""
    if not index.aliases:
        return
    numbers = {name: i for i, name in enumerate(index.shards)}
    held: dict[str, Param] = {}
    for entry in entries:
        if isinstance(entry, Param) and entry.path in index.weight_map:
            number = numbers[index.weight_map[entry.path]]
            if (
                not isinstance(entry.place, ShardPlace) or entry.place.shard == number
            ):  # where the index says that it is
                held.setdefault(entry.path, entry)
    for alias, path in index.aliases.items():
        yield held[path]._replace(path=alias, place=ShardPlace(numbers[index.weight_map[path]], -1))


def _common(several: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata that all shards have in common."""
    first, *others = several
    return {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}


def index(source: Source) -> SetIndex:
    """Return the index: each shard is a checkpoint that can be read alone."""
    return shard_index.read(source)


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what the format of the shards cannot hold; a set that was read holds everything."""
    if isinstance(checkpoint.document, ShardedDocument):
        return []
    return format_of(division_of(checkpoint).form).losses(replace(checkpoint, document=None, keys={}))


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the places in the shards that hold tensors which no path names any more."""
    if not isinstance(checkpoint.document, ShardedDocument):
        return []
    return [place for sub in checkpoint.derived(parted).subs for place in format_of(sub.format).unlisted_tensors(sub)]


def layout_set(checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
    """Return the shards and the index; in a set that was read, an unchanged shard is one extent of its file."""
    document = checkpoint.document
    parts = (
        _new(checkpoint, names)
        if not isinstance(document, ShardedDocument)
        else edited_set(checkpoint, document, names)
    )
    return list(parts)


def verify(path: Path, meant: Checkpoint) -> None:
    """Do nothing beyond reading it back: each shard was verified when it was written."""


def verify_part(path: Path, was: str, meant: Checkpoint) -> None:
    """Read a shard that was just written, and open it with its own library."""
    from paramctl.formats.read_back import verify_listing

    sub = next(sub for name, sub in listings(meant) if name == was)
    verify_listing(_read_shard(path), sub)
    format_of(sub.format).verify(path, sub)


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about the shards, each with the name of its file."""
    assert isinstance(checkpoint.document, ShardedDocument)
    for name, shard in checkpoint.document.shards:
        for finding in format_of(shard.format).audit(shard, on_progress):
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
        yield from (finding._replace(file=name) for finding in format_of(shard.format).audit(shard, on_progress))


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles in all shards, each with the name of its file."""
    from paramctl.formats import registry

    for name in members(source):
        shard = open_source(str(Path(source.name).parent / name))
        if form := registry.single(shard):
            yield from ((f"{name}: {part}", run) for part, run in form.code(shard))


def _new(checkpoint: Checkpoint, names: Mapping[str, str]) -> Iterator[Part]:
    if not checkpoint.params:
        raise UsageError("there is no tensor, and a set of shards needs one")
    weight_map: dict[str, str] = {}
    subs = list(shards_of(checkpoint))
    for name, sub in subs:
        weight_map |= dict.fromkeys(named_paths(sub), names.get(name, name))
        yield Part(names.get(name, name), tuple(format_of(sub.format).layout(sub)), name)
    if len(weight_map) < sum(len(sub.params) - len(sub.tied_to) for _, sub in subs):
        raise UsageError("two tensors print alike, and an index has one name for each")
    stem, suffix = STEMS[division_of(checkpoint).form]
    name = f"{stem}{suffix}.index.json"
    document = {"metadata": totals_of(sub for _, sub in subs), "weight_map": dict(sorted(weight_map.items()))}
    yield Part(names.get(name, name), (index_json(document),), name)
