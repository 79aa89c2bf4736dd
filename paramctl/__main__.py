"""The command `paramctl`, also `python -m paramctl`."""

import os
import signal
import sys


def run() -> int:
    """Run the command line. Ctrl-C while it is still being imported ends it quietly."""
    _fill_closed_descriptors()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from paramctl.cli import main

    return main()


def _fill_closed_descriptors() -> None:
    """Put something that refuses each use where standard input, output or error is closed.

    The next file to be opened would else get that number: a report could land in a checkpoint.
    """
    for fd, refused in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, refused)  # gets the lowest number that is free, which is `fd`


if __name__ == "__main__":
    sys.exit(run())
