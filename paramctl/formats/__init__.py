"""Every format paramctl reads and writes, and how a file finds its own.

A format is a module that meets `Format`. A new one is one file and one name in FORMATS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from paramctl import files, journal
from paramctl.checkpoint import Checkpoint, Loss, Param
from paramctl.errors import FormatError, ParamctlError, UsageError
from paramctl.files import InPlace, NewFile, Plan, Stream, Target
from paramctl.formats import safetensors, torch_zip
from paramctl.formats.hints import kind_of
from paramctl.segments import Segment
from paramctl.sources import STDIN, Source, open_source
from paramctl.watch import Watch, nobody

if TYPE_CHECKING:
    from paramctl.findings import Finding


class Format(Protocol):
    """What a format's module provides.

    `recognises` decides by the bytes alone. `read` lists a file without reading its values; `layout`
    turns any checkpoint into segments, in the file's own form where it came from this format.
    `losses` are the entries of a checkpoint that this format has no place for, in their order. `left` says
    where the file would hold tensors beside its params that an edit took away from all of them. `verify`
    opens a file that was just written with the format's own library, where that is cheap and could open
    the source. `audit` says what is wrong with a file that can be read, every byte of it looked at; `code`
    are the pickles in a file that its own library might run, each with the name of the part it is in and what reads it.
    """

    NAME: str
    SUFFIXES: tuple[str, ...]

    def recognises(self, head: bytes, source: Source) -> bool: ...
    def read(self, source: Source) -> Checkpoint: ...
    def layout(self, checkpoint: Checkpoint) -> Iterable[Segment]: ...
    def losses(self, checkpoint: Checkpoint) -> list[Loss]: ...
    def left(self, checkpoint: Checkpoint) -> list[str]: ...
    def verify(self, path: Path, meant: Checkpoint) -> None: ...
    def audit(self, checkpoint: Checkpoint, watch: Watch = nobody) -> Iterator[Finding]: ...
    def code(self, source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]: ...


FORMATS: tuple[Format, ...] = (torch_zip, safetensors)
BY_NAME = {form.NAME: form for form in FORMATS}
HEAD = 512  # bytes that tell every format from every other


def open(name: str, watch: Watch = nobody) -> Checkpoint:
    """List the checkpoint in the file `name` (`-`: standard input); no value is read.

    A patch of it that was interrupted is rolled back first. Raises FileError if it cannot be read,
    FormatError if its bytes are not a checkpoint's.
    """
    try:
        recover(name, watch)
        return read(open_source(name, watch))
    except ParamctlError as error:
        error.file = error.file or ("standard input" if name == "-" else name)
        raise


def recover(name: str, watch: Watch = nobody) -> int:
    """Roll back a patch of the file `name` that was interrupted, and return its bytes; 0 if there was none.

    Raises FileError if one is under way, or if it cannot be rolled back.
    """
    if name == STDIN or "\0" in name:
        return 0
    return journal.roll_back(Path(os.path.realpath(name)), watch)


def read(source: Source) -> Checkpoint:
    """List the checkpoint that `source` holds."""
    if source.size == 0:
        raise FormatError("is empty", hint="check the command or the download that made it")
    if form := of(source):
        return form.read(source)
    head = source.read(0, min(HEAD, source.size))
    known = ", ".join(form.NAME for form in FORMATS)
    what, hint = kind_of(head) or ("is no checkpoint that paramctl knows", f"it reads {known}")
    raise FormatError(what, hint=hint)


def of(source: Source) -> Format | None:
    """The format of a file, by its bytes; None where it is none that paramctl knows."""
    head = source.read(0, min(HEAD, source.size))
    return next((form for form in FORMATS if form.recognises(head, source)), None)


def by_suffix(path: Path) -> Format | None:
    """The format that files of this name usually have."""
    for form in FORMATS:
        if path.suffix.lower() in form.SUFFIXES:
            return form
    return None


def named(name: str) -> Format:
    """The format called `name`, or known by that suffix."""
    for form in FORMATS:
        if name == form.NAME or f".{name.lstrip('.').lower()}" in form.SUFFIXES:
            return form
    known = ", ".join(form.NAME for form in FORMATS)
    raise UsageError(f"no format '{name}'", hint=f"name one of {known}")


def save(checkpoint: Checkpoint, target: Target, form: Format | None = None, watch: Watch = nobody) -> int:
    """Write `checkpoint` to `target` and return the number of bytes.

    It keeps its own format unless another is given. A file is read back before it takes its name: its
    headers, offsets and sizes, and by the format's own library where that could read the source.
    Raises FileError where it cannot be written, UsageError where a file is in the way.
    """
    form = form or BY_NAME[checkpoint.format]
    if isinstance(target, NewFile | InPlace):
        files.destination(target)  # refuse before the work, not after it
    segments = _laid_out(checkpoint, form)

    def verify(path: Path) -> None:
        _verify_listing(form.read(open_source(str(path))), checkpoint)
        form.verify(path, checkpoint)

    return files.write(segments, target, checkpoint.sources, verify, watch)


def plan(checkpoint: Checkpoint, target: Target | None, form: Format | None = None) -> Plan:
    """What `save` would read, copy and write, and how; nothing is written. No target is a stream."""
    return files.plan(_laid_out(checkpoint, form or BY_NAME[checkpoint.format]), target)


def _laid_out(checkpoint: Checkpoint, form: Format) -> Iterable[Segment]:
    """The segments that `form` makes of a checkpoint. Raises UsageError where it cannot hold one of its tensors."""
    lost = [loss for loss in form.losses(checkpoint) if isinstance(loss.entry, Param)]
    if lost:
        raise UsageError(f"{form.NAME} cannot hold {lost[0].text}", hint="'paramctl convert --lossy' leaves it out")
    return form.layout(checkpoint)


def _verify_listing(written: Checkpoint, meant: Checkpoint) -> None:
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
    return 2 if param.dtype.name == "float4_e2m1fn_x2" else 1


__all__ = ["FORMATS", "Format", "InPlace", "NewFile", "Stream", "by_suffix", "named", "open", "read", "save"]
