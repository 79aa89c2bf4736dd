"""Calls of the operating system that are hooked, and a small model of a disk made of them.

A disk holds of a file what it held when it was last synced, and any of what was written to it since, in
part or whole; of a directory the names it had when it was last synced, and as many of its changes since,
in their order, as it likes: that a file was synced says nothing of its name.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Hook = Callable[..., Any]  # is given the name of a function of os, the function, and what it was called with
COPYING = ("copy_file_range", "sendfile")
CHANGING = ("open", "write", "pwrite", *COPYING, "fsync", "fchmod", "fchown", "link", "replace", "unlink")
READING = ("pread", "preadv")
UNKNOWN = ("rename", "truncate", "ftruncate", "writev", "pwritev", "symlink", "posix_fallocate", "fdatasync", "remove")


@contextmanager
def hooked(hook: Hook, names: tuple[str, ...] = (*CHANGING, *READING, "close")) -> Iterator[None]:
    """Every call of those functions of os goes to `hook` meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, partial(hook, name, getattr(os, name)))
        yield


class State(NamedTuple):
    """What may be found after a power cut: names, the file each is of, and what the files hold."""

    names: tuple[tuple[str, int], ...]
    files: tuple[tuple[int, bytes], ...]


class Disk:
    """The files of one directory while something is written there, step by step.

    `refused` is the number of a sync that fails: what it should have written never gets to the disk,
    though whoever reads the file still finds it there, as on Linux.
    """

    def __init__(self, folder: Path, refused: int = 0) -> None:
        self.folder = folder
        self.refused = refused
        self.steps: list[tuple[Any, ...]] = []
        self.syncs = 0
        self.inodes: dict[int, int] = {}
        self.names: dict[str, int] = {}
        self.files: dict[int, bytes] = {}
        for path in sorted(folder.iterdir()):
            number = self.inodes.setdefault(path.stat().st_ino, len(self.inodes))
            self.names[path.name] = number
            self.files[number] = path.read_bytes()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Whatever is written meanwhile is a step."""
        self._pread = os.pread
        with hooked(self._hook, CHANGING), hooked(_not_modelled, UNKNOWN):
            yield

    def _hook(self, name: str, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if name == "fsync":
            return self._sync(call, args[0])
        number = self._number(args[0]) if name == "link" else None
        at = self._position(name, args)
        result = call(*args, **more)
        if name == "open":
            self._opened(result, *args)
        elif name in ("write", "pwrite"):
            self.steps.append(("write", self._number(args[0]), at, bytes(memoryview(args[1]).cast("B")[:result])))
        elif name in COPYING and result:
            fd = args[1] if name == "copy_file_range" else args[0]
            self.steps.append(("write", self._number(fd), at, self._pread(fd, result, at)))
        elif name == "link":
            self.steps.append(("enter", Path(args[1]).name, number))
        elif name == "replace":
            self.steps.append(("rename", Path(args[0]).name, Path(args[1]).name))
        elif name == "unlink" and Path(args[0]).parent == self.folder:
            self.steps.append(("remove", Path(args[0]).name))
        return result

    def _sync(self, call: Callable[[int], None], fd: int) -> None:
        self.syncs += 1
        refused = self.syncs == self.refused
        if os.path.samestat(os.fstat(fd), self.folder.stat()):
            self.steps += [] if refused else [("sync names",)]
        else:
            self.steps.append(("lose" if refused else "sync", self._number(fd)))
        if refused:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        call(fd)

    def _position(self, name: str, args: tuple[Any, ...]) -> int:
        """Where in its file a call will write."""
        if name == "pwrite":
            return int(args[2])
        if name in ("write", *COPYING):
            return os.lseek(args[1] if name == "copy_file_range" else args[0], 0, os.SEEK_CUR)
        return 0

    def _opened(self, fd: int, path: str | Path, flags: int, *mode: int) -> None:
        nameless = flags & os.O_TMPFILE == os.O_TMPFILE
        if nameless or flags & os.O_CREAT:
            assert nameless or flags & os.O_EXCL, "a file that may be there already is not modelled"
            number = self.inodes[os.fstat(fd).st_ino] = max(self.files, default=-1) + 1
            self.files[number] = b""
            if not nameless:
                self.steps.append(("enter", Path(path).name, number))

    def _number(self, file: Any) -> int:
        return self.inodes[os.stat(file).st_ino]  # noqa: PTH116 - a descriptor too

    def cuts(self, seed: int = 0) -> Iterator[tuple[int, State]]:
        """Every step and what may be found if the power is cut before it; then what may be found at the end."""
        numbers = random.Random(seed)
        seen: set[State] = set()
        files, unsynced = {n: data for n, data in self.files.items() if data}, dict[int, list[tuple[int, bytes]]]()
        names, renamed = dict(self.names), list[tuple[Any, ...]]()
        for at, step in enumerate([*self.steps, None]):
            for prefix in range(len(renamed) + 1):
                entries = _entered(names, renamed[:prefix])
                for contents in _contents(files, unsynced, numbers):
                    held = tuple((n, contents.get(n, b"")) for n in sorted(set(entries.values())))
                    state = State(tuple(sorted(entries.items())), held)
                    if state not in seen or step is None:
                        seen.add(state)
                        yield at, state
            match step:
                case ("write", number, offset, data):
                    unsynced.setdefault(number, []).append((offset, data))
                case ("sync", number):
                    files[number] = _written(files.get(number, b""), unsynced.pop(number, []))
                case ("lose", number):
                    unsynced.pop(number, None)
                case ("sync names",):
                    names, renamed = _entered(names, renamed), []
                case (_, *_):
                    renamed.append(step)


def _not_modelled(name: str, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
    raise AssertionError(f"os.{name} is not modelled")


def _entered(names: dict[str, int], steps: list[tuple[Any, ...]]) -> dict[str, int]:
    """The names of a directory after some changes of it."""
    names = dict(names)
    for step in steps:
        match step:
            case ("enter", name, number):
                names[name] = number
            case ("rename", name, other):
                names[other] = names.pop(name)
            case ("remove", name):
                del names[name]
    return names


ALL, NONE, HEAD, TAIL = (0, 2), (0, 0), (0, 1), (1, 2)  # the halves of one write that got to the disk


def _contents(
    files: dict[int, bytes], unsynced: dict[int, list[tuple[int, bytes]]], numbers: random.Random
) -> Iterator[dict[int, bytes]]:
    """What files may hold of which some writes are not synced: none of those, all, some, and halves of some."""

    def found(keep: Callable[[int, int], tuple[int, int]]) -> dict[int, bytes]:
        got = {
            number: [_halves(at, data, *keep(number, i)) for i, (at, data) in enumerate(writes)]
            for number, writes in unsynced.items()
        }
        return {**files, **{number: _written(files.get(number, b""), parts) for number, parts in got.items()}}

    if not unsynced:
        yield files
        return
    one = {number: numbers.randrange(len(writes)) for number, writes in unsynced.items()}
    last = {number: len(writes) - 1 for number, writes in unsynced.items()}
    yield found(lambda number, i: NONE)
    yield found(lambda number, i: ALL)
    yield found(lambda number, i: HEAD if i == last[number] else ALL)
    yield found(lambda number, i: TAIL if i == one[number] else NONE)
    for kinds in [(ALL, NONE)] * 3 + [(ALL, NONE, HEAD, TAIL)] * 3:
        yield found(lambda number, i, kinds=kinds: numbers.choice(kinds))  # type: ignore[misc]


def _halves(at: int, data: bytes, first: int, last: int) -> tuple[int, bytes]:
    start, end = len(data) * first // 2, len(data) * last // 2
    return at + start, data[start:end]


def _written(content: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    out = bytearray(content)
    for at, data in filter(itemgetter(1), writes):
        out.extend(bytes(max(at + len(data) - len(out), 0)))
        out[at : at + len(data)] = data
    return bytes(out)
