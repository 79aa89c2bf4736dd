"""Every format paramctl reads and writes, and how a file finds its own.

A format is a module that meets `Format`, or `SetFormat`. A new one is one file and one line below.

Which format a file has says the first of `_TRIED` that recognises its bytes, in torch.load's order of trial:

1. A name that ends in `.safetensors` goes to safetensors in torch.load, whatever the bytes are; it runs nothing, and
   fails for others. Here the bytes decide, whatever the name: whoever renames the file gets no other verdict.
2. `PK` and the bytes 3 and 4 in front: a zip archive. TorchScript is one whose list of records has constants.pkl in
   just that case of letters (`torch_zip` refuses another case, which torch.jit.load would find).
3. What tarfile opens, from files on disk only (`tars`): a stream goes on to 4. What begins as both is refused.
4. The old format: the first pickle is carried out whatever it is, and must be the magic number (`torch_legacy`).

torch.distributed unpickles whatever is called `.metadata`, and loads each object and chunk in the other files as 2 or
4 (`distributed`); torch.export does so with archives in an archive. Every loader that unpickles begins at byte 0:
`check` judges the pickle that a file of any format begins with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paramctl import sets, temporary
from paramctl.checkpoint import Checkpoint, Loss, Param
from paramctl.dtypes import PAIRS
from paramctl.errors import FormatError, ParamctlError, UsageError
from paramctl.formats import later, tar_header
from paramctl.formats.hints import of_a_set, why_not
from paramctl.formats.later import Later
from paramctl.segments import Segment
from paramctl.sources import STDIN, Source, open_source
from paramctl.watch import Watch, nobody

if TYPE_CHECKING:
    from paramctl.findings import Finding
    from paramctl.sets import Part


class AnyFormat(Protocol):
    """What every format's module provides.

    `KEEPS_TIES` says whether two params can be one tensor in it; else each is saved in full. `recognises` decides
    by the bytes alone. `read` lists a file without reading its values.
    `losses` are the entries of a checkpoint that this format has no place for, in their order. `left` says
    where the file would hold tensors beside its params that an edit took away from all of them. `verify`
    opens a file that was just written with the format's own library, where that is cheap and could open
    the source. `audit` says what is wrong with a file that can be read, every byte of it looked at; `code`
    are the pickles in a file that its own library might run, each with the name of the part it is in and what reads it.
    """

    NAME: str
    SUFFIXES: tuple[str, ...]
    KEEPS_TIES: bool

    def recognises(self, head: bytes, source: Source) -> bool: ...
    def read(self, source: Source) -> Checkpoint: ...
    def losses(self, checkpoint: Checkpoint) -> list[Loss]: ...
    def left(self, checkpoint: Checkpoint) -> list[str]: ...
    def verify(self, path: Path, meant: Checkpoint) -> None: ...
    def audit(self, checkpoint: Checkpoint, watch: Watch = nobody) -> Iterator[Finding]: ...
    def code(self, source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]: ...


class Format(AnyFormat, Protocol):
    """A format of one file: `layout` turns any checkpoint into segments, in the file's own form where it has one."""

    def layout(self, checkpoint: Checkpoint) -> Iterable[Segment]: ...


class SetFormat(AnyFormat, Protocol):
    """A format of several files in one folder, which is opened, and named in `SUFFIXES`, by its index.

    `recognises`, `read`, `verify` and `code` are given the index, by whatever name: it is verified under a
    temporary one. `read` finds the others beside `source.name`, by plain names only, opens each as
    `open_source(str(folder / name))`, and puts the index and then all of these into `Checkpoint.sources`.
    `members` are their names, found without opening any: one may be half changed, and is put right first. `apart`
    says what is wrong with each file of a set that `read` refuses as a whole.

    `layout_set` gives every file of the set in an order in which it may be written, the index last. A part
    that does not change is one extent of its whole file, and then it is not written in place. `names`
    says which parts go by other names than their own (those keep theirs in `Part.was`), which the index must
    then say; `verify_part` looks at a part that was written, before it gets its name; `was` is its own.
    Only `file_sets` writes them.
    """

    def members(self, source: Source) -> Iterable[str]: ...
    def apart(self, source: Source, watch: Watch = nobody) -> Iterator[Finding]: ...
    def layout_set(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]: ...
    def verify_part(self, path: Path, was: str, meant: Checkpoint) -> None: ...


if TYPE_CHECKING:  # here the type checker holds every module to its protocol
    from paramctl.formats import (
        distributed,
        distributed_shards,
        safetensors,
        sharded,
        torch_export,
        torch_legacy,
        torch_tar,
        torch_zip,
        torchscript,
        torchscript_json,
    )

    _MEET: tuple[Format, ...] = (
        torch_zip, torchscript, torchscript_json, torch_export, torch_legacy, torch_tar, safetensors
    )  # fmt: skip
    _MEET_AS_SETS: tuple[SetFormat, ...] = (sharded, distributed, distributed_shards)


def _later(module: str, name: str, suffixes: tuple[str, ...], may_be: later.MayBe) -> Any:
    return Later(module, name, suffixes, may_be)


_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_SCRIPT = (".jit", ".ptl", ".torchscript", ".pts", ".pt", ".pth")
_INDEX = (".safetensors.index.json", ".bin.index.json")
_ZIP = later.begins(b"PK\x03\x04")
FORMATS: tuple[Format, ...] = (
    _later("torch_zip", "torch-zip", _TORCH, _ZIP),
    _later("torchscript", "torchscript", _SCRIPT, _ZIP),
    _later("torchscript_json", "torchscript-json", _SCRIPT, _ZIP),
    _later("torch_export", "torch-export", (".pt2",), _ZIP),
    _later("torch_tar", "torch-tar", _TORCH, lambda head, _: tar_header.recognises(head)),
    _later("torch_legacy", "torch-legacy", _TORCH, later.begins(b"\x80", b"L")),
    _later("safetensors", "safetensors", (".safetensors",), later.always),
)
SETS: tuple[SetFormat, ...] = (
    _later("sharded", "sharded", _INDEX, later.called(*_INDEX, begins=b"{")),
    _later("distributed", "dcp", (".metadata",), later.called(".metadata", begins=b"\x80")),
    _later("distributed_shards", "dcp-safetensors", (), later.holds(b"DCP_SHARDING_INFO")),
)
# A file is of the first of these that recognises it: before the name counts, what torch.load would take it for.
_TRIED: tuple[AnyFormat, ...] = (*FORMATS[:-1], *SETS, FORMATS[-1])
BY_NAME: dict[str, AnyFormat] = {form.NAME: form for form in (*FORMATS, *SETS)}
HEAD = 512  # bytes that tell every format from every other


def open(name: str, watch: Watch = nobody) -> Checkpoint:
    """List the checkpoint in the file `name` (`-`: standard input), or in that folder; no value is read.

    A patch of it that was interrupted is rolled back first. Raises FileError if it cannot be read,
    FormatError if its bytes are not a checkpoint's, Unsupported if they are one's of a kind that is not read.
    """
    try:
        found = locate(name)
        recover(found, watch)
        return read(open_source(found, watch))
    except ParamctlError as error:
        error.file = error.file or ("standard input" if name == "-" else name)
        raise


def locate(name: str) -> str:
    """The file that is opened for `name`: of a folder that holds a set, its index, or its first file if it needs none.

    Else it is `name` itself. Raises UsageError where a folder has several indexes.
    """
    if name == STDIN or not os.path.isdir(name):  # noqa: PTH112 - Path's raises OSError for a name that is too long
        return name
    return str(sets.index_in(Path(name)) or _first_in(Path(name)) or name)


def _first_in(folder: Path) -> Path | None:
    """The first file of a set without an index, by its bytes; None where a folder holds something else."""
    first = sets.first_in(folder)
    try:
        return first if first is not None and as_set(of(open_source(str(first)))) else None
    except ParamctlError:
        return None


def recover(name: str, watch: Watch = nobody) -> int:
    """Roll back a patch of the file `name`, or of one of its set, that was interrupted, and return its bytes.

    0 if there was none. Raises FileError if one is under way, or if it cannot be rolled back.
    """
    if name == STDIN or "\0" in name:
        return 0
    path = Path(locate(name))
    paths = [Path(os.path.realpath(each)) for each in (path, *(path.parent / member for member in _members(path)))]
    return sum(_rolled_back(each, watch) for each in paths if os.path.lexists(temporary.journal_of(each)))


def _rolled_back(path: Path, watch: Watch) -> int:
    from paramctl import journal

    return journal.roll_back(path, watch)


def _members(path: Path) -> list[str]:
    """The others of a set, where a journal lies beside its index; none where it cannot be read, which shows."""
    if not sets.stands_for_others(path.name) or not any(path.parent.glob(".*.paramctl-journal")):
        return []
    try:
        source = open_source(str(path))
        form = of(source) if source.size else None
        return [*whole.members(source)] if (whole := as_set(form)) else []
    except ParamctlError:
        return []


def read(source: Source) -> Checkpoint:
    """List the checkpoint that `source` holds."""
    return _read(source, of)


def read_single(source: Source) -> Checkpoint:
    """List one file of a set, which is no index of others."""
    return _read(source, single)


def _read(source: Source, which: Callable[[Source], AnyFormat | None]) -> Checkpoint:
    if source.size == 0:
        raise FormatError("is empty", hint="check the command or the download that made it")
    if form := which(source):
        try:
            return form.read(source)
        except FormatError as error:
            error.hint = error.hint or of_a_set(source.name)
            raise
    head = source.read(0, min(HEAD, source.size))
    raise why_not(head, ", ".join(form.NAME for form in FORMATS))


def of(source: Source) -> AnyFormat | None:
    """The format of a file, by its bytes; None where it is none that paramctl knows."""
    head = source.read(0, min(HEAD, source.size))
    return next((form for form in _TRIED if form.recognises(head, source)), None)


def single(source: Source) -> Format | None:
    """The format of a file that is all of a checkpoint, or one of its shards."""
    head = source.read(0, min(HEAD, source.size))
    return next((form for form in FORMATS if form.recognises(head, source)), None)


def as_set(form: AnyFormat | None) -> SetFormat | None:
    """A format, if it is one of several files."""
    return next((found for found in SETS if form and found.NAME == form.NAME), None)


def by_suffix(path: Path, own: str = "") -> AnyFormat | None:
    """The format that files of this name usually have: the one called `own`, where several have such names."""
    if whole := next((form for form in SETS if path.name.endswith(form.SUFFIXES)), None):
        return whole
    found = [form for form in FORMATS if path.suffix.lower() in form.SUFFIXES]
    return next((form for form in found if own == form.NAME), found[0] if found else None)


def named(name: str) -> AnyFormat:
    """The format called `name`, or known by that suffix."""
    for form in BY_NAME.values():
        if name == form.NAME or f".{name.lstrip('.').lower()}" in form.SUFFIXES:
            return form
    known = ", ".join(form.NAME for form in (*FORMATS, *SETS) if form.SUFFIXES)
    raise UsageError(f"no format '{name}'", hint=f"name one of {known}")


def verify_listing(written: Checkpoint, meant: Checkpoint) -> None:
    """Raise FormatError unless `written` lists the tensors, shapes, dtypes and ties of `meant`."""
    if sorted(_summary(written)) != sorted(_summary(meant)):
        raise FormatError("was written, but does not read back as what was meant", hint="nothing was replaced")


def _summary(checkpoint: Checkpoint) -> Iterator[tuple[str, int, int, str]]:
    """Each param with the least of the paths it is tied to, whichever of them is the first."""
    labels = checkpoint.labels
    least: dict[int, str] = {}
    for group in checkpoint.groups():
        least.update(dict.fromkeys(group, min(labels[i] for i in group)))
    for i, (label, param) in enumerate(zip(labels, checkpoint.params, strict=True)):
        yield label, param.numel * _values_in(param), param.nbytes, least.get(i, "")


def _values_in(param: Param) -> int:
    """Values in one element: torch counts pairs of 4-bit floats, safetensors each of them."""
    return 2 if param.dtype.name == PAIRS else 1


__all__ = [
    "FORMATS",
    "SETS",
    "Format",
    "SetFormat",
    "by_suffix",
    "named",
    "open",
    "read",
]
