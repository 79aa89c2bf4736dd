"""What every benchmark shares: CPU seconds and peak memory of whole processes, and ratios to a floor."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PARAMCTL = [sys.executable, "-m", "paramctl"]
RUNS = 7


class Cost(NamedTuple):
    """CPU seconds (user and system) and peak memory (MiB) of one process."""

    seconds: float
    memory: float


def once(command: list[str], cache: Path) -> Cost:
    """Run a command, its output thrown away. Raises RuntimeError where it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(cache)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled too
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(f"{command}: {error.decode()}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compare(commands: Mapping[str, list[str]], cache: Path, runs: int = RUNS) -> dict[str, Cost]:
    """Medians of each command, run in turn so that a noisy neighbour disturbs all alike."""
    for command in commands.values():
        once(command, cache)
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            costs[name].append(once(command, cache))
    return {
        name: Cost(statistics.median(c.seconds for c in found), max(c.memory for c in found))
        for name, found in costs.items()
    }


def row(what: str, cost: Cost, floor: float, budget: float, memory: float | None = None) -> None:
    """Print one line: a figure, its floor, their ratio, and whether the budget holds."""
    ratio = cost.seconds / floor
    holds = ratio <= budget and (memory is None or cost.memory <= memory)
    limit = f" (budget {memory:.0f})" if memory else ""
    print(
        f"{what:<44} {cost.seconds:7.3f} s  floor {floor:7.3f} s  ratio {ratio:5.2f} (budget {budget:g})"
        f"  peak {cost.memory:6.1f} MiB{limit}  {'holds' if holds else 'DOES NOT HOLD'}",
        flush=True,
    )
