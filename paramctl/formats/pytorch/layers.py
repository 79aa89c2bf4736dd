"""Read a saved torch module: its state, its class, and the attributes people know it by."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from paramctl.formats.pickles.nodes import ARGS, Call, Dict, PyString, class_of
from paramctl.formats.pytorch.tensor_places import Step
from paramctl.formats.pytorch.tensors import without_size
from paramctl.model.checkpoint import Module
from paramctl.model.shapes import MAX_DIMS, is_count

OPTIMIZER_KEYS = frozenset({"state", "param_groups"})
MODULE_KEYS = frozenset({"_parameters", "_modules"})
_MARKS = MODULE_KEYS | OPTIMIZER_KEYS

_MANGLED = re.compile(r"\.___torch_mangle_[0-9]+(?=\.)")  # what TorchScript puts between a module and a class
MAX_TEXT = 60  # characters of attributes behind a class's name
_OWN = ("training", "dump_patches", "call_super_init")


def describe_layer(node: Call, state: Dict) -> Module:
    """Return the class of a module, with a text such as `Linear(4 → 8)`."""
    attributes = {_text(key): value for key, value in state.pairs}
    full_name = _full_name(node, attributes)
    name = full_name.rsplit(".", 1)[-1]
    known = _KNOWN.get(name.removeprefix("NonDynamicallyQuantizable").rstrip("123d"))
    try:
        inside = known(attributes) if known else _generic(attributes)
    except (KeyError, TypeError):
        inside = _generic(attributes)
    bias = attributes.get("_parameters")
    if known and isinstance(bias, Dict | Call) and any(_text(k) == "bias" and v is None for k, v in bias.pairs):
        inside += ", no bias"
    padding = attributes.get("padding_idx")
    text = f"{name}({inside})" if inside else name
    return Module(name, text, padding if is_count(padding) else None, full_name)


def _full_name(node: Call, attributes: dict[str, Any]) -> str:
    """Return the qualified name of a module's class; of a torch.fx.GraphModule the name that it gives itself."""
    held = attributes.get("_class_name")  # torch.fx.GraphModule
    if isinstance(held, str):
        return held
    cls = class_of(node.func)
    if cls is not None and cls.name in ("__newobj__", "_reconstructor"):
        cls = class_of(node.args[0]) if isinstance(node.args, tuple) and node.args else cls
    if cls is not None and cls.name == "reduce_graph_module":
        return "GraphModule"
    return _MANGLED.sub("", cls.full).removeprefix("__torch__.") if cls is not None else "Module"


def _linear(at: dict[str, Any]) -> str:
    return f"{_value(at['in_features'])} → {_value(at['out_features'])}"


def _bilinear(at: dict[str, Any]) -> str:
    return f"{_value(at['in1_features'])}, {_value(at['in2_features'])} → {_value(at['out_features'])}"


def _conv(at: dict[str, Any]) -> str:
    text = f"{_value(at['in_channels'])} → {_value(at['out_channels'])}, kernel {_sizes(at['kernel_size'])}"
    strides = at.get("stride", ())
    text += f", stride {_sizes(strides)}" if strides and any(n != 1 for n in strides) else ""
    return text + (f", {_value(at['groups'])} groups" if at.get("groups", 1) != 1 else "")


def _embedding(at: dict[str, Any]) -> str:
    return f"{_value(at['num_embeddings'])} × {_value(at['embedding_dim'])}"


def _recurrent(at: dict[str, Any]) -> str:
    text = f"{_value(at['input_size'])} → {_value(at['hidden_size'])}"
    if at.get("num_layers", 1) != 1:
        text += f", {_value(at['num_layers'])} layers"
    return text + (", bidirectional" if at.get("bidirectional") is True else "")


def _features(at: dict[str, Any]) -> str:
    return _value(at["num_features"])


def _layer_norm(at: dict[str, Any]) -> str:
    return _sizes(without_size(at["normalized_shape"]))


def _group_norm(at: dict[str, Any]) -> str:
    return f"{_value(at['num_channels'])}, {_value(at['num_groups'])} groups"


def _attention(at: dict[str, Any]) -> str:
    return f"{_value(at['embed_dim'])}, {_value(at['num_heads'])} heads"


_KNOWN: dict[str, Callable[[dict[str, Any]], str]] = {
    "Linear": _linear,
    "Bilinear": _bilinear,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Embedding": _embedding,
    "EmbeddingBag": _embedding,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "BatchNorm": _features,
    "InstanceNorm": _features,
    "LayerNorm": _layer_norm,
    "RMSNorm": _layer_norm,
    "GroupNorm": _group_norm,
    "MultiheadAttention": _attention,
}


def _generic(attributes: dict[str, Any]) -> str:
    """Plain public attributes as `name=value`, as many as fit."""
    out = ""
    for name, value in attributes.items():
        if name.startswith("_") or name in _OWN or value is False or not _is_plain(value):
            continue
        item = f"{name}={_value(value)}"
        if len(out) + len(item) > MAX_TEXT:
            return f"{out}, …" if out else ""
        out += f", {item}" if out else item
    return out


def _is_plain(value: object) -> bool:
    """Return whether an attribute is printed: a text, a number of up to 64 bits, or up to four of those."""
    if isinstance(value, tuple):
        return 0 < len(value) <= 4 and all(map(_is_number, value))
    return isinstance(value, str | PyString) or _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= 64)


def _value(value: object) -> str:
    """Return an attribute as text. Raise TypeError where it is not plain: a class of that name is not torch's."""
    if not _is_plain(value):
        raise TypeError("not an attribute to print")
    return _text(value)[:MAX_TEXT] if isinstance(value, str | PyString) else str(value)


def _sizes(value: object) -> str:
    """Return sizes as text: `3 × 3`. Raise TypeError where they are none."""
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMS:
        raise TypeError("not sizes to print")
    return " × ".join(map(_value, value))


def _text(key: object) -> str:
    return key.text if isinstance(key, PyString) else key if isinstance(key, str) else ""


def is_module_state(node: object) -> bool:
    """Return whether a node holds the attributes of a `torch.nn.Module`."""
    return isinstance(node, Dict) and marks_of(node) >= MODULE_KEYS


def marks_of(node: Dict) -> frozenset[str]:
    """Return which of the keys that tell modules and optimizers from other dicts hold something, in one pass."""
    found: dict[str, object] = {}
    for key, value in node.pairs:
        name = key.text if type(key) is PyString else key
        if type(name) is str and name in _MARKS:
            found[name] = value  # of two the later counts, as in Python
    return frozenset(name for name, value in found.items() if value is not None)


class ModuleState(NamedTuple):
    """The attributes of a module: the dict, its position in the object, and the tuple there that it is the first of."""

    attributes: Dict
    position: int
    within: tuple[object, ...] | None

    def step(self, node: Call, here: Step) -> Step:
        """Return the step of the attributes, on the way that `here` has come to the object."""
        if self.within is None:
            return Step(self.attributes, here, self.position)
        return Step(self.attributes, Step(self.within, here, self.position), 0)


def find_state(node: Call, is_state: Callable[[object], bool] = is_module_state) -> ModuleState | None:
    """Return the attributes of an object, if it is a `torch.nn.Module` of any class."""
    for i, (verb, state) in enumerate(node.mutations or ()):
        if verb != "build":
            continue
        within = state if isinstance(state, tuple) and state else None
        found = within[0] if within else state
        if is_state(found):
            return ModuleState(found, i, within)
    given = node.args if isinstance(node.args, tuple) and node.args else None
    if given and is_state(given[0]):  # torch.fx.GraphModule is rebuilt from its attributes
        return ModuleState(given[0], ARGS, given)
    return None
