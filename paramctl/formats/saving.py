"""Save a checkpoint: one format lays it out, one writer writes it, and it is read back before it counts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    """Write `checkpoint` to `target`, a folder or an index if it is a set, and return the number of bytes.

    It keeps its own format unless another is given. A file is read back before it takes its name: its
    headers, offsets and sizes, and by the format's own library if that could read the source.
    Raises FileError if it cannot be written, UsageError if a file is in the way.
    """
    job = _job(checkpoint, form)
    job.check_target(target)  # refuse before the work, not after it
    job.check_content()
    return job.write(target, on_progress)


def plan(checkpoint: Checkpoint, target: Target | None, form: AnyFormat | None = None) -> Plan:
    """Return what `save` would read, copy and write, and how; nothing is written. No target is a stream."""
    job = _job(checkpoint, form)
    job.check_content()
    return job.plan(target)


def check_target(target: Target, checkpoint: Checkpoint, form: AnyFormat | None = None) -> None:
    """Raise the error of `save` for a target that cannot be written, before any work is done."""
    _job(checkpoint, form).check_target(target)


def _job(checkpoint: Checkpoint, form: AnyFormat | None) -> _FileJob | _SetJob:
    """Return the job of saving a checkpoint in a format, or in its own."""
    form = form or BY_NAME[checkpoint.format]
    if whole := as_set(form):
        return _SetJob(checkpoint, whole)
    return _FileJob(checkpoint, next(found for found in FORMATS if found.NAME == form.NAME))


class _FileJob(NamedTuple):
    """The job of saving a checkpoint as one file."""

    checkpoint: Checkpoint
    form: Format

    def check_target(self, target: Target) -> None:
        """Raise UsageError or FileError if the target cannot be written."""
        if not isinstance(target, Stream):
            file_writer.destination(target)

    def check_content(self) -> None:
        """Raise UsageError if the format cannot hold one of the tensors."""
        _check_content(self.checkpoint, self.form)

    def plan(self, target: Target | None) -> Plan:
        """Return what `write` would do."""
        return file_writer.plan(self.form.layout(self.checkpoint), target)

    def write(self, target: Target, on_progress: ProgressCallback) -> int:
        """Write the file, and return its bytes."""
        segments, verify = self.form.layout(self.checkpoint), partial(_verify, self.form, self.checkpoint)
        return file_writer.write(segments, target, self.checkpoint.sources, verify, on_progress)


class _SetJob(NamedTuple):
    """The job of saving a checkpoint as a set of files."""

    checkpoint: Checkpoint
    form: SetFormat

    def check_target(self, target: Target) -> None:
        """Raise UsageError or FileError if the target cannot be written."""
        set_writer.destination(target, self.checkpoint.sources, self.form.SUFFIXES)

    def check_content(self) -> None:
        """Raise UsageError if the format cannot hold one of the tensors."""
        _check_content(self.checkpoint, self.form)

    def plan(self, target: Target | None) -> Plan:
        """Return what `write` would do."""
        return set_writer.plan(self._for_writer(), target)

    def write(self, target: Target, on_progress: ProgressCallback) -> int:
        """Write the files, the index last, and return their bytes."""
        return set_writer.write(self._for_writer(), target, on_progress)

    def _for_writer(self) -> set_writer.SetJob:
        """Return what the writer of sets needs, which knows no format."""
        layout = partial(self.form.layout_set, self.checkpoint)
        verify = partial(_verify, self.form, self.checkpoint)
        verify_part = partial(self.form.verify_part, meant=self.checkpoint)
        return set_writer.SetJob(layout, self.checkpoint.sources, self.form.SUFFIXES, verify, verify_part)


def _verify(form: AnyFormat, meant: Checkpoint, path: Path) -> None:
    """Read back what was written to `path`. Raises FormatError if it does not list as `meant`."""
    verify_listing(form.read(open_source(str(path))), meant)
    form.verify(path, meant)


def _check_content(checkpoint: Checkpoint, form: AnyFormat) -> None:
    """Raise UsageError if a format cannot hold one of the tensors."""
    lost = [loss for loss in form.losses(checkpoint) if isinstance(loss.entry, Param)]
    if lost:
        raise UsageError(f"{form.NAME} cannot hold {lost[0].text}", hint="'paramctl convert --lossy' leaves it out")
