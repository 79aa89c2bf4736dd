"""Suggest the names nearest to one that matches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nlargest

from paramctl.errors import NoMatch
from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.model.optimizer_state import model_inside, wrapped_models

LONGEST = 300  # characters of a name that may be the nearest to something
CUTOFF = 0.6  # of difflib's ratio, below which names are no longer alike


def nearest(checkpoint: Checkpoint, text: str, n: int = 3) -> list[str]:
    """Up to `n` paths of params and layers that are spelled much like `text`, the best first."""
    from difflib import SequenceMatcher

    text = text[:LONGEST]
    pairs = {text[i : i + 2] for i in range(len(text) - 1)} or {text}
    insides = [f"{layer}." for layer in (*wrapped_models(checkpoint)[::-1], model_inside(checkpoint)) if layer]

    def shared(name: str) -> tuple[int, int]:
        return sum(pair in name for pair in pairs), -abs(len(name) - len(text))

    def ratio(name: str) -> float:
        matcher.set_seq1(name)
        whole = matcher.ratio()
        for inside in insides:
            if name.startswith(inside):
                matcher.set_seq1(name[len(inside) :])
                return max(whole, matcher.ratio())
        return whole

    matcher = SequenceMatcher(None, "", text, autojunk=False)
    likely = nlargest(100, _names_and_layers(checkpoint), key=shared)
    rated = [(ratio(name), name) for name in likely]
    return [name or "." for score, name in nlargest(n, rated, key=lambda pair: pair[0]) if score >= CUTOFF]


def no_match(checkpoint: Checkpoint, text: str) -> NoMatch:
    """Return the error for a selection that names nothing, with what it may have meant."""
    what = f"no parameter or layer matches '{text}'"
    module = checkpoint.modules.get(text)
    if module is not None:
        return NoMatch(f"the layer '{text}' ({module.type}) has no parameters")
    leaves = (entry.path for entry in checkpoint.entries if isinstance(entry, Leaf))
    if any(path == text or path.startswith(f"{text}.") for path in leaves):
        return NoMatch(f"there is no tensor in '{text}'", hint="'paramctl show' prints other values whole")
    if not checkpoint.params:
        return NoMatch(f"{what}: there are no tensors in this checkpoint")
    names = nearest(checkpoint, text)
    return NoMatch(what, hint=f"nearest: {', '.join(names)}" if names else "'paramctl ls' lists them all")


def _names_and_layers(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the names of params, and of the layers above them, that are short enough to be typed."""
    seen: set[str] = set()
    for param in checkpoint.params:
        name = param.path[:LONGEST]
        if len(param.path) > LONGEST:
            name = name.rpartition(".")[0]
        while name not in seen:
            seen.add(name)
            yield name
            name = name.rpartition(".")[0]
