"""Forbid what no checkpoint may cause, while one is read: imports, code from text, processes, sockets, files elsewhere.

An audit hook of Python (PEP 578) sees each of these before it happens. It stays for the life of the process, and
does nothing outside of `watching`.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import paramctl

NEVER = (
    "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill",
    "pty.", "socket.", "ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "pickle.find_class", "webbrowser.", "urllib.", "http.", "ftplib.",
    "smtplib.", "signal.pthread_kill", "sys.addaudithook", "sys.setprofile", "sys.settrace",
)  # fmt: skip
_PLACES = {
    "os.remove": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.truncate": 1,
    "os.utime": 1,
    "os.setxattr": 1,
    "os.removexattr": 1,
    "shutil.rmtree": 1,
    "shutil.move": 2,
    "shutil.copyfile": 2,
}  # fmt: skip  (how many of what the event tells are names of files)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_IMPORTING = ("<frozen importlib", str(Path(sysconfig.get_path("stdlib"), "importlib")))
_PARSING = str(Path(sysconfig.get_path("stdlib"), "ast.py"))
_MAKING_CLASSES = tuple(str(Path(sysconfig.get_path("stdlib"), name)) for name in ("dataclasses.py", "collections/"))
_PYTHON = (  # what tracebacks quote, and packages import late
    sysconfig.get_path("stdlib"),
    sys.prefix,
    str(Path(paramctl.__file__).parent),
    str(Path(__file__).parents[1]),
    *(path for path in sys.path if "site-packages" in path),
)
_SYSTEM = (
    "<unknown>",
    "/dev/null",
    "/proc/self/",
    "/proc/meminfo",
    "/proc/sys/kernel/random/boot_id",
)  # read, never written


class Forbidden(BaseException):
    """Something was about to happen that no checkpoint may cause; no `except Exception` can hide it."""


_folder: str | None = None  # where files may be, while something is watched
_seen: list[Forbidden] = []


@contextmanager
def watching(folder: Path) -> Iterator[None]:
    """Raise Forbidden for what is forbidden inside, also where somebody swallowed it; files may lie in `folder`."""
    global _folder
    _install()
    _seen.clear()
    _folder = os.path.realpath(folder)
    try:
        yield
    finally:
        _folder = None
    if _seen:
        raise _seen[0]


def _install(done: list[bool] = []) -> None:  # noqa: B006 - a hook is for the whole process
    if not done:
        done.append(True)
        sys.addaudithook(_hook)


def _hook(event: str, args: tuple[object, ...]) -> None:
    if _folder is None or event == "sys._getframe":
        return
    judge = _JUDGES.get(event)
    if event.startswith(NEVER) or (judge is not None and not judge(sys._getframe(1), args)):
        _seen.append(Forbidden(f"{event} {args!r:.300}"))
        raise _seen[-1]


def _may_import(frame: FrameType | None, args: tuple[object, ...]) -> bool:
    """Return whether a package that is loaded imports a part of itself: every other one was loaded before."""
    return _is_asked_by(frame, str(args[0]).partition(".")[0])


def _is_asked_by(frame: FrameType | None, package: str) -> bool:
    """Return whether the code that wants to import something is in a package of that name."""
    while frame is not None and frame.f_code.co_filename.startswith(_IMPORTING):
        frame = frame.f_back
    homes = tuple(f"{home}/" for home in getattr(sys.modules.get(package), "__path__", ()))
    return frame is not None and frame.f_code.co_filename.startswith(homes)


def _may_compile(frame: FrameType | None, _: tuple[object, ...]) -> bool:
    """Return whether a text becomes a syntax tree only, or is of a module that may be imported, or of a class that the standard library writes."""
    return frame is not None and frame.f_code.co_filename.startswith((_PARSING, *_IMPORTING, *_MAKING_CLASSES))


def _may_run(frame: FrameType | None, args: tuple[object, ...]) -> bool:
    """Return whether code is that of a module that may be imported, or of a class that the standard library writes."""
    if frame is None or not frame.f_code.co_filename.startswith(_IMPORTING):
        return frame is not None and frame.f_code.co_filename.startswith(_MAKING_CLASSES)
    return _is_asked_by(frame, _module_of(frame).partition(".")[0])


def _module_of(frame: FrameType | None) -> str:
    """Return the name of the module whose code importlib runs: import_module() tells of no import, only of its code."""
    while frame is not None and "module" not in frame.f_locals:
        frame = frame.f_back
    return str(getattr(frame.f_locals["module"], "__name__", "")) if frame else ""


def _may_unmarshal(frame: FrameType | None, _: tuple[object, ...]) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(_IMPORTING)


def _may_open(_: FrameType | None, args: tuple[object, ...]) -> bool:
    """Return whether a file is in the folder, or is a file of Python's own, or of the system's, that is read."""
    path, mode, flags = args
    if isinstance(path, int) or _is_inside(path):
        return True
    writes = bool(flags & _WRITING) if isinstance(flags, int) else any(letter in str(mode) for letter in "wax+")
    return not writes and os.fsdecode(path).startswith((*_PYTHON, *_SYSTEM))  # type: ignore[arg-type]


def _may_change(event: str) -> Callable[[FrameType | None, tuple[object, ...]], bool]:
    return lambda _, args: all(
        isinstance(path, int) or _is_inside(path, _base(args)) for path in args[: _PLACES[event]]
    )


def _base(args: tuple[object, ...]) -> str:
    """Return the folder that a name counts from, where the event tells it by a descriptor."""
    folder = args[-1]
    return (
        str(Path(f"/proc/self/fd/{folder}").readlink())
        if isinstance(folder, int) and folder > 2 and len(args) == 2
        else "."
    )


def _is_inside(path: object, base: str = ".") -> bool:
    place = os.path.realpath(os.path.join(base, os.path.dirname(os.fsdecode(path))))  # type: ignore[arg-type]  # noqa: PTH118
    return f"{place}/".startswith(f"{_folder}/") or os.path.realpath(os.fsdecode(path)) == _folder  # type: ignore[arg-type]


_JUDGES: dict[str, Callable[[FrameType | None, tuple[object, ...]], bool]] = {
    "import": _may_import, "compile": _may_compile, "exec": _may_run, "marshal.loads": _may_unmarshal, "open": _may_open,
    **{event: _may_change(event) for event in _PLACES},
}  # fmt: skip
