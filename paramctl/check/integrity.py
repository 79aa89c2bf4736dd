"""Check the params of a readable file: paths that are not unique, copies that differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from paramctl.check.declared_ties import declared_ties
from paramctl.errors import FormatError, Unsupported, some
from paramctl.findings import Finding
from paramctl.model.checkpoint import Checkpoint
from paramctl.values.digest import digest
from paramctl.values.scan import Scan


def duplicate_paths(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Report paths that several tensors share, which makes edits by path ambiguous."""
    pairs = zip(checkpoint.labels, checkpoint.params, strict=True)
    twice = [label for label, param in pairs if label != param.path]
    if twice:
        what = "tensors have a path that another has" if len(twice) > 1 else "tensor has a path that another has"
        yield Finding("note", "integrity", "alike", None, f"{len(twice):,} {what} too: {some(twice)}")


def untied_copies(checkpoint: Checkpoint, damaged: Collection[str], *, is_shard: bool) -> Iterator[Finding]:
    """Report params that are declared to be one tensor and differ.

    For a shard only the file itself counts: a configuration is about the whole set.
    """
    for one, other, who in declared_ties(checkpoint, is_shard=is_shard):
        held = {checkpoint.params[at].storage for at in (one, other)}
        if held.isdisjoint(damaged):
            yield from compare_declared_tie((checkpoint, one), (checkpoint, other), who)


def compare_declared_tie(one: tuple[Checkpoint, int], other: tuple[Checkpoint, int], who: str) -> Iterator[Finding]:
    """Report differences between two params, by checkpoint and position, that `who` declares to be one tensor."""
    (a, i), (b, j) = one, other
    x, y = a.params[i], b.params[j]
    if a is b and a.tied_to.get(i, i) == b.tied_to.get(j, j):
        return
    what = next((word for word in ("shape", "dtype") if getattr(x, word) != getattr(y, word)), "")
    if not what and x.is_plain and y.is_plain:
        try:
            what = "values" if digest(Scan(a), x) != digest(Scan(b), y) else ""
        except (FormatError, Unsupported):
            return  # of damage there is a finding already
    if what:
        has = f"has other {what}" if what == "values" else f"has another {what}"
        text = f"should be one tensor with {y.path}, says {who}, and {has}; tie them with 'paramctl tie'"
        yield Finding("error", "integrity", "untied-copies", x.path, text)
