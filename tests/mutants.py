"""Honest files whose numbers, shapes and parts are replaced by others, which stay well-formed files."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from helpers import records, rezipped
from safetensors.torch import save_file
from torch import nn

from paramctl.formats.pickles import reader, writer
from paramctl.formats.pickles.nodes import is_key, slots

NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 1 << 70, 1 << 20_000, -(1 << 20_000),
    True, None, 0.5, float("nan"), float("inf"), 1e300, "", "x", "9" * 5000, b"x",
]  # fmt: skip
SHAPES: list[Any] = [
    (), (1,), (0,), (2, 2), (1,) * 33, (1,) * 64, (1,) * 65, (0,) * 64, (2,) * 64, (2**31, 0), (0, 2**31), (0, 2**62, 2**62),
    (2**62, 2**62, 0), (2**31, 2**31), (2**32, 2**32), (2**63,), (-1,), (5000, 0), (3, 0, 2**40), [4, 4],
    (True,), (1.5,), ("x",), (None,), ((1,),), (1 << 20_000,),
]  # fmt: skip


def training() -> dict[str, Any]:
    """A training checkpoint: a model's state, Adam's, and numbers."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "losses": [0.5, 0.25]}


def module() -> nn.Module:
    """A whole module of many kinds of layers."""
    layers = (
        nn.Conv2d(1, 2, 3), nn.LayerNorm([2, 3]), nn.LSTM(3, 2), nn.MultiheadAttention(4, 2), nn.BatchNorm1d(2),
        nn.Embedding(5, 3, padding_idx=0), nn.GroupNorm(1, 2), nn.Bilinear(2, 2, 2),
    )  # fmt: skip
    tied = nn.Linear(3, 3)
    return nn.ModuleDict({"layers": nn.ModuleList(layers), "a": tied, "b": nn.Sequential(tied)})


def torch_file(make: Callable[[], Any], *, legacy: bool = False) -> Callable[[Path], Path]:
    """What writes an object with torch.save."""

    def write(folder: Path) -> Path:
        path = folder / "honest.pt"
        torch.save(make(), path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


def safetensors_file(folder: Path) -> Path:
    path = folder / "honest.safetensors"
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.int64), "h": torch.ones(2).half()}
    save_file(tensors, path, {"format": "pt"})
    return path


def mutants(path: Path, draw: random.Random, count: int) -> Iterator[Path]:
    """Files beside `path`, each like it but for one to three of its numbers, shapes and parts."""
    make = _of_header if path.suffix == ".safetensors" else _of_archive if path.read_bytes()[:2] == b"PK" else _of_legacy
    for i in range(count):
        made = make(path, draw, path.with_name(f"mutant{i}{path.suffix}"))
        yield made
        made.unlink()


def _of_header(path: Path, draw: random.Random, made: Path) -> Path:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for entry in header.values():
        if "shape" in entry and draw.random() < 0.6:
            shape = draw.choice(SHAPES[:-1])
            entry["shape"] = shape if draw.random() < 0.5 else [*draw.choices([*NUMBERS[:13], "LONG"], k=draw.randint(0, 3))]
            entry["dtype"] = draw.choice([entry["dtype"], "F4", "F64", "BOOL", "C64", "F6_E2M3"])
    at = 0
    for entry in header.values():
        if "shape" in entry and draw.random() < 0.8:  # mostly bytes as the shape wants them
            wanted = _nbytes(entry)
            entry["data_offsets"] = [at, at + wanted]
            at += wanted
    text = json.dumps(header, default=repr).encode().replace(b'"LONG"', b"9" * 5000)
    made.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return made


def _nbytes(entry: dict[str, Any]) -> int:
    """Bytes of a tensor, 0 where its shape is none or too large to be had."""
    numel = 1
    for n in entry["shape"] if isinstance(entry["shape"], list | tuple) else ():
        numel *= n if isinstance(n, int) else 0
    bits = {"F64": 64, "I64": 64, "C64": 64, "F32": 32, "F16": 16, "F4": 4, "F6_E2M3": 6}.get(entry["dtype"], 8)
    return numel * bits // 8 if 0 <= numel < 10_000 else 0


def _of_archive(path: Path, draw: random.Random, made: Path) -> Path:
    made.write_bytes(path.read_bytes())
    held = records(made)
    name = next(name for name in held if name.endswith("data.pkl"))
    return rezipped(made, {**held, name: _of_pickle(held[name], draw)})


def _of_legacy(path: Path, draw: random.Random, made: Path) -> Path:
    data = path.read_bytes()
    starts = [0]
    for _ in range(5):
        starts.append(reader.read(data, starts[-1]).end)
    which = draw.choice([1, 3, 3, 3, 3, 4])
    changed = _of_pickle(data[starts[which] : starts[which + 1]], draw)
    made.write_bytes(data[: starts[which]] + changed + data[starts[which + 1] :])
    return made


def _of_pickle(data: bytes, draw: random.Random) -> bytes:
    """A pickle in which numbers, tuples of numbers or any parts are replaced; the old one where none can be written."""
    pickle = reader.read(data)
    found = [*_slots(pickle.root)]
    if not found:
        return writer.write(draw.choice(NUMBERS), max(pickle.protocol, 2))
    numbers = [(node, at) for node, at, held in found if isinstance(held, int | float)]
    shapes = [(node, at) for node, at, held in found if isinstance(held, tuple) and all(type(n) is int for n in held)]
    replace: dict[tuple[int, int], Any] = {}
    for _ in range(draw.randint(1, 3)):
        kind = draw.random()
        if kind < 0.35 and numbers:
            node, at = draw.choice(numbers)
            replace[id(node), at] = draw.choice(NUMBERS)
        elif kind < 0.8 and shapes:
            node, at = draw.choice(shapes)
            replace[id(node), at] = draw.choice(SHAPES)
            if isinstance(node, tuple) and draw.random() < 0.6:  # strides beside a shape, of the same length
                shape = replace[id(node), at]
                replace[id(node), at + 1] = tuple(draw.choice([0, 0, 1, 2**62]) for _ in shape)
        else:
            (node, at, _), (_, _, other) = draw.choice(found), draw.choice(found)
            replace[id(node), at] = other if draw.random() < 0.7 else draw.choice([*NUMBERS, *SHAPES])
    try:
        return writer.write(pickle.root, max(pickle.protocol, 2), replace)
    except Exception:  # noqa: BLE001 - cycles, or a part where the writer knows no such
        return data


def _slots(root: Any) -> Iterator[tuple[Any, int, Any]]:
    """Every container of a pickle with each position in it that may be replaced, and what is there."""
    todo, seen = [root], {id(root)}
    for node in todo:
        for at, held in slots(node):
            if not is_key(at):
                yield node, at, held
            if id(held) not in seen:
                seen.add(id(held))
                todo.append(held)
