"""Selections become params; where nothing matches, the nearest names.

A selection is an exact path or a layer, else `re:PATTERN`, `!` and another, `@FILE`, else positions
(`[0][1].bias`), else a glob. Names are data, so an exact path wins over everything it looks like.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from paramctl.errors import NoMatch, UsageError
from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.model.optimizer_state import gradient_owners
from paramctl.model.selections.braces import expanded
from paramctl.model.selections.indexing import Index, split_index
from paramctl.model.selections.path_list import called, lines_of
from paramctl.model.selections.positions import positions
from paramctl.model.selections.scopes import Names, from_root, scopes
from paramctl.model.selections.suggestions import no_match


class Selection(NamedTuple):
    """The params that some patterns name: positions in `Checkpoint.params`, in the file's order.

    `exact` are those that were named one by one: by full path, by position, in a list. `under` is the
    model inside the checkpoint, if a pattern matched only from there. `notes` are for the user.
    """

    indices: tuple[int, ...]
    exact: frozenset[int]
    under: str = ""
    notes: tuple[str, ...] = ()


def select(
    checkpoint: Checkpoint,
    patterns: Sequence[str],
    *,
    alike: bool = False,
    among: Collection[int] | None = None,
) -> Selection:
    """Return the params that `patterns` name together, without those that a `!` takes away; all if there are none.

    A path that several params print as is refused, unless `alike` takes all of them (to look, not to
    edit). Globs, regular expressions and a selection of only `!…` choose `among` these params, where
    they find any there. Raises NoMatch where a pattern names nothing, UsageError where it cannot be read.
    """
    everything = range(len(checkpoint.params))
    if not patterns:
        return Selection(tuple(everything), frozenset())
    search = _Search(checkpoint, alike, among)
    taken: set[int] = set()
    exact: set[int] = set()
    away: set[int] = set()
    under = ""
    found = [search.signed(pattern) for pattern in patterns]
    if all(negative for _, negative in found):
        taken.update(everything if among is None else among)
    for match, negative in found:
        under = under or match.under
        (away if negative else taken).update(match.indices)
        exact.update(() if negative else match.exact)
    if not taken - away:
        raise NoMatch("nothing is left of the selection", hint="'!' takes away all that the others name")
    notes = tuple(filter(None, map(search.note_on_few, patterns)))
    return Selection(tuple(sorted(taken - away)), frozenset(exact - away), under, notes)


def find(checkpoint: Checkpoint, text: str) -> int | Leaf:
    """Return the one entry of that path or position: a position in `params`, or a scalar.

    Raises NoMatch where there is none, UsageError where there are several or it is a layer.
    """
    found = _found(checkpoint, text)
    if found is None:
        raise no_match(checkpoint, text)
    return found


def _found(checkpoint: Checkpoint, text: str) -> int | Leaf | None:
    """Return what `find` returns, or None if it finds nothing."""
    for names in scopes(checkpoint, text):
        hits: list[int | Leaf] = [*names.exactly(text), *names.leaves(text)]
        layers = [] if hits else names.members(text)
        if not hits and not layers:
            ends = names.positioned(checkpoint, text)
            hits = [end for end in ends if not isinstance(end, str)]
            layers = [i for end in ends if isinstance(end, str) for i in names.members(end)]
        if len(hits) > 1:
            raise _alike(checkpoint, text, [hit for hit in hits if isinstance(hit, int)])
        if hits:
            return hits[0]
        if layers:
            some = ", ".join(checkpoint.params[i].path for i in layers[:3])
            raise UsageError(f"'{text}' is a layer, not a single parameter", hint=f"name one, such as {some}")
    return None


def find_part(checkpoint: Checkpoint, text: str) -> tuple[int | Leaf, Index]:
    """Return the entry of a path, and the index behind it: `0.weight[0,:5]`, `[0][1].bias[3]`.

    Brackets that are part of a name or of a position are no index. Raises what `find` and `split_index` do.
    """
    for path, index in readings(text):
        found = _found(checkpoint, path)
        if found is not None:
            return found, index
    raise no_match(checkpoint, text.split("[")[0] or text)


def readings(text: str) -> Iterator[tuple[str, Index]]:
    """Yield every way to read a text as a path and an index behind it, the longest path first."""
    yield text, ()
    path = text
    index: Index = ()
    while True:
        path, part = split_index(path)
        if part is None:
            return
        if index and not all(isinstance(item, int) for item in part):
            raise UsageError(f"'{text}' has several indices", hint="write them as one: [1:3, 0]")
        index = (*part, *index)
        yield path, index


def layer_members(checkpoint: Checkpoint, text: str) -> list[tuple[str, int]]:
    """Return the params of a layer, by their paths within it; a single param has the path "".

    Raises NoMatch where there is nothing of that name or position, UsageError where names are not unique.
    """
    for names in scopes(checkpoint, text):
        single, layers = names.exactly(text), [text]
        if not single and not names.members(text):
            ends = names.positioned(checkpoint, text)
            single = [end for end in ends if isinstance(end, int)]
            layers = [end for end in ends if isinstance(end, str)]
        if len(single) + len(layers) > 1 and not (len(single) == 1 and layers == [text]):
            raise _alike(checkpoint, text, single)
        if single:
            return [("", single[0])]
        found = [(names.name(i)[len(layer) + 1 :], i) for layer in layers for i in names.members(layer)]
        for name in _twice(name for name, _ in found):
            raise _alike(checkpoint, f"{text}.{name}", [i for other, i in found if other == name])
        if found:
            return found
    raise no_match(checkpoint, text)


def model_params(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Positions in `params` of the model's own: neither what an optimizer remembers, nor gradients."""
    gradients = gradient_owners(checkpoint)
    return tuple(i for i, p in enumerate(checkpoint.params) if p.kind != "optimizer" and i not in gradients)


class _Match(NamedTuple):
    """The params that one pattern names; `exact` are those it named one by one."""

    indices: Collection[int]
    exact: Collection[int] = ()
    under: str = ""


class _Search:
    """One checkpoint and how to look for things in it."""

    def __init__(self, checkpoint: Checkpoint, alike: bool = False, among: Collection[int] | None = None) -> None:
        self.checkpoint = checkpoint
        self.alike = alike
        self._among = among
        self._root = checkpoint.derived(from_root)

    @cached_property
    def among(self) -> frozenset[int]:
        """The params that globs and regular expressions choose from, where they find any there."""
        return frozenset(range(len(self.checkpoint.params)) if self._among is None else self._among)

    def signed(self, pattern: str) -> tuple[_Match, bool]:
        """Return what a pattern names, and whether it takes that away."""
        if not pattern.startswith("!") or self._named(self._root, pattern):
            return self.match(pattern), False
        return self.match(pattern[1:]), True

    def match(self, text: str) -> _Match:
        """Return what a pattern names in the first scope where it names anything. Raises NoMatch."""
        if text.startswith("@") and not self._named(self._root, text):
            return self._listed(text[1:])
        for names in scopes(self.checkpoint, text):
            found = self._named(names, text) or self._patterned(names, text)
            if found:
                return found
        if text == ".":
            return _Match(self.among)
        if "{" in text and (texts := expanded(text)) != [text]:
            return self._joined(texts)
        deeper, count = self._across(text)
        if count:
            raise NoMatch(f"no parameter or layer matches '{text}'", hint=f"'{deeper}' would match {count:,}")
        raise no_match(self.checkpoint, text)

    def _joined(self, texts: Sequence[str]) -> _Match:
        """Return what several patterns name together; each must name something."""
        found = [self.match(text) for text in texts]
        exact = [i for match in found for i in match.exact]
        return _Match({i for match in found for i in match.indices}, exact, found[0].under)

    def _across(self, text: str) -> tuple[str, int]:
        """Return a glob with `**` for each `*`, and how many params it matches; 0 for a text that is no such glob."""
        if "*" not in text or "**" in text or text.startswith(("re:", "@")):
            return text, 0
        deeper = text.replace("*", "**")
        found = (self._globbed(names, deeper) for names in scopes(self.checkpoint, text))
        return deeper, next((len(match.indices) for match in found if match), 0)

    def note_on_few(self, pattern: str) -> str:
        """Return a note on a glob that begins with `*` and names fewer params than with `**`; "" for others."""
        if not pattern.startswith("*"):
            return ""
        deeper, count = self._across(pattern)
        named = len(self.match(pattern).indices) if count else 0
        return f"'{pattern}' names {named:,}; '{deeper}' would match {count:,}" if named < count else ""

    def _named(self, names: Names, text: str) -> _Match | None:
        """Return the match of an exact path or a layer."""
        found = names.exactly(text)
        if found:
            return self._single(names, text, found)
        members = names.members(text)
        return _Match(members, (), names.under) if members else None

    def _single(self, names: Names, text: str, found: list[int]) -> _Match:
        if len(found) > 1 and not self.alike:
            raise _alike(self.checkpoint, text, found)
        return _Match(found, found, names.under)

    def _patterned(self, names: Names, text: str) -> _Match | None:
        if text.startswith("re:"):
            return self._all(names, names.matching(_compiled(text[3:])))
        ends = names.positioned(self.checkpoint, text)
        single = [end for end in ends if isinstance(end, int)]
        members = [i for end in ends if isinstance(end, str) for i in names.members(end)]
        if members:
            return _Match([*single, *members], single, names.under)
        if single and _SLICE.search(text):
            return _Match(single, single, names.under)
        return self._single(names, text, single) if single else self._globbed(names, text)

    def _globbed(self, names: Names, text: str) -> _Match | None:
        """Return the params a glob matches or, if it matches none, those under the layers it does."""
        if "*" not in text:
            return None
        glob = _glob(names.fold(text))
        found = names.matching(re.compile(glob, re.DOTALL))
        return self._all(names, found or names.matching(re.compile(rf"{glob}\..*", re.DOTALL)))

    def _all(self, names: Names, found: list[int]) -> _Match | None:
        meant = [i for i in found if i in self.among]
        return _Match(meant or found, (), names.under) if found else None

    def _listed(self, name: str) -> _Match:
        """Return the params and layers that a file lists, one a line."""
        lines = lines_of(self.checkpoint, name)
        for names in scopes(self.checkpoint, "".join(lines)):
            found = {line: self._named(names, line) for line in dict.fromkeys(lines)}
            if any(found.values()):
                break
        indices: set[int] = set()
        exact: set[int] = set()
        for line, match in found.items():
            if match is None:
                number = lines.index(line) + 1
                raise NoMatch(f"{called(name)}: line {number}: {no_match(self.checkpoint, line)}")
            indices.update(match.indices)
            exact.update(match.exact)
        return _Match(indices, exact, names.under)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FutureWarning about sets within sets
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"'{pattern}' is no regular expression: {error}") from None


def _glob(text: str) -> str:
    """Return a glob as a regular expression: `*` within one name, `**` across names.

    `**.` stands for any number of names, none included: `**.bias` is also `bias`.
    """
    pieces = re.split(r"((?:^|(?<=\.))\*\*\.|\*\*|\*)", text)
    meaning = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*"}
    return "".join(meaning[piece] if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))


def _alike(checkpoint: Checkpoint, text: str, indices: Sequence[int]) -> UsageError:
    found = positions(checkpoint, set(indices[:5]))
    several = ", ".join(found[i] for i in indices[:5])
    hint = f"name one by its position: {several}" if several else "name one by its position"
    return UsageError(f"several entries print as '{text}'", hint=hint)


def _twice(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def is_pattern(text: str) -> bool:
    """Return whether a text may name several params by a glob, braces, a slice or a regular expression."""
    return text.startswith("re:") or bool(_PATTERN.search(text))


_SLICE = re.compile(r"\[-?[0-9]*:")
_PATTERN = re.compile(rf"[*{{]|{_SLICE.pattern}")
