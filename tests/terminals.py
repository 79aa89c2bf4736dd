"""What a command shows on a terminal: a process of its own, whose three streams are one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def shown(columns: int, *args: str, code: int = 0, **env: str) -> str:
    """What `paramctl` shows, standard error too, on a terminal of so many columns; it must end with `code`."""
    reader, writer = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if "COLOR" not in key}
    settings = {**clean, "TERM": "xterm", "COLUMNS": str(columns), "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "paramctl", *args]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=settings) as process:
        os.close(writer)
        out = b""
        try:
            while data := os.read(reader, 65536):
                out += data
        except OSError:  # how a terminal says that nobody writes any more
            pass
        os.close(reader)
        assert process.wait() == code
    return out.decode().replace("\r\n", "\n")
