"""The one place that knows atheris, which has no types: a fuzzer guided by the lines of paramctl that an input reaches."""

from __future__ import annotations

import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import paramctl

HANGS = 60  # seconds in which one input must end, or else the process is stopped: Python may not get to do so
ENDED = "ended-by-"  # how the names of inputs begin that stopped the process
OWN_SHARE = 0.15  # of mutations are libFuzzer's own, which knows what an input was compared with
REPORTED = 1.0  # seconds between reports


def is_there() -> bool:
    """Return whether atheris is installed."""
    return find_spec("atheris") is not None


@contextmanager
def instrumented() -> Iterator[None]:
    """Instrument what is imported of paramctl inside."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["paramctl"]):
        yield


def import_all() -> None:
    """Import all of paramctl, and what it imports late: nothing may be imported for the sake of a file."""
    for found in pkgutil.walk_packages(paramctl.__path__, "paramctl."):
        if not found.name.endswith("__main__"):
            import_module(found.name)
    for name in _LATE:
        import_module(name)


_LATE = (
    "numpy.lib.format", "numpy.ma", "safetensors.numpy", "torch", "torch.nn.init", "torch.distributed.checkpoint.state_dict_saver", "ml_dtypes", "hashlib", "encodings.idna", "fractions",
    "decimal", "difflib", "getpass", "pickletools", "tokenize", "rich.console", "rich.table", "rich.tree", "rich.text", "rich.progress",
    "typer.main", "typer.rich_utils", "json.encoder", "encodings.latin_1", "encodings.raw_unicode_escape", "encodings.ascii",
)  # fmt: skip


def fuzz(
    one: Callable[[bytes], None], mutate: Callable[[bytes, Random, bytes], bytes], corpus: Path, seconds: float, largest: int,
    report: Callable[[int], None],
) -> None:  # fmt: skip
    """Give `one` mutations of what is in the folder `corpus` for so long, keep there what reaches something new, and end the process."""
    atheris: Any = import_module("atheris")
    end = time.monotonic() + seconds
    count, said = 0, 0.0

    def test_one(data: bytes) -> None:
        nonlocal count, said
        one(data)
        count += 1
        now = time.monotonic()
        if now - said > REPORTED or now > end:
            said = now
            report(count)
        if now > end:
            sys.stdout.flush()
            os._exit(0)  # libFuzzer ends by a signal or an exit of its own, in which Python does not clean up either

    def mutated(data: bytes, largest: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < OWN_SHARE:
            return bytes(atheris.Mutate(data, largest))
        return mutate(data, rng, b"")[:largest]

    def crossed(data: bytes, other: bytes, largest: int, seed: int) -> bytes:
        return mutate(data, Random(seed), other)[:largest]

    options = [
        f"-timeout={HANGS}",
        f"-max_len={largest}",
        "-rss_limit_mb=4096",
        "-print_final_stats=0",
        f"-artifact_prefix={corpus.parent}/{ENDED}",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one, custom_mutator=mutated, custom_crossover=crossed)
    atheris.Fuzz()
