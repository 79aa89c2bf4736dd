"""Answer for a format that is only read: `lazy` asks here for what the module of a format does not provide.

Such a module has NAME, SUFFIXES, `recognises` and `read`. It adds `code` where its files hold pickles, and `audit`
where it can check more than the checksums of its storages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from paramctl.errors import FormatError, UsageError
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.findings import Finding
from paramctl.formats.protocol import Writes
from paramctl.model.checkpoint import Checkpoint, Loss
from paramctl.progress import ProgressCallback, ignore


class ReadOnly:
    """The part of a `Format` that a format called `name` leaves out because it is not written."""

    WRITES: Writes = "nothing"
    KEEPS_TIES = False  # no command may advise to tie what cannot be saved
    KEEPS_METADATA = False

    def __init__(self, name: str) -> None:
        self._name = name

    def losses(self, checkpoint: Checkpoint) -> list[Loss]:
        """Raise UsageError: no checkpoint can be written in this format, with losses or without."""
        raise UsageError(
            f"paramctl reads {self._name} and does not write it",
            hint="convert it to another format with 'paramctl convert FILE -o NEW.safetensors'",
        )

    def layout(self, checkpoint: Checkpoint) -> Iterable[Segment]:
        """Raise UsageError, as `losses` does, which is asked first."""
        self.losses(checkpoint)
        return ()

    def unlisted_tensors(self, checkpoint: Checkpoint) -> list[str]:
        """Return no places: nothing is taken out of a file that is not written."""
        return []

    def verify(self, path: Path, meant: Checkpoint) -> None:
        """Do nothing: no file of this format was written."""

    def audit(self, checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
        """Report the storages whose bytes do not match their checksums."""
        for key, storage in checkpoint.saved.items():
            try:
                storage.check(key)
            except FormatError as error:
                yield Finding("error", "integrity", "checksum", None, error.what)

    def code(self, source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Return no pickles."""
        return iter(())
