"""The protocols that the module of every format meets; nothing here knows any format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.model.checkpoint import Checkpoint, Loss
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.files.set_names import Part
    from paramctl.findings import Finding
    from paramctl.formats.set_index import SetIndex


# What a format can write: any checkpoint, only what was read from its own files (a program needs its code), or nothing.
Writes = Literal["any", "own", "nothing"]


class Readable(Protocol):
    """The functions that the module of a read-only format must provide; `read_only` adds the rest of `Format`.

    `recognises` decides by the bytes alone. `read` lists a file without reading its values.
    """

    NAME: str
    SUFFIXES: tuple[str, ...]

    def recognises(self, head: bytes, source: Source) -> bool: ...
    def read(self, source: Source) -> Checkpoint: ...


class AnyFormat(Readable, Protocol):
    """The functions that every format provides, its module alone or with the help of `read_only`.

    `WRITES` says which checkpoints it can write. `KEEPS_TIES` says whether two params can be one tensor in it; else
    each is saved in full. `KEEPS_METADATA` says whether it has a place for `Checkpoint.metadata`.
    `losses` are the entries of a checkpoint that this format has no place for, in their order;
    it raises UsageError where the format cannot write the checkpoint at all. `unlisted_tensors` says
    where the file would hold tensors beside its params that an edit took away from all of them. `verify`
    opens a file that was just written with the format's own library, where that is cheap and could open
    the source. `audit` says what is wrong with a file that can be read, every byte of it looked at; `code`
    are the pickles in a file that its own library might run, each with the name of the part it is in and what reads it.
    """

    WRITES: Writes
    KEEPS_TIES: bool
    KEEPS_METADATA: bool

    def losses(self, checkpoint: Checkpoint) -> list[Loss]: ...
    def unlisted_tensors(self, checkpoint: Checkpoint) -> list[str]: ...
    def verify(self, path: Path, meant: Checkpoint) -> None: ...
    def audit(self, checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]: ...
    def code(self, source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]: ...


class Format(AnyFormat, Protocol):
    """A format of one file: `layout` turns any checkpoint into segments, in the file's own form where it has one."""

    def layout(self, checkpoint: Checkpoint) -> Iterable[Segment]: ...


class SetFormat(AnyFormat, Protocol):
    """A format of several files in one folder, which is opened, and named in `SUFFIXES`, by its index.

    `recognises`, `read`, `verify` and `code` are given the index, by whatever name: it is verified under a
    temporary one. `read` finds the others beside `source.name`, by plain names only, opens each as
    `open_source(str(folder / name))`, and puts the index and then all of these into `Checkpoint.sources`.
    `members` are their names, found without opening any: one may be half changed, and is put right first. `index` is
    given if each file of the set is a checkpoint that can be read alone, and `check` checks each by itself. `apart`
    says what is wrong with each file of a set that `read` refuses as a whole.

    `layout_set` gives every file of the set in an order in which it may be written, the index last. A part
    that does not change is one extent of its whole file, and then it is not written in place. `names`
    says which parts go by other names than their own (those keep theirs in `Part.was`), which the index must
    then say; `verify_part` looks at a part that was written, before it gets its name; `was` is its own.
    Only `set_writer` writes them.
    """

    def members(self, source: Source) -> Iterable[str]: ...
    def index(self, source: Source) -> SetIndex | None: ...
    def apart(self, source: Source, on_progress: ProgressCallback = ignore) -> Iterator[Finding]: ...
    def layout_set(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]: ...
    def verify_part(self, path: Path, was: str, meant: Checkpoint) -> None: ...
