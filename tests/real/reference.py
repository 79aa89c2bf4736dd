"""What torch itself finds in a checkpoint, with nothing of the file's own executed.

Where `weights_only=True` refuses a file for its classes, torch's unpickler runs with inert stand-ins for
every class and function but torch's own constructors of tensors.
"""

from __future__ import annotations

import pickle
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Row(NamedTuple):
    """One tensor as `ls --json` describes it."""

    path: str
    dtype: str
    shape: list[int]
    numel: int
    nbytes: int
    tied_to: str | None


class Stand:
    """Takes the place of an object of any class: keeps what it is given, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stand:
        made = super().__new__(cls)
        made.args = args
        made.items = {}
        made.elements = []
        return made

    args: tuple[Any, ...]
    items: dict[Any, Any]
    elements: list[Any]

    def __setstate__(self, state: Any) -> None:
        held = state[0] if isinstance(state, tuple) and state else state
        self.__dict__["state"] = held

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return getattr(torch._utils, name)
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        if (module, name) in (("torch", "Size"), ("torch", "device"), ("torch.storage", "UntypedStorage")):
            return super().find_class(module, name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type(name, (Stand,), {"__module__": f"stand.{module}"})


def load(path: Path) -> tuple[Any, bool]:
    """The object in the file, and whether `weights_only=True` accepts it."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu"), True
    except pickle.UnpicklingError:
        machinery = types.ModuleType("machinery")
        machinery.Unpickler = _Unpickler  # type: ignore[attr-defined]
        machinery.load = lambda file, **given: _Unpickler(file, **given).load()  # type: ignore[attr-defined]
        machinery.UnpicklingError = pickle.UnpicklingError  # type: ignore[attr-defined]
        return torch.load(path, weights_only=False, map_location="cpu", pickle_module=machinery), False


def tensors(found: object, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor below an object, with the path that leads to it, in its order."""
    if isinstance(found, torch.Tensor):
        yield path, found
        return
    for name, child in _children(found):
        yield from tensors(child, f"{path}.{name}" if path else str(name))


def _children(found: object) -> Iterator[tuple[object, object]]:
    if isinstance(found, dict):
        yield from found.items()
    elif isinstance(found, list | tuple):
        yield from enumerate(found)
    elif isinstance(found, Stand):
        state = found.__dict__.get("state")
        if state is None and found.args and isinstance(found.args[0], dict):
            state = found.args[0]  # torch.fx.GraphModule is rebuilt from its attributes
        if isinstance(state, dict) and "_parameters" in state:
            for part in state:
                if part in ("_parameters", "_buffers", "_modules"):
                    yield from ((name, child) for name, child in _children(state[part]) if child is not None)
        else:
            yield from found.items.items()
            yield from enumerate(found.elements)


def listing(found: object) -> list[Row]:
    """What `ls --json` must say of a loaded object."""
    first: dict[object, str] = {}
    rows = []
    for path, tensor in tensors(found):
        leader = None
        if tensor.numel():
            view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            leader = first.setdefault(view, path)
        rows.append(
            Row(
                path,
                str(tensor.dtype).removeprefix("torch."),
                list(tensor.shape),
                tensor.numel(),
                tensor.numel() * tensor.element_size(),
                None if leader == path else leader,
            )
        )
    return rows


def values(found: object) -> dict[str, bytes]:
    """The bytes of every tensor of a loaded object, by its path."""
    return {path: raw(tensor) for path, tensor in tensors(found)}


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's values, in C order."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
