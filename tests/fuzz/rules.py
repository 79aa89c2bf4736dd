"""Hold the reading of one input to the rules: only a ParamctlError leaves it, in 2 s and 300 MB, and it touches nothing."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fuzz import guard

from paramctl.errors import ParamctlError

SECONDS = 2.0  # of the processor, for each step
NBYTES = 300 << 20  # of memory more than before
LARGEST = (1 << 16) - 1  # bytes of an input that these limits are for
_PAGE = resource.getpagesize()
_MEMORY_IN_USE = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

Step = Callable[[], object]
Steps = Callable[[bytes, Path], Iterable[Step]]  # what is done with an input, in a folder of its own


class Finding(NamedTuple):
    """One rule that was broken: `kind` is the same for all inputs that break it at the same place."""

    kind: str
    report: str


class TooLong(BaseException):
    """A step took longer than it may; no `except Exception` can hide it."""


def judge(steps: Steps, data: bytes) -> Finding | None:
    """Return the first rule that an input breaks in any of its steps, or None."""
    with _scratch() as folder:
        for step in steps(data, folder):
            if (found := _judge(step, folder)) is not None:
                return found
    return None


def _judge(step: Step, folder: Path) -> Finding | None:
    try:
        with guard.watching(folder), _strict_warnings(), _limited_memory(), _limited_time():
            step()
    except ParamctlError:
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever else leaves a reader is what is looked for
        return _finding(error)
    return None


def _finding(error: BaseException) -> Finding:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/paramctl/" in frame.filename]
    last = frames[-1] if frames else None
    place = f"{last.filename.rpartition('/paramctl/')[2]}:{last.name}" if last else "outside"
    return Finding(f"{type(error).__name__} in {place}", "".join(_lines(error)))


def _lines(error: BaseException) -> Iterator[str]:
    """Yield the traceback, of which a recursion repeats the middle, and a file makes the message."""
    lines = traceback.format_exception(error, limit=-30)
    return (line if len(line) < 2000 else f"{line[:2000]}…\n" for line in lines)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where there is one, which is also where temporary files go."""
    memory = Path("/dev/shm")
    before, folder = (
        tempfile.tempdir,
        tempfile.mkdtemp(prefix="paramctl-fuzz-", dir=memory if memory.is_dir() else None),
    )
    tempfile.tempdir = folder
    try:
        yield Path(folder)
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _strict_warnings() -> Iterator[None]:
    """Turn warnings into errors: whoever runs a command would see them, and they are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let memory end inside after NBYTES more: MemoryError then shows the place."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(os.pread(_MEMORY_IN_USE, 100, 0).split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (in_use + NBYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise TooLong inside after SECONDS of the processor; a busy machine is no fault of the code."""
    before = signal.signal(signal.SIGPROF, _too_long)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS / 4)  # again and again: a finalizer swallows one
    try:
        yield
        if time.process_time() - began > SECONDS:
            raise TooLong(f"more than {SECONDS:g} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _too_long(signum: int, frame: object) -> None:
    raise TooLong(f"more than {SECONDS:g} s")
