"""A checkpoint in a format, written: laid out by the one, written by the other, read back before it counts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from paramctl import file_sets, files
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import UsageError
from paramctl.files import Plan
from paramctl.formats import BY_NAME, FORMATS, AnyFormat, Format, SetFormat, as_set, verify_listing
from paramctl.sources import open_source
from paramctl.targets import Stream, Target
from paramctl.watch import Watch, nobody


def save(checkpoint: Checkpoint, target: Target, form: AnyFormat | None = None, watch: Watch = nobody) -> int:
    """Write `checkpoint` to `target`, a folder or an index where it is a set, and return the number of bytes.

    It keeps its own format unless another is given. A file is read back before it takes its name: its
    headers, offsets and sizes, and by the format's own library where that could read the source.
    Raises FileError where it cannot be written, UsageError where a file is in the way.
    """
    form = form or BY_NAME[checkpoint.format]
    check_target(target, checkpoint, form)  # refuse before the work, not after it
    _check_held(checkpoint, form)

    def verify(path: Path) -> None:
        verify_listing(form.read(open_source(str(path))), checkpoint)
        form.verify(path, checkpoint)

    if whole := as_set(form):
        return file_sets.write(_job(checkpoint, whole, verify), target, watch)
    return files.write(_one_file(form).layout(checkpoint), target, checkpoint.sources, verify, watch)


def plan(checkpoint: Checkpoint, target: Target | None, form: AnyFormat | None = None) -> Plan:
    """What `save` would read, copy and write, and how; nothing is written. No target is a stream."""
    form = form or BY_NAME[checkpoint.format]
    _check_held(checkpoint, form)
    if whole := as_set(form):
        return file_sets.plan(_job(checkpoint, whole, lambda path: None), target)
    return files.plan(_one_file(form).layout(checkpoint), target)


def check_target(target: Target, checkpoint: Checkpoint, form: AnyFormat | None = None) -> None:
    """Raise what `save` would for what is in the way, before any work is done."""
    form = form or BY_NAME[checkpoint.format]
    if as_set(form):
        file_sets.destination(target, checkpoint.sources, form.SUFFIXES)
    elif not isinstance(target, Stream):
        files.destination(target)


def _job(checkpoint: Checkpoint, form: SetFormat, verify: files.Verify) -> file_sets.Job:
    """The set that `form` makes of a checkpoint."""

    def verify_part(path: Path, was: str) -> None:
        form.verify_part(path, was, checkpoint)

    return file_sets.Job(partial(form.layout_set, checkpoint), checkpoint.sources, form.SUFFIXES, verify, verify_part)


def _one_file(form: AnyFormat) -> Format:
    return next(found for found in FORMATS if found.NAME == form.NAME)


def _check_held(checkpoint: Checkpoint, form: AnyFormat) -> None:
    """Raise UsageError where a format cannot hold one of the tensors."""
    lost = [loss for loss in form.losses(checkpoint) if isinstance(loss.entry, Param)]
    if lost:
        raise UsageError(f"{form.NAME} cannot hold {lost[0].text}", hint="'paramctl convert --lossy' leaves it out")
