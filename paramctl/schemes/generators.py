"""Seed random generators: one for each param, and the global ones for the time of a draw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from paramctl.values.torch_import import import_torch


def seed_for(seed: int, path: str) -> int:
    """Return the seed of one param: the first 8 bytes, little endian, of SHA-256 of f"{seed}/{path}"."""
    digest = hashlib.sha256(f"{seed}/{path}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little")


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and restore their state at the end."""
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
