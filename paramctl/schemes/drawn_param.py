"""Describe a param that is to be drawn, and its layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from paramctl.model.dtypes import DType
from paramctl.schemes.scheme import Kernel, Shape, shape_text

Role = Literal["weight", "bias", "scale", "tensor"]


@dataclass(frozen=True)
class DrawnParam:
    """One param that is to be drawn, and what the file tells about its layer.

    `module` is the class of the layer, if the file names one that is known (`Linear`); `is_in_transformer` tells that
    a `torch.nn.Transformer` holds the layer. `siblings` are the shapes of the layer's params by their last names
    (`{"weight": (8, 4), "bias": (8,)}`), which give a bias its fan-in and a recurrent weight its hidden size.
    `padding_idx` is the row of an embedding that stands for padding.
    """

    path: str
    shape: Shape
    dtype: DType
    seed: int
    kernel: Kernel = "torch"
    role: Role = "tensor"
    module: str = ""
    is_in_transformer: bool = False
    padding_idx: int | None = None
    siblings: Mapping[str, Shape] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The last name of its path: `weight`, `bias_ih_l0`."""
        return re.split(r"[./]", self.path)[-1].removesuffix(":0")

    @property
    def text(self) -> str:
        """Path and shape for a message: `0.bias (8)`."""
        return f"{self.path or '.'} {shape_text(self.shape)}"
