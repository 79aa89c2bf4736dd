"""Compare under other names: `RE=>REPL` over paths, and which such renaming would explain a difference."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from paramctl.errors import UsageError

ARROW = "=>"
DEPTH = 8  # names at the start of a path that a renaming is looked for in
PREFIX = 3  # names that a prefix has at most, to be taken for another
LIKELY = 8  # renamings that are tried


class Rename(NamedTuple):
    """A renaming of paths by `re.sub`; `text` is how it was written."""

    text: str
    pattern: re.Pattern[str]
    replacement: str


class Suggestion(NamedTuple):
    """A renaming, as it is written, that pairs `matches` of the `of` tensors that could be paired."""

    text: str
    matches: int
    of: int


def parse(text: str) -> Rename:
    """Return the renaming that `RE=>REPL` says. Raises UsageError if it is none."""
    before, arrow, after = text.rpartition(ARROW)
    if not arrow:
        raise UsageError(f"cannot read the renaming '{text}'", hint=r"write 'RE=>REPL', such as '^module\.=>'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sets that a later Python may read otherwise
        try:
            pattern = re.compile(before)
            pattern.sub(after, "")
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            raise UsageError(f"cannot read the renaming '{text}': {error}") from None
    return Rename(text, pattern, after)


def renamed(paths: Sequence[str], renames: Iterable[Rename]) -> list[str]:
    """Return the paths after all renamings, one after the other. Raises UsageError if two become one."""
    out = list(paths)
    for rename in renames:
        out = [_after(rename, path) for path in out]
    origin: dict[str, str] = {}
    for before, after in zip(paths, out, strict=True):
        first = origin.setdefault(after, before)
        if first != before:
            raise UsageError(f"'{first}' and '{before}' both become '{after}'", hint="rename them apart")
    return out


def suggestion(removed: Mapping[str, object], added: Mapping[str, object], kept: Iterable[str]) -> Suggestion | None:
    """Return the renaming that pairs most paths of A only with paths of B only, more than half of the fewer; or None.

    Both map a path to what else must agree, such as the shape; `kept` are paths that no other may take.
    """
    taken, best = set(kept), (0, "")
    for text, _ in _candidates(removed, added).most_common(LIKELY):
        rename = parse(text)
        pairs = {path: _after(rename, path) for path in removed}
        into = Counter(pairs.values())
        if any(into[name] > 1 and name in added for name in into) or not taken.isdisjoint(into):
            continue
        matches = sum(1 for path, name in pairs.items() if added.get(name) == removed[path] and name in added)
        best = max(best, (matches, text), key=lambda found: found[0])
    of = min(len(removed), len(added))
    return Suggestion(best[1], best[0], of) if best[0] * 2 > of else None


def _after(rename: Rename, path: str) -> str:
    try:
        return rename.pattern.sub(rename.replacement, path)
    except (re.error, IndexError) as error:  # a group that took no part, before Python said so earlier
        raise UsageError(f"cannot rename '{path}' by '{rename.text}': {error}") from None


def _candidates(removed: Iterable[str], added: Iterable[str]) -> Counter[str]:
    """Return renamings that lead from some path of the one to one of the other, with how many they lead."""
    there, found = set(added), Counter[str]()
    ends: dict[str, list[str]] = {}
    for path in there:
        for start, end in _split(path):
            ends.setdefault(end, []).append(start)
    for path in removed:
        for start, end in _split(path):
            # What many paths end in, as in `weight`, says nothing of how they are called.
            found.update(_prefixed(start, other) for other in ends.get(end, ())[:4])
        found.update(text for name, text in _dropped(path) if name in there)
    return found


def _split(path: str) -> Iterator[tuple[str, str]]:
    """Yield a path in two, behind each of its first few names: `("a.", "b.c")`."""
    names = path.split(".", DEPTH)
    for n in range(min(PREFIX, len(names) - 1) + 1):
        yield "".join(f"{name}." for name in names[:n]), ".".join(names[n:])


def _prefixed(before: str, after: str) -> str:
    """Return the renaming of one prefix into another."""
    return f"^{re.escape(before)}{ARROW}{_literal(after)}"


def _dropped(path: str) -> Iterator[tuple[str, str]]:
    """Yield a path without all names like one of its first few, and the renaming that drops those."""
    names = path.split(".")
    for name in dict.fromkeys(names[: min(DEPTH, len(names) - 1)]):
        if not name.isdigit():
            yield ".".join(part for part in names if part != name), rf"\b{re.escape(name)}\.{ARROW}"


def _literal(text: str) -> str:
    """`text` as a replacement that stands for itself."""
    return text.replace("\\", "\\\\")
