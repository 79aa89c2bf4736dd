"""How the tensors of a new sharded set are divided into files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from paramctl.errors import UsageError
from paramctl.formats import set_index
from paramctl.formats.protocol import AnyFormat
from paramctl.formats.registry import FORMATS, as_set, named
from paramctl.formats.sets import shard_index
from paramctl.model.checkpoint import Checkpoint

SAFETENSORS, TORCH = "safetensors", "torch-zip"
STEMS = {SAFETENSORS: ("model", ".safetensors"), TORCH: ("pytorch_model", ".bin")}  # as transformers calls them
FORMAT = {"format": "pt"}  # metadata without which transformers takes no safetensors file
LIMIT = 5_000_000_000  # bytes of a shard, unless another size is asked for
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}  # fmt: skip


class Division(NamedTuple):
    """The division of a checkpoint into a new set: shards of that format, of at most `limit` bytes of tensors each."""

    form: str = SAFETENSORS
    limit: int = LIMIT

    @property
    def set_format(self) -> AnyFormat:
        """The format of the whole set."""
        return named(shard_index.NAME)


def shard_size(text: str) -> int:
    """Return the bytes that a size such as `5GB`, `500MB` or `1GiB` stands for. Raises UsageError for other texts."""
    found = _SIZE.fullmatch(text.strip())
    unit = found and _UNITS.get(found[2])
    nbytes = int(float(found[1]) * unit) if found and unit else 0
    if nbytes < 1:
        raise UsageError(f"'{text}' is no size of a shard", hint="say it like 5GB, 500MB or 1GiB")
    return nbytes


def division_for(output: str, to: str | None, size: str | None) -> Division | None:
    """Return how the output is divided into shards; None if it becomes one file, or a set of another kind.

    Raises UsageError where the name of the output, the format and the size contradict one another.
    """
    index = next((ending for ending in set_index.ENDINGS if output.endswith(ending)), None)
    suffix = Path(output).suffix.lower()
    whole = as_set(named(to)) if to is not None else None
    if index is None and not output.endswith("/") and size is None and whole is None:
        return None
    if index is None and any(suffix in form.SUFFIXES for form in FORMATS):
        hint = "name a directory, or an index such as model.safetensors.index.json"
        raise UsageError("is one file, and shards are several", hint=hint, file=output)
    if index is None and size is None and whole is not None and whole.NAME != shard_index.NAME:
        return None
    kind = TORCH if index == ".bin.index.json" else SAFETENSORS
    asked = kind if to in (None, shard_index.NAME) else named(str(to)).NAME
    if asked not in STEMS:
        raise UsageError(f"there are no shards in {asked}", hint=f"name one of {', '.join(STEMS)}")
    if index is not None and asked != kind:
        raise UsageError(f"is the index of {kind} shards, not of {asked}", hint=f"say --to {kind}", file=output)
    return Division(asked, LIMIT if size is None else shard_size(size))


class Divided(NamedTuple):
    """The params, by position, that each shard of a new set holds."""

    division: Division
    shards: tuple[tuple[int, ...], ...]

    def named(self, checkpoint: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
        """Yield each shard with its name, as a checkpoint of its own."""
        stem, suffix = STEMS[self.division.form]
        metadata = {**FORMAT, **checkpoint.metadata} if self.division.form == SAFETENSORS else {}
        for i, positions in enumerate(self.shards, 1):
            entries = tuple(checkpoint.params[at] for at in positions)
            sub = replace(
                checkpoint, format=self.division.form, entries=entries, metadata=metadata, keys={}, document=None
            )
            yield f"{stem}-{i:05}-of-{len(self.shards):05}{suffix}", sub


def division_of(checkpoint: Checkpoint) -> Division:
    """Return the division that a checkpoint was converted with, or the usual one."""
    return checkpoint.document if isinstance(checkpoint.document, Division) else Division()


def divided(checkpoint: Checkpoint) -> Divided:
    """Return the tensors in their order, as many in a shard as there is room for; tied ones are in the same shard."""
    division = division_of(checkpoint)
    shards: list[list[int]] = [[]]
    shard_of: dict[int, int] = {}
    room = division.limit
    for i, param in enumerate(checkpoint.params):
        if i in checkpoint.tied_to:
            shards[shard_of[checkpoint.tied_to[i]]].append(i)
            continue
        if param.nbytes > room and shards[-1]:
            shards.append([])
            room = division.limit
        shard_of[i] = len(shards) - 1
        shards[-1].append(i)
        room -= param.nbytes
    return Divided(division, tuple(map(tuple, shards)))
