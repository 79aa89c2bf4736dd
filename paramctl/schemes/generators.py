"""Where random numbers come from: for each param a seed of its own, and the global generators lent and given back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from paramctl.values.torch_import import import_torch


def seed_for(seed: int, path: str) -> int:
    """The seed of one param's generator: the first 8 bytes, little endian, of SHA-256 of f"{seed}/{path}"."""
    digest = hashlib.sha256(f"{seed}/{path}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little")


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python, seeded for a while."""
    import random

    import numpy as np

    torch, python, numpy = import_torch(), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it seeds the accelerators too, which fork_rng would not put back.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
