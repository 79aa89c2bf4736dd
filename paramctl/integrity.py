"""What is wrong with the params of a file that can be read: names that are not unique, copies that differ."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from paramctl.checkpoint import Checkpoint
from paramctl.equal import digest
from paramctl.errors import FormatError, Unsupported, some
from paramctl.findings import Finding
from paramctl.formats.companions import CONFIG, ties_embeddings
from paramctl.formats.safetensors import FORMAT_KEY
from paramctl.scan import Scan

SHARED = "shared.weight"  # the one embedding of a model that has an encoder and a decoder
EMBEDDINGS = (SHARED, "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "predictions.decoder.weight", "lm_head.decoder.weight")


def alike(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Paths that print alike: whoever edits by path cannot tell them apart."""
    pairs = zip(checkpoint.labels, checkpoint.params, strict=True)
    twice = [label for label, param in pairs if label != param.path]
    if twice:
        what = "tensors have a path that another has" if len(twice) > 1 else "tensor has a path that another has"
        yield Finding("note", "integrity", "alike", None, f"{len(twice):,} {what} too: {some(twice)}")


def copies(checkpoint: Checkpoint, damaged: Collection[str], *, is_shard: bool) -> Iterator[Finding]:
    """Pairs that the file, or the configuration beside it, says are one tensor, and that are two.

    Of a shard only the file itself is asked: what a configuration says is about the whole set.
    """
    at = {param.path: i for i, param in enumerate(checkpoint.params) if param.kind != "optimizer"}
    pairs = [
        (key, text, "the file's metadata")
        for key, text in checkpoint.metadata.items()
        if key in at and text in at and key not in (text, FORMAT_KEY)
    ]
    if not is_shard and any(map(ties_embeddings, checkpoint.sources)):
        pairs += ((*pair, CONFIG) for pair in embeddings(at))
    for one, other, who in pairs:
        held = {checkpoint.params[at[path]].storage for path in (one, other)}
        if held.isdisjoint(damaged):
            yield from differing((checkpoint, at[one]), (checkpoint, at[other]), who)


def embeddings(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of paths that are one tensor in a model whose output layer is its embedding; none where that is unclear."""
    paths = tuple(paths)
    heads, inputs = ([path for path in paths if _ends(path, ends)] for ends in (HEADS, EMBEDDINGS))
    shared = [path for path in inputs if _ends(path, (SHARED,))]
    if len(heads) > 1 or len(shared) > 1 or (len(inputs) > 1 and not shared):
        return []
    return [(path, other) for other in (shared or inputs) for path in (*heads, *inputs) if path != other]


def _ends(path: str, ends: Iterable[str]) -> bool:
    return any(f".{path}".endswith(f".{end}") for end in ends)


def differing(one: tuple[Checkpoint, int], other: tuple[Checkpoint, int], who: str) -> Iterator[Finding]:
    """What differs between two params, by checkpoint and position, that `who` says are one tensor."""
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
