"""crash_write.py for a change in place: whoever looks at the file looks after a paramctl command did.

python recovering.py CRASH_WRITE ARGUMENT…

A change in place that is killed may be half done until the next paramctl command on that file undoes it.
crash_write.py compares before it runs `--verify`; here that command runs first. All else is as it judges.
A run that is not killed must have put the file in order itself, unless it said that it could not: as
where every later write fails too.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

COULD_NOT = "is half changed, and its old bytes could not be restored"


def main() -> None:
    """Run crash_write.py on the arguments that are left."""
    crash_write, sys.argv = load(Path(sys.argv[1])), sys.argv[1:]
    judge = crash_write.check

    def check(asked: Any, case: Any, strategy: str, what: str, code: int, error: str, killed: bool = False, **more: Any) -> Any:
        if asked.verify and (killed or COULD_NOT in error):
            command = [word.replace("{file}", case.target) for word in shlex.split(asked.verify)]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(command, env=crash_write.ENV, check=False, **quiet)  # type: ignore[call-overload]
        return judge(asked, case, strategy, what, code, error, killed=killed, **more)

    crash_write.check = check
    crash_write.main()


def load(path: Path) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
