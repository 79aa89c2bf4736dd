"""Define the errors, by who has to act.

ParamctlError
├── UsageError      exit 2   the request cannot apply: shape, scheme, index, option, target exists
├── NoMatch         exit 1   a selection names nothing in this checkpoint
└── FileError       exit 3   a file cannot be read or written
    ├── FormatError          its bytes are not what its format promises
    │   └── TwoReadings      its bytes mean one thing to one reader and another thing to another
    ├── ReaderLeft           the reader of a pipe has closed it: nothing is printed about that
    └── Unsupported          its bytes may be fine, but paramctl cannot do this with them

Stopped is not one of them: nothing went wrong, a signal asks the command to end.

Every message is one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class ParamctlError(Exception):
    """A failure with a message for the user.

    `what` says what is wrong and where in the file; `hint` says what to do about it; `file` is the checkpoint it
    happened in, added by the code that knows it.
    """

    exit_code = 3

    def __init__(self, what: str, *, hint: str = "", file: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.file = file

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        todo = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.what}{todo}"


class UsageError(ParamctlError):
    """The request cannot apply to this checkpoint, or contradicts itself."""

    exit_code = 2


class NoMatch(ParamctlError, LookupError):
    """A selection names nothing in the checkpoint."""

    exit_code = 1


class FileError(ParamctlError):
    """A file cannot be read or written."""


class FormatError(FileError):
    """The bytes of a file are not what its format promises."""


class TwoReadings(FormatError):
    """The bytes of a file mean one thing to one reader and another thing to another: `check` calls it dangerous."""

    def __init__(self, what: str, *, hint: str = "do not load it: readers disagree", file: str = "") -> None:
        super().__init__(what, hint=hint, file=file)


class ReaderLeft(FileError):
    """The reader of a pipe has closed it before it got everything, as `head` does."""


class Unsupported(FileError):
    """The file may be sound, but paramctl cannot do this with it; its format may be unsupported."""


class Stopped(BaseException):
    """A signal asks the command to clean up and end; not an Exception, so that no handler holds it up."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first of many names and how many more there are: `a, b and 1,200 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
