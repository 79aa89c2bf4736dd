"""Files that claim numbers, shapes and parts as no honest one does: each ends in a listing or in one line."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutants
import pytest
import torch
from helpers import listing, records, refused, rezipped
from torch import nn

from paramctl.cli.app import main
from paramctl.errors import FormatError
from paramctl.formats import opening
from paramctl.formats.pickles import writer
from paramctl.formats.pickles.nodes import Call, Dict, Global

ROOM = 4 << 30  # bytes of address space beside those that are in use: a list of 2**31 does not fit
FEW = 4  # mutants of each file in the suite
SEEDS: dict[str, Callable[[Path], Path]] = {
    "training": mutants.torch_file(mutants.training),
    "module": mutants.torch_file(mutants.module),
    "legacy": mutants.torch_file(mutants.training, legacy=True),
    "legacy module": mutants.torch_file(mutants.module, legacy=True),
    "safetensors": mutants.safetensors_file,
    "nested": mutants.torch_file(lambda: {"n": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])}),
    "jagged": mutants.torch_file(
        lambda: {"n": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)}
    ),
    "sparse": mutants.torch_file(lambda: {"n": torch.eye(3).to_sparse(), "m": torch.eye(4).to_sparse_bsr((2, 2))}),
    "quantized": mutants.torch_file(
        lambda: {"n": torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8)}
    ),
    "views": mutants.torch_file(lambda: {"n": torch.ones(1, 3).expand(4, 3), "m": torch.ones(2, dtype=torch.complex64).conj()}),
    "meta": mutants.torch_file(lambda: {"n": torch.empty(2, 2, device="meta"), "m": nn.Parameter(torch.ones(2, 2))}),
}
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(sys.platform != "linux", reason="limits memory")]


@contextlib.contextmanager
def little_room() -> Iterator[None]:
    """Whoever takes gigabytes meanwhile gets a MemoryError, which the commands report."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run(*args: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, args)])
    return code, out.getvalue(), err.getvalue()


def commands(file: Path, paths: list[str], out: Path) -> Iterator[list[object]]:
    """Each verb over a file; those that name one tensor, over each of a few paths."""
    for verb in ("check", "ls", "tree", "stats", "ties"):
        yield [verb, file]
    yield ["tree", file, "--json"]
    for to in ("safetensors", "torch-zip", "torch-legacy"):
        yield ["convert", file, "--to", to, "--lossy", "-o", out, "-f"]
    yield ["init", file, "--scheme", "constant:1", "--seed", 1, "-o", out, "-f"]
    for path in paths:
        yield ["show", file, path]
        yield ["show", file, path, "--json"]
        yield ["show", file, path, "--npy", "-o", out, "-f"]
        yield ["set", file, f"{path} = 1", "-o", out, "-f"]
        yield ["set", file, f"{path} *= 2", "-o", out, "-f"]


@pytest.mark.parametrize("name", list(SEEDS))
def test_every_mutant_ends_in_a_listing_or_one_line(tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    honest = SEEDS[name](tmp_path)
    for mutant in mutants.mutants(honest, draw, FEW):
        with little_room():
            _, listed, _ = run("ls", mutant)
            paths = [line.split("\t")[0] for line in listed.splitlines()]
            for command in commands(mutant, draw.sample(paths, min(2, len(paths))), tmp_path / "out"):
                code, _, error = run(*command)
                kept = mutant.read_bytes()
                assert code in (0, 1, 2, 3) and "internal error" not in error, (command, error, kept)
                assert "memory" not in error and "Traceback" not in error, (command, error, kept)


# --- work that is linear in the file ------------------------------------------------------------


def work(path: Path) -> int:
    """How many functions are called to list a file, and how many characters the listing has."""
    count = characters = 0

    def counted(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        with contextlib.suppress(FormatError):
            entries = opening.open(str(path)).entries
            sys.setprofile(None)
            characters = sum(len(entry.path) + len(str(getattr(entry, "value", ""))) for entry in entries)
    finally:
        sys.setprofile(None)
    return count + characters


def with_root(tmp_path: Path, root: Any) -> Path:
    """A file of torch.save with another object in it."""
    path = tmp_path / "x.pt"
    torch.save({}, path)
    held = records(path)
    name = next(name for name in held if name.endswith("data.pkl"))
    return rezipped(path, {**held, name: writer.write(root, 2)})


def pairs(items: list[tuple[Any, Any]]) -> Dict:
    made = Dict()
    made.pairs = items
    return made


def built(*states: Any) -> Call:
    made = Call(Global("m", "C"), (), None, "reduce")
    made.mutations = [("build", state) for state in states]
    return made


def doubled(n: int) -> Any:
    """A list of n levels, each of which holds the next twice."""
    node: Any = [built(1)]
    for _ in range(n.bit_length()):
        node = [node, node]
    return node


MEETINGS: dict[str, Callable[[int], Any]] = {
    "one state": lambda n: [built(pairs([(str(i), 1) for i in range(n)]))] * n,
    "an object of many states": lambda n: [built(*[1] * n)] * n,
    "many objects of one state": lambda n: (lambda state: [built(state) for _ in range(n)])(pairs([(str(i), 1) for i in range(n)])),
    "one dict": lambda n: [pairs([(str(i), built(1)) for i in range(n)])] * n,
    "one dict of one key": lambda n: [pairs([("k", built(1))] * n)] * n,
    "one list of numbers": lambda n: [pairs([("k", [1.5] * n)])] * n,
    "one long name": lambda n: pairs([("x" * 20 * n, pairs([(str(i), built(1)) for i in range(n)]))]),
    "one long text": lambda n: (lambda text: pairs([(str(i), text) for i in range(n)]))("x" * 20 * n),
    "modules": lambda n: [built(pairs([("_parameters", pairs([])), ("_modules", pairs([])), *((str(i), 1) for i in range(n))]))] * n,
    "a graph of two ways": doubled,
}


@pytest.mark.parametrize("name", list(MEETINGS))
def test_what_is_met_again_costs_no_more_than_its_place_in_the_file(tmp_path: Path, name: str) -> None:
    few, many = (work(with_root(tmp_path, MEETINGS[name](n))) for n in (500, 2000))
    assert many < 6 * few, f"{few:,} calls and characters for 500, {many:,} for 2,000"


def test_a_sparse_tensor_of_sparse_tensors_is_refused(tmp_path: Path) -> None:
    """Each level would be read twice as often as the one around it."""
    plain = Call(Global("torch._utils", "_rebuild_tensor_v2"), (1, 0, (1,), (1,), False, pairs([])), None, "reduce")
    layout = Call(Global("torch.serialization", "_get_layout"), ("torch.sparse_coo",), None, "reduce")
    node = plain
    for _ in range(60):
        node = Call(Global("torch._utils", "_rebuild_sparse_tensor"), (layout, (node, node, (1,))), None, "reduce")
    path = with_root(tmp_path, pairs([("w", node)]))
    what = "tensor 'w.indices' is a part of another, and made of parts itself"
    assert refused(FormatError, listing, path) == f"{path}: {what}"
