"""What all tests share."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no fault of the code: nothing here is judged by the clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


MEMORY = Path("/dev/shm")  # a folder in memory, where a sync costs nothing
ROOM = 4 << 30  # bytes that the folder must have free


def pytest_configure(config: pytest.Config) -> None:
    """Choose the folder of temporary files, and bring the real checkpoints where their tests are asked for."""
    if "not crash" in config.option.markexpr and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    _bring_real_checkpoints(config)


def _bring_real_checkpoints(config: pytest.Config) -> None:
    """Bring the real checkpoints where their tests are asked for; the names of the tests are those of the files."""
    asked = re.search(r"(?<!not )\breal\b", config.option.markexpr)
    if asked and "PARAMCTL_REAL" not in os.environ and not hasattr(config, "workerinput"):
        from real.fetch import FetchError, fetch

        try:
            os.environ["PARAMCTL_REAL"] = str(fetch())
        except FetchError as error:
            raise pytest.UsageError(f"no real checkpoints: {error}") from None


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` starts: more than there are cores, as some tests wait for others."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + (cores + 1) // 2
