"""Say what each param is to its layer: its role, the layer's class, its siblings."""

from __future__ import annotations

import re
from collections.abc import Mapping

from paramctl.edit import weight_norm
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.schemes import defaults
from paramctl.schemes.drawn_param import DrawnParam, Role


def role_of(checkpoint: Checkpoint, at: int) -> str:
    """Return the role of a param: `weight`, `bias`, `scale`, `magnitude`, or `other`, which drawing leaves alone.

    What a known class says wins over the number of dimensions. A magnitude is that of weight normalisation.
    """
    param = checkpoint.params[at]
    layer, _, name = param.path.rpartition(".")
    if not param.dtype.is_float and param.dtype.category != "complex":
        return "other"
    if param.kind == "buffer" or is_mask(param):
        return "other"
    if weight_norm.direction_of(checkpoint, at) is not None:
        return "magnitude"
    if class_of(checkpoint, layer) in defaults.NORMS:
        return {"weight": "scale", "bias": "bias"}.get(name, "other")
    if len(param.shape) >= 2:
        return "weight"
    if len(param.shape) == 1 and name in ("weight", "gamma", "scale"):
        return "scale"
    return "bias" if name.startswith("bias") or name == "beta" else "other"


def is_mask(param: Param) -> bool:
    """Return whether a param is the causal mask of an attention layer, which some models save as `bias`."""
    layer, _, name = param.path.rpartition(".")
    if len(param.shape) < 2:
        return False
    return name == "masked_bias" or (name == "bias" and _ATTENTION(layer.rpartition(".")[2]) is not None)


_ATTENTION = re.compile(r"(?:.*_)?(?:attn|attention)", re.IGNORECASE).fullmatch


def class_of(checkpoint: Checkpoint, layer: str) -> str:
    """Return the class of a layer, if it is one of torch.nn's that are known; else ""."""
    module = checkpoint.modules.get(layer)
    if module:
        return defaults.known_class(module.full_name)
    above, _, name = layer.rpartition(".")
    held = checkpoint.own_params.get(above, ()) if name == "out_proj" else ()
    names = {checkpoint.params[i].path.rpartition(".")[2] for i in held}
    return "NonDynamicallyQuantizableLinear" if names & {"in_proj_weight", "q_proj_weight"} else ""


def _is_in_transformer(checkpoint: Checkpoint, layer: str) -> bool:
    """Return whether a `torch.nn.Transformer` is a layer, or holds it."""
    above = [layer[:i] for i, c in enumerate(layer) if c == "."]
    found = (checkpoint.modules.get(path) for path in ("", *above, layer))
    return any(module is not None and module.full_name == defaults.TRANSFORMER for module in found)


def describe(
    checkpoint: Checkpoint, index: int, role: str, seed: int, siblings: dict[str, Mapping[str, tuple[int, ...]]]
) -> DrawnParam:
    """Return the description of a param for its scheme; `siblings` caches the shapes of a layer's params."""
    param = checkpoint.params[index]
    layer, _, _ = param.path.rpartition(".")
    module = checkpoint.modules.get(layer)
    if layer not in siblings:
        siblings[layer] = _siblings(checkpoint, layer)
    return DrawnParam(
        checkpoint.labels[index],
        param.shape,
        param.dtype,
        seed,
        role=_ROLES.get(role, "tensor"),
        module=class_of(checkpoint, layer),
        is_in_transformer=_is_in_transformer(checkpoint, layer),
        padding_idx=module.padding_idx if module else None,
        siblings=siblings[layer],
    )


_ROLES: dict[str, Role] = {"weight": "weight", "bias": "bias", "scale": "scale"}  # any other is a tensor


def _siblings(checkpoint: Checkpoint, layer: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's own params by their last names; a normalised weight has that of its direction."""
    at = len(layer) + 1 if layer else 0
    found = {checkpoint.params[i].path[at:]: checkpoint.params[i].shape for i in checkpoint.own_params.get(layer, ())}
    for i in checkpoint.own_params.get(f"{layer}.parametrizations.weight".lstrip("."), ()):
        if checkpoint.params[i].path.endswith((".original", ".original1")):
            found.setdefault("weight", checkpoint.params[i].shape)
    if "weight_v" in found:
        found.setdefault("weight", found["weight_v"])
    return found
