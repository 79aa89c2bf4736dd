"""Write a checkpoint of several files: the parts first, the index last, as the commit record.

At any moment, and after a crash at any moment, a reader finds the old set or the whole new one, because
only the index says which files belong to the set.
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
from paramctl.files.segments import Segment, merge_extents
from paramctl.files.set_names import EDITION, INDEXES, Part, index_in, is_final_name
from paramctl.files.sources import Source
from paramctl.files.targets import InPlace, NewFile, Stream, Target
from paramctl.progress import ProgressCallback, ignore


class SetJob(NamedTuple):
    """A set that is to be written.

    `layout` returns its files, the index last, given new names for some of them; it is `layout_set` of a
    format. `sources` are the files of the set that was read, each opened by its plain name in one folder,
    and other files that are read for the new set. `endings` are the endings of an index's name. `verify`
    checks the index, under a temporary name, when all other files are in place; `verify_part` checks any
    other file, and gets the name that it had before.
    """

    layout: Callable[[Mapping[str, str]], Sequence[Part]]
    sources: Sequence[Source]
    endings: tuple[str, ...]
    verify: Verify
    verify_part: Callable[[Path, str], None]


def destination(target: Target, sources: Sequence[Source], endings: tuple[str, ...]) -> tuple[Path, str | None]:
    """Return the folder in which the set is written, and the name of its index if one was given.

    Raises UsageError, before any work is done, for a pipe, or if another set or file is in the way.
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


def write(job: SetJob, target: Target, on_progress: ProgressCallback = ignore) -> int:
    """Write a set and return the number of bytes written.

    In place, unchanged files are not touched. If one file changes, it replaces the old one; if several
    change, they get new names, the new index lists those, and the old files are removed afterwards.
    """
    folder, index = destination(target, job.sources, job.endings)
    if isinstance(target, InPlace):
        return _write_in_place(job, target, folder, on_progress)
    assert isinstance(target, NewFile)
    parts = job.layout({})
    if names := _plain_names(parts, index):
        parts = job.layout(names)
    _check_in_the_way(folder, parts, target.force, job.sources)
    with _new_folder(folder):
        return _commit(job, parts, folder, NewFile(folder / parts[-1].name, target.force), on_progress)


def plan(job: SetJob, target: Target | None) -> Plan:
    """Return what `write` would do; nothing is written. Raises the same errors if a target is given."""
    parts: Sequence[Part] = job.layout({})
    beside = None if target is None else destination(target, job.sources, job.endings)[0]
    if isinstance(target, InPlace):
        parts, held = _changed_parts(parts, job.sources), _sources_by_name(job.sources)
        if len(parts) == 1 and parts[0].was in held:
            return file_writer.plan(parts[0].segments, InPlace(held[parts[0].was], target.patch))
        _check_not_patched(target, parts)
    plans = [file_writer.plan(part.segments, _same_file_system(beside, part)) for part in parts]
    copied, made, read = (sum(getattr(plan, word) for plan in plans) for word in ("copied", "made", "read"))
    return Plan("reflink" if any(plan.method == "reflink" for plan in plans) else "copy", copied, made, read)


def _same_file_system(folder: Path | None, part: Part) -> Target | None:
    """Return a target on the file system on which the part will lie."""
    if folder is None:
        return None
    return NewFile((folder if folder.is_dir() else folder.parent) / part.name, True)


def _check_in_the_way(folder: Path, parts: Sequence[Part], force: bool, sources: Iterable[Source]) -> None:
    """Raise UsageError if a file of that name exists; without an index, `force` replaces it."""
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
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder unless it exists; remove it again after an error."""
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


def _write_in_place(job: SetJob, target: InPlace, folder: Path, on_progress: ProgressCallback) -> int:
    """Write the changed files of a set over the old set, and return the number of bytes."""
    parts = job.layout({})
    changed, held = _changed_parts(parts, job.sources), _sources_by_name(job.sources)
    if not changed:
        for source in job.sources:
            source.check_unchanged()
        return 0
    part, index = changed[0], held.get(parts[-1].was)
    if len(changed) == 1 and part.was in held:
        look = job.verify if part is parts[-1] else partial(_verify_part, job, part)
        place = InPlace(held[part.was], target.patch)
        lock = None if part is parts[-1] else index
        written = file_writer.write(part.segments, place, job.sources, look, on_progress, lock)
    else:
        _check_not_patched(target, changed)
        _check_not_linked([held[part.was] for part in changed if part.was in held], folder)
        others = (part.was for part in changed if part is not parts[-1] and part.was in held)
        parts = job.layout({was: _free_name(folder, was) for was in others})
        changed = _changed_parts(parts, job.sources)
        try:
            written = _commit(job, changed, folder, InPlace(target.source), on_progress)
        except UsageError:
            if any(os.path.lexists(folder / part.name) for part in changed if part.name not in held):
                what = "is being changed by another paramctl; nothing was written"
                raise FileError(what, hint="run it again", file=target.source.name) from None
            raise
    old = held.keys() - {part.name for part in parts}
    for name in old - _used_by_other_index(old, folder, parts[-1].name):
        _remove(folder / name)
    return written


def _used_by_other_index(names: Set[str], folder: Path, index: str) -> set[str]:
    """Return the names that another index in the folder may use: such files must never be deleted."""
    if not names:
        return set()
    try:
        others = [path for path in folder.iterdir() if path.name.endswith(INDEXES) and path.name != index]
        texts = [path.read_bytes() for path in others if is_final_name(path.name)]
    except OSError:
        return set(names)
    spellings = {name: (os.fsencode(name), json.dumps(name).encode()) for name in names}
    return {name for name, found in spellings.items() if any(word in text for word in found for text in texts)}


def _changed_parts(parts: Sequence[Part], sources: Sequence[Source]) -> list[Part]:
    """Return the parts that differ, in name or bytes, from the files that exist."""
    held = _sources_by_name(sources)
    return [part for part in parts if part.name not in held or not _is_whole_file(part.segments, held[part.name])]


def _sources_by_name(sources: Sequence[Source]) -> dict[str, Source]:
    """Return the files of the set that was read, by their plain names."""
    return {Path(source.name).name: source for source in sources}


def _is_whole_file(segments: Sequence[Segment], source: Source) -> bool:
    """Return whether segments are exactly one whole file."""
    found = list(merge_extents(segments))
    return found == [Extent(source, 0, source.size)] or (not found and source.size == 0)


def _check_not_patched(target: InPlace, changed: Sequence[Part]) -> None:
    """Raise UsageError if the target asks for a patch: several files of the set change."""
    if target.patch:
        what = f"--patch does not apply: {len(changed)} files of the set change, and only one file can be patched"
        raise UsageError(what, hint="leave out --patch: -i alone writes them anew")


def _check_not_linked(sources: Iterable[Source], folder: Path) -> None:
    """Raise UsageError if a file that would get a new name is only a link in the folder."""
    real = Path(os.path.realpath(folder))
    for source in sources:
        if source.path != real / Path(source.name).name:
            what = f"is a link to {source.path}, and several files of the set change"
            raise UsageError(what, hint="write a copy with -o DIR", file=source.name)


def _plain_names(parts: Sequence[Part], index: str | None) -> dict[str, str]:
    """Return the new names of parts in an empty folder: the given name of the index, no `-edit1` in others."""
    plain = {part.was: EDITION.sub("", part.was) for part in parts}
    if len(set(plain.values())) < len(plain):
        plain = {}
    names = {**plain, parts[-1].was: index or parts[-1].was}
    return {was: name for was, name in names.items() if was != name}


def _free_name(folder: Path, name: str) -> str:
    """Return an unused name for a part: its plain name, or one with `-edit1`, `-edit2`, … in it."""
    plain = EDITION.sub("", name)
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, f"{dot}{suffix}") if stem else (plain, "")
    names = (plain if n == 0 else f"{stem}-edit{n}{suffix}" for n in count())
    return next(found for found in names if not os.path.lexists(folder / found))


def _commit(
    job: SetJob, parts: Sequence[Part], folder: Path, index: NewFile | InPlace, on_progress: ProgressCallback
) -> int:
    """Write all parts, the index last; after an error remove the new parts, so that the old index stays valid."""
    *others, last = parts
    file_writer.check_room([part.segments for part in parts], folder)
    path, before = _index_file(index)
    written, made, ours = 0, [], None

    def verify(name: Path) -> None:
        nonlocal ours
        ours = _inode(name)
        job.verify(name)

    try:
        for part in others:
            own = NewFile(folder / part.name, isinstance(index, NewFile) and index.force)
            written += file_writer.write(part.segments, own, (), partial(_verify_part, job, part), on_progress)
            made.append(own.path)
        return written + file_writer.write(last.segments, index, job.sources, verify, on_progress)
    except BaseException:
        now = _inode(path)
        theirs = isinstance(index, InPlace) and now not in (None, ours)
        if now == before or theirs:  # else the new set counts, whatever came after
            for name in made:
                _remove(name)
        raise


def _verify_part(job: SetJob, part: Part, path: Path) -> None:
    """Check a part that was just written, before it gets its name."""
    job.verify_part(path, part.was)


def _index_file(target: NewFile | InPlace) -> tuple[Path, tuple[int, int] | None]:
    """Return the path of an index, and the identity of the file that is there now."""
    path = target.path if isinstance(target, NewFile) else target.source.path
    assert path is not None, "only a file has others beside it"
    return path, _inode(path)


def _inode(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, or None if it does not exist."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _remove(path: Path) -> None:
    """Remove a file that belongs to no set any more."""
    with contextlib.suppress(OSError):  # it is of no set any more, and does no harm
        path.unlink()
