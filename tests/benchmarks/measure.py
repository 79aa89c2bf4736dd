"""What every benchmark shares: CPU seconds and peak memory of whole processes, and ratios to a floor."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PARAMCTL = [sys.executable, "-m", "paramctl"]
RUNS = 7


class Cost(NamedTuple):
    """CPU seconds (user and system) and peak memory (MiB) of one process; `spread` is the least and most seconds."""

    seconds: float
    memory: float
    spread: tuple[float, float] = (0, 0)


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


def compare(
    commands: Mapping[str, list[str]], cache: Path, runs: int = RUNS, before: Callable[[], None] = lambda: None
) -> dict[str, Cost]:
    """Medians of each command, run in turn so that a noisy neighbour disturbs all alike, and `before` each of them."""
    for command in commands.values():
        once(command, cache)
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            before()
            costs[name].append(once(command, cache))
    return {name: _median(found) for name, found in costs.items()}


def settled(path: Path, out: Path) -> Callable[[], None]:
    """Brings the machine into one state before each command that makes `out` from about what `path` holds.

    It is written once and removed, and the disk is at rest: else the first command pays for pages of
    memory that the next one finds ready, and either pays for writing what the one before left.
    """

    def settle() -> None:
        subprocess.run(["cp", path, out], check=True)
        os.sync()
        out.unlink()

    return settle


def _median(costs: list[Cost]) -> Cost:
    seconds = [cost.seconds for cost in costs]
    return Cost(statistics.median(seconds), max(cost.memory for cost in costs), (min(seconds), max(seconds)))


def noise(cost: Cost) -> str:
    """How far single runs were from their median."""
    low, high = (100 * (seconds / cost.seconds - 1) for seconds in cost.spread)
    return f"noise {low:+.0f} … {high:+.0f} %"


def table(first: str, *cells: str) -> None:
    """Print one line of a table."""
    print(f"{first:<44}" + "".join(f" {cell:>9}" for cell in cells), flush=True)


def row(what: str, cost: Cost, floor: float, budget: float | None = None, memory: float | None = None) -> None:
    """Print one line: a figure, its floor, their ratio, and whether the budget holds, where there is one."""
    ratio = cost.seconds / floor
    holds = budget is None or (ratio <= budget and (memory is None or cost.memory <= memory))
    limit = f" (budget {memory:.0f})" if memory else ""
    most = f" (budget {budget:g})" if budget else ""
    verdict = "" if budget is None else "  holds" if holds else "  DOES NOT HOLD"
    print(
        f"{what:<44} {cost.seconds:7.3f} s  floor {floor:7.3f} s  ratio {ratio:5.2f}{most}"
        f"  peak {cost.memory:6.1f} MiB{limit}{verdict}",
        flush=True,
    )
