"""The one place where torch is imported: to draw random numbers, to hand out a tensor, to write what only it writes."""

from __future__ import annotations

import signal
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from paramctl.files.content import Buffer
from paramctl.model.dtypes import DType

if TYPE_CHECKING:
    import torch


@cache
def import_torch() -> ModuleType:
    """torch itself. It takes seconds and 200 MiB, so nothing that only looks asks for it.

    A signal waits until it is imported: an exception thrown into its C++ would abort the process, and
    leave what it was writing behind.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        import torch
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return torch


def tensor_of(data: Buffer, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of `shape` over the little-endian bytes of its values in C order."""
    torch = import_torch()
    element = getattr(torch, dtype.name)
    if not data:
        return torch.empty(shape, dtype=element)  # type: ignore[no-any-return]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(element).reshape(shape)  # type: ignore[no-any-return]


