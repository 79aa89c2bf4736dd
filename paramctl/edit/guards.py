"""Refuse to edit params that cannot be edited, with the reason and what to do."""

from __future__ import annotations

from collections.abc import Iterable

from paramctl.errors import UsageError
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.sharing import Outside, with_tied


def check_editable(
    checkpoint: Checkpoint,
    indices: Iterable[int],
    named: Iterable[int],
    hint: str = "name them all, or 'paramctl untie' first",
) -> None:
    """Raise UsageError if changing the params would change others that are not `named`."""
    indices = tuple(indices)
    outside = Outside(checkpoint, indices, with_tied(checkpoint, named))
    for index in indices:
        param = checkpoint.params[index]
        check_plain(param)
        others = outside.overlapping(index)
        if others:
            paths = ", ".join(checkpoint.labels[i] or "." for i in others[:5])
            raise UsageError(
                f"{param.path or '.'} shares some of its bytes with {paths}",
                hint=hint,
            )


def check_plain(param: Param) -> None:
    """Raise UsageError unless a param is one view of saved bytes in which every element can differ."""
    if why := why_fixed(param):
        raise UsageError(f"{param.path or '.'} cannot be changed: it {why}", hint=_how_to_loosen(param))


def _how_to_loosen(param: Param) -> str:
    """Return what the user's program can do about a param that cannot be changed."""
    if param.is_plain:
        return "save it from your program after .clone()"
    if param.layout == "meta":
        return "save it from your program after .to_empty() or with values"
    if param.layout == "quantized":
        return "save it from your program after .dequantize()"
    if param.layout.startswith("sparse"):
        return "save it from your program after .to_dense()"
    return "save what it is made of from your program"


def why_fixed(param: Param) -> str:
    """Return the reason why the values of a param cannot be changed, or ""."""
    if not param.is_plain:
        saved = param.storage is not None or param.components
        return f"is a {param.layout} tensor" + ("" if saved else ", and no values are saved for it")
    if param.repeats_itself:
        return "repeats fewer values over its shape (stride 0), so its elements cannot differ"
    return ""
