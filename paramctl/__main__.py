"""The command `paramctl`, also `python -m paramctl`."""

import contextlib
import os
import signal
import sys


def run() -> int:
    """Run the command line. Ctrl-C while it is still being imported ends it quietly."""
    _fill_closed_descriptors()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from paramctl.cli.app import main

    code = main()
    if "torch" not in sys.modules:  # which has threads and C libraries to end in order
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End here: all was written, and to take 60,000 tensors apart takes a tenth of the time to list them."""
    with contextlib.suppress(OSError):  # then Python says so in its own way
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


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
