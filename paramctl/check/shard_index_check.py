"""Check that the index of a sharded set and its shards agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from paramctl.check.declared_ties import CONFIG, embeddings, says_tied
from paramctl.check.integrity import compare_declared_tie
from paramctl.errors import FormatError, some
from paramctl.files.set_names import EDITION
from paramctl.files.sources import open_source
from paramctl.findings import Finding
from paramctl.formats import registry
from paramctl.formats.set_index import SetIndex
from paramctl.model.checkpoint import Checkpoint


class ShardSummary(NamedTuple):
    """A summary of a shard: its paths, and its `own` paths, which are not tied to another in it.

    `nbytes` counts the bytes of tied params once, `all_nbytes` under each name. `is_sound` tells that no damage was
    found.
    """

    file: str
    paths: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    is_readable: bool = False
    tensors: int = 0
    nbytes: int = 0
    all_nbytes: int = 0
    is_sound: bool = False

    @staticmethod
    def of(file: str, checkpoint: Checkpoint | None, findings: Iterable[Finding]) -> ShardSummary:
        """Return the summary of a checkpoint, or of a shard that cannot be read."""
        if checkpoint is None:
            return ShardSummary(file)
        own = [param for i, param in enumerate(checkpoint.params) if i not in checkpoint.tied_to]
        return ShardSummary(
            file,
            frozenset(param.path for param in checkpoint.params),
            frozenset(param.path for param in own),
            True,
            len(checkpoint.params),
            sum(param.nbytes for param in own),
            sum(param.nbytes for param in checkpoint.params),
            not any(finding.group == "integrity" and finding.level != "note" for finding in findings),
        )


def index_mismatches(index: SetIndex, shards: Sequence[ShardSummary]) -> Iterator[Finding]:
    """Report where the index and the readable shards disagree."""
    if not index.weight_map:
        yield Finding("error", "integrity", "shard-index", None, "the index names no tensors")
    named: dict[str, set[str]] = {}
    for path, file in index.weight_map.items():
        named.setdefault(file, set()).add(path)
    readable = [shard for shard in shards if shard.is_readable]
    for shard in readable:
        for paths, what in (
            (named[shard.file] - shard.paths, "lacks {}, which the index says it holds"),
            (shard.own - named[shard.file], "holds {}, which the index does not list"),
        ):
            if paths:
                yield Finding("error", "integrity", "shard-index", None, what.format(some(sorted(paths))), shard.file)
    times = Counter(path for shard in readable for path in shard.paths)
    if twice := sorted(path for path, n in times.items() if n > 1):
        what = f"several shards hold {some(twice)}: an edit by that name is ambiguous"
        yield Finding("warning", "integrity", "alike", None, what)
    # Indexes made before transformers knew ties count a tied tensor under each of its names.
    sizes = [sum(shard.nbytes for shard in readable), sum(shard.all_nbytes for shard in readable)]
    if len(readable) == len(named) and index.total_size not in (None, *sizes):
        what = f"the index claims {index.total_size:,} bytes of tensors (total_size), and the shards hold {sizes[0]:,}"
        yield Finding("warning", "integrity", "total-size", None, what)


def unlisted_shards(index: SetIndex) -> Iterator[Finding]:
    """Report files beside an index that are named like its shards, but for the numbers, and not listed."""
    named = set(index.shards)
    calls = set(map(_without_numbers, named))
    for name in sorted(path.name for path in index.folder.iterdir()):
        if name not in named and _without_numbers(name) in calls:
            what = "is named like a shard of the set, but the index does not list it: loaders ignore it"
            yield Finding("note", "integrity", "shard-unnamed", None, what, name)


def _without_numbers(name: str) -> str:
    """Return a file name with its numbers as zeros."""
    return _NUMBERS.sub("0", EDITION.sub("", name))


_NUMBERS = re.compile("[0-9]+")


def untied_embeddings(folder: Path, shards: Sequence[ShardSummary]) -> Iterator[Finding]:
    """Report embeddings that the configuration beside a set declares to be one tensor, and that differ."""
    if not says_tied(folder):
        return
    holder = {path: shard for shard in shards for path in shard.paths}
    for one, other in embeddings(holder):
        if holder[one].is_sound and holder[other].is_sound:
            yield from _differing(folder, holder[one].file, one, holder[other].file, other)


def _differing(folder: Path, file: str, path: str, other_file: str, other: str) -> Iterator[Finding]:
    """Report the difference of two tensors of a set."""
    try:
        a = registry.read(open_source(str(folder / file)))
        b = a if file == other_file else registry.read(open_source(str(folder / other_file)))
    except FormatError:
        return
    for finding in compare_declared_tie((a, _position(a, path)), (b, _position(b, other)), CONFIG):
        yield finding._replace(file=file)


def _position(checkpoint: Checkpoint, path: str) -> int:
    """Return the position of the param of that path."""
    return next(i for i, param in enumerate(checkpoint.params) if param.path == path)
