"""The command `paramctl`, also `python -m paramctl`."""

import signal
import sys


def run() -> int:
    """Run the command line. Ctrl-C while it is still being imported ends it quietly."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from paramctl.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
