"""Draws of one param, by paramctl and by torch.nn.init, for the tests of schemes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import init

from paramctl.model.dtypes import BY_NAME
from paramctl.schemes.drawing import draw
from paramctl.schemes.drawn_param import DrawnParam
from paramctl.schemes.spec import parse

FLOATS = ("float64", "float32", "float16", "bfloat16")
SHAPES = ((), (3,), (0,), (17,), (8, 4), (4, 8), (1, 1), (33, 7), (0, 4), (4, 0), (5, 3, 2), (4, 2, 3, 3),
          (6, 4, 1, 1), (2, 2, 2, 2, 2), (1, 2, 1, 2, 1, 2))  # fmt: skip
# Each spec beside the call of torch.nn.init it stands for.
TORCH: dict[str, Callable[[torch.Tensor, torch.Generator], object]] = {
    "zeros": lambda t, g: init.zeros_(t),
    "ones": lambda t, g: init.ones_(t),
    "constant:42": lambda t, g: init.constant_(t, 42),
    "constant:-1e-3": lambda t, g: init.constant_(t, -1e-3),
    "uniform": lambda t, g: init.uniform_(t, generator=g),
    "uniform:a=-0.07,b=0.07": lambda t, g: init.uniform_(t, -0.07, 0.07, generator=g),
    "normal": lambda t, g: init.normal_(t, generator=g),
    "normal:mean=3,std=0.01": lambda t, g: init.normal_(t, 3, 0.01, generator=g),
    "trunc_normal": lambda t, g: init.trunc_normal_(t, generator=g),
    "trunc_normal:std=0.02,a=0.05,b=0.1": lambda t, g: init.trunc_normal_(t, 0, 0.02, 0.05, 0.1, generator=g),
    "trunc_normal:a=3,b=4": lambda t, g: init.trunc_normal_(t, a=3, b=4, generator=g),
    "xavier_uniform": lambda t, g: init.xavier_uniform_(t, generator=g),
    "xavier:gain=relu": lambda t, g: init.xavier_uniform_(t, init.calculate_gain("relu"), generator=g),
    "xavier_normal": lambda t, g: init.xavier_normal_(t, generator=g),
    "xavier_normal:gain=0.3": lambda t, g: init.xavier_normal_(t, 0.3, generator=g),
    "kaiming_uniform": lambda t, g: init.kaiming_uniform_(t, generator=g),
    "kaiming_uniform:a=0.2,mode=fan_out": lambda t, g: init.kaiming_uniform_(t, 0.2, "fan_out", generator=g),
    "kaiming_normal": lambda t, g: init.kaiming_normal_(t, generator=g),
    "kaiming_normal:mode=fan_out,nonlinearity=relu": lambda t, g: init.kaiming_normal_(
        t, mode="fan_out", nonlinearity="relu", generator=g
    ),
    "orthogonal": lambda t, g: init.orthogonal_(t, generator=g),
    "orthogonal:gain=-1.5": lambda t, g: init.orthogonal_(t, -1.5, generator=g),
    "sparse:0.3": lambda t, g: init.sparse_(t, 0.3, generator=g),
    "sparse:sparsity=0.9,std=1": lambda t, g: init.sparse_(t, 0.9, 1, generator=g),
    "eye": lambda t, g: init.eye_(t),
    "dirac": lambda t, g: init.dirac_(t),
    "dirac:groups=2": lambda t, g: init.dirac_(t, 2),
}


def drawn_param(
    shape: tuple[int, ...], dtype: str = "float32", path: str = "0.weight", seed: int = 7, **more: Any
) -> DrawnParam:
    return DrawnParam(path, shape, BY_NAME[dtype], seed, **more)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def values(text: str, shape: tuple[int, ...], dtype: str = "float32", **more: Any) -> np.ndarray[Any, Any]:
    """Return what a scheme draws, as float64."""
    at = drawn_param(shape, dtype, **more)
    buffer = bytearray(draw(parse(text), at))
    return torch.frombuffer(buffer, dtype=getattr(torch, dtype)).reshape(shape).double().numpy()


def drawn(text: str, at: DrawnParam) -> bytes:
    return bytes(draw(parse(text), at))


def by_torch(text: str, shape: tuple[int, ...], dtype: str, seed: int) -> bytes | None:
    """Return the bytes torch.nn.init itself makes, or None if it refuses."""
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            TORCH[text](tensor, torch.Generator().manual_seed(seed))
    except ValueError:
        return None
    return raw(tensor)


def user_file(folder: Path, source: str, name: str = "my_init.py", function: str = "f") -> str:
    (folder / name).write_text(source, encoding="utf-8")
    return f"{folder / name}:{function}"
