"""A checkpoint in a format, written: laid out by the one, written by the other, read back before it counts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from paramctl.errors import UsageError
from paramctl.files import file_writer, set_writer
from paramctl.files.file_writer import Plan
from paramctl.files.sources import open_source
from paramctl.files.targets import Stream, Target
from paramctl.formats.protocol import AnyFormat, Format, SetFormat
from paramctl.formats.read_back import verify_listing
from paramctl.formats.registry import BY_NAME, FORMATS, as_set
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.progress import ProgressCallback, ignore


def save(
    checkpoint: Checkpoint, target: Target, form: AnyFormat | None = None, on_progress: ProgressCallback = ignore
) -> int:
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
        return set_writer.write(_job(checkpoint, whole, verify), target, on_progress)
    return file_writer.write(_one_file(form).layout(checkpoint), target, checkpoint.sources, verify, on_progress)


def plan(checkpoint: Checkpoint, target: Target | None, form: AnyFormat | None = None) -> Plan:
    """Return what `save` would read, copy and write, and how; nothing is written. No target is a stream."""
    form = form or BY_NAME[checkpoint.format]
    _check_held(checkpoint, form)
    if whole := as_set(form):
        return set_writer.plan(_job(checkpoint, whole, lambda path: None), target)
    return file_writer.plan(_one_file(form).layout(checkpoint), target)


def check_target(target: Target, checkpoint: Checkpoint, form: AnyFormat | None = None) -> None:
    """Raise what `save` would for what is in the way, before any work is done."""
    form = form or BY_NAME[checkpoint.format]
    if as_set(form):
        set_writer.destination(target, checkpoint.sources, form.SUFFIXES)
    elif not isinstance(target, Stream):
        file_writer.destination(target)


def _job(checkpoint: Checkpoint, form: SetFormat, verify: file_writer.Verify) -> set_writer.SetJob:
    """Return the set that `form` makes of a checkpoint."""

    def verify_part(path: Path, was: str) -> None:
        form.verify_part(path, was, checkpoint)

    return set_writer.SetJob(
        partial(form.layout_set, checkpoint), checkpoint.sources, form.SUFFIXES, verify, verify_part
    )


def _one_file(form: AnyFormat) -> Format:
    return next(found for found in FORMATS if found.NAME == form.NAME)


def _check_held(checkpoint: Checkpoint, form: AnyFormat) -> None:
    """Raise UsageError where a format cannot hold one of the tensors."""
    lost = [loss for loss in form.losses(checkpoint) if isinstance(loss.entry, Param)]
    if lost:
        raise UsageError(f"{form.NAME} cannot hold {lost[0].text}", hint="'paramctl convert --lossy' leaves it out")
