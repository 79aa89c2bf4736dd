"""A checkpoint that is several files, written: the others first, the index last, which makes them count.

Whoever looks at any moment, or after a crash at any moment, finds the old set or the whole new one,
because only the index says which files are the set's.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from paramctl.errors import FileError, UsageError
from paramctl.files import file_writer, targets, temporary
from paramctl.files.content import Extent
from paramctl.files.file_writer import Plan, Verify
from paramctl.files.segments import Segment, joined
from paramctl.files.set_names import EDITION, INDEXES, Part, index_in, is_named
from paramctl.files.sources import Source
from paramctl.files.targets import InPlace, NewFile, Stream, Target
from paramctl.progress import ProgressCallback, ignore


class Job(NamedTuple):
    """A set that is to be written.

    `lay` gives its files, the index last, under the names it is told for their own; it is `layout_set` of
    a format. `sources` are the files of the set that was read, each opened by its plain name in one folder,
    and any others that are read for it. `endings` are those of the names of an index. `verify` looks at
    the index when all else is in place, under a temporary name beside it; `verify_part` at any
    other file, and is told what it `was`.
    """

    lay: Callable[[Mapping[str, str]], Sequence[Part]]
    sources: Sequence[Source]
    endings: tuple[str, ...]
    verify: Verify
    verify_part: Callable[[Path, str], None]


def destination(target: Target, sources: Sequence[Source], endings: tuple[str, ...]) -> tuple[Path, str | None]:
    """The folder of the set that will be written, and its index's name where that was said.

    Raises before any work is done: UsageError for a pipe, or where a set or another file is in the way.
    """
    if isinstance(target, Stream):
        hint = "write it to a directory with -o DIR, or make it one file with 'paramctl convert'"
        raise UsageError("is a set of several files, and a pipe takes one", hint=hint)
    if isinstance(target, InPlace):
        for source in sources:
            targets.destination(InPlace(source))
        return Path(target.source.name).absolute().parent, None
    path = target.path
    folder, index = (path.parent, path.name) if path.name.endswith(endings) else (path, None)
    if os.path.lexists(folder):
        if not folder.is_dir():
            what = "is not a directory, and a set is several files"
            raise UsageError(what, hint="name a directory for -o", file=str(folder))
        if there := index_in(folder):
            hint = "name a new directory for -o, or remove this one first"
            raise UsageError(f"holds a set already ({there.name})", hint=hint, file=str(folder))
    elif not folder.parent.is_dir():
        raise FileError(f"there is no directory {folder.parent}", hint="make it first", file=str(path))
    return folder, index


def write(job: Job, target: Target, on_progress: ProgressCallback = ignore) -> int:
    """Write a set, and return how many bytes that were.

    In place, files that stay as they are are not touched. One that changes alone takes the place of the
    old one; several get new names, which the new index gives, and the old ones are removed after.
    """
    folder, index = destination(target, job.sources, job.endings)
    if isinstance(target, InPlace):
        return _change(job, target, folder, on_progress)
    assert isinstance(target, NewFile)
    parts = job.lay({})
    if names := _plain_names(parts, index):
        parts = job.lay(names)
    _check_in_the_way(folder, parts, target.force, job.sources)
    with _folder(folder):
        return _commit(job, parts, folder, NewFile(folder / parts[-1].name, target.force), on_progress)


def plan(job: Job, target: Target | None) -> Plan:
    """What `write` would do; nothing is written. Raises as it does for what is in the way, where there is a target."""
    parts: Sequence[Part] = job.lay({})
    beside = None if target is None else destination(target, job.sources, job.endings)[0]
    if isinstance(target, InPlace):
        parts, held = _changed(parts, job.sources), _held(job.sources)
        if len(parts) == 1 and parts[0].was in held:
            return file_writer.plan(parts[0].segments, InPlace(held[parts[0].was], target.patch))
        _check_not_patched(target, parts)
    plans = [file_writer.plan(part.segments, _beside(beside, part)) for part in parts]
    copied, made, read = (sum(getattr(plan, word) for plan in plans) for word in ("copied", "made", "read"))
    return Plan("reflink" if any(plan.method == "reflink" for plan in plans) else "copy", copied, made, read)


def _beside(folder: Path | None, part: Part) -> Target | None:
    """A file on the file system where the part will be."""
    if folder is None:
        return None
    return NewFile((folder if folder.is_dir() else folder.parent) / part.name, True)


# --- a new set -------------------------------------------------------------------------------------


def _check_in_the_way(folder: Path, parts: Sequence[Part], force: bool, sources: Iterable[Source]) -> None:
    """Raise UsageError where a file of that name is there: without an index, `force` lets it be replaced."""
    ours = {source.identity[:2] for source in sources}
    for part in parts:
        path = folder / part.name
        if not os.path.lexists(path):
            continue
        if not force:
            raise UsageError("exists already", hint="add -f to replace it, or name a new directory", file=str(path))
        if _inode(path) in ours:
            raise UsageError("is read, and would be replaced", hint="name a new directory for -o", file=str(path))


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make a folder, unless it is there; after an error it is gone again."""
    try:
        folder.mkdir()
    except FileExistsError:
        yield
        return
    except OSError as error:
        raise FileError(f"cannot write: {error.strerror}", file=str(folder)) from None
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # what is in it counts
            folder.rmdir()
        raise
    with contextlib.suppress(OSError):
        temporary.sync_directory(folder.parent)


# --- in place --------------------------------------------------------------------------------------


def _change(job: Job, target: InPlace, folder: Path, on_progress: ProgressCallback) -> int:
    parts = job.lay({})
    changed, held = _changed(parts, job.sources), _held(job.sources)
    if not changed:
        for source in job.sources:
            source.check_unchanged()
        return 0
    part, index = changed[0], held.get(parts[-1].was)
    if len(changed) == 1 and part.was in held:
        look = job.verify if part is parts[-1] else partial(_look, job, part)
        place = InPlace(held[part.was], target.patch)
        lock = None if part is parts[-1] else index
        written = file_writer.write(part.segments, place, job.sources, look, on_progress, lock)
    else:
        _check_not_patched(target, changed)
        _check_not_linked([held[part.was] for part in changed if part.was in held], folder)
        others = (part.was for part in changed if part is not parts[-1] and part.was in held)
        parts = job.lay({was: _free_name(folder, was) for was in others})
        changed = _changed(parts, job.sources)
        try:
            written = _commit(job, changed, folder, InPlace(target.source), on_progress)
        except UsageError:
            if any(os.path.lexists(folder / part.name) for part in changed if part.name not in held):
                what = "is being changed by another paramctl; nothing was written"
                raise FileError(what, hint="run it again", file=target.source.name) from None
            raise
    old = held.keys() - {part.name for part in parts}
    for name in old - _named_elsewhere(old, folder, parts[-1].name):
        _remove(folder / name)
    return written


def _named_elsewhere(names: Set[str], folder: Path, index: str) -> set[str]:
    """Those of the names that another index in the folder may hold too: its set needs the files."""
    if not names:
        return set()
    try:
        others = [path for path in folder.iterdir() if path.name.endswith(INDEXES) and path.name != index]
        texts = [path.read_bytes() for path in others if is_named(path.name)]
    except OSError:
        return set(names)
    spellings = {name: (os.fsencode(name), json.dumps(name).encode()) for name in names}
    return {name for name, found in spellings.items() if any(word in text for word in found for text in texts)}


def _changed(parts: Sequence[Part], sources: Sequence[Source]) -> list[Part]:
    """Those of the parts that are not, byte for byte and under that name, what is there."""
    held = _held(sources)
    return [part for part in parts if part.name not in held or not _is(part.segments, held[part.name])]


def _held(sources: Sequence[Source]) -> dict[str, Source]:
    """The files of a set that was read, by their plain names."""
    return {Path(source.name).name: source for source in sources}


def _is(segments: Sequence[Segment], source: Source) -> bool:
    """Whether segments are one whole file."""
    found = list(joined(segments))
    return found == [Extent(source, 0, source.size)] or (not found and source.size == 0)


def _check_not_patched(target: InPlace, changed: Sequence[Part]) -> None:
    if target.patch:
        what = f"--patch does not apply: {len(changed)} files of the set change, and one can be changed where it lies"
        raise UsageError(what, hint="leave out --patch: -i alone writes them anew")


def _check_not_linked(sources: Iterable[Source], folder: Path) -> None:
    """Raise UsageError where a file would get another name, and is only linked to from the folder."""
    real = Path(os.path.realpath(folder))
    for source in sources:
        if source.path != real / Path(source.name).name:
            what = f"is a link to {source.path}, and several files of the set change"
            raise UsageError(what, hint="write a copy with -o DIR", file=source.name)


def _plain_names(parts: Sequence[Part], index: str | None) -> dict[str, str]:
    """The new names of parts where none is in the way: of the index as it was said, of others without `-edit1`."""
    plain = {part.was: EDITION.sub("", part.was) for part in parts}
    if len(set(plain.values())) < len(plain):
        plain = {}
    names = {**plain, parts[-1].was: index or parts[-1].was}
    return {was: name for was, name in names.items() if was != name}


def _free_name(folder: Path, name: str) -> str:
    """A name like that of a part, which no file has: the plain one, or with `-edit1`, `-edit2`, … in it."""
    plain = EDITION.sub("", name)
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, f"{dot}{suffix}") if stem else (plain, "")
    names = (plain if n == 0 else f"{stem}-edit{n}{suffix}" for n in count())
    return next(found for found in names if not os.path.lexists(folder / found))


# --- the order that keeps a set whole --------------------------------------------------------------


def _commit(
    job: Job, parts: Sequence[Part], folder: Path, index: NewFile | InPlace, on_progress: ProgressCallback
) -> int:
    """Write all parts, the index last; after an error none of them is left, and the index is as it was."""
    *others, last = parts
    file_writer.check_room([part.segments for part in parts], folder)
    path, before = _index_of(index)
    written, made, ours = 0, [], None

    def verify(name: Path) -> None:
        nonlocal ours
        ours = _inode(name)
        job.verify(name)

    try:
        for part in others:
            own = NewFile(folder / part.name, isinstance(index, NewFile) and index.force)
            written += file_writer.write(part.segments, own, (), partial(_look, job, part), on_progress)
            made.append(own.path)
        return written + file_writer.write(last.segments, index, job.sources, verify, on_progress)
    except BaseException:
        now = _inode(path)
        theirs = isinstance(index, InPlace) and now not in (None, ours)
        if now == before or theirs:  # else the new set counts, whatever came after
            for name in made:
                _remove(name)
        raise


def _look(job: Job, part: Part, path: Path) -> None:
    job.verify_part(path, part.was)


def _index_of(target: NewFile | InPlace) -> tuple[Path, tuple[int, int] | None]:
    """Where an index lies, and which file that is now."""
    path = target.path if isinstance(target, NewFile) else target.source.path
    assert path is not None, "only a file has others beside it"
    return path, _inode(path)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is of no set any more, and does no harm
        path.unlink()
