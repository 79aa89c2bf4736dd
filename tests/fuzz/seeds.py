"""Make the files that fuzzing begins with: small, of every kind, by the libraries that write them, and some hostile ones."""

from __future__ import annotations

import io
import json
import logging
import pickle
import struct
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import old_torch
import safetensors.torch
import set_files
import torch
from fuzz import archive_mutator, folders, mutators
from torch import fx, nn

jit: Any = torch.jit  # which has no types


# --- what is saved -------------------------------------------------------------------------------


def plain() -> dict[str, torch.Tensor]:
    """A state dict: ties, half precision, integers, a scalar, something empty."""
    torch.manual_seed(1)
    first = torch.randn(3, 2)
    return {
        "0.weight": first, "0.bias": torch.randn(3), "1.weight": first, "half.weight": torch.randn(2, 2).bfloat16(),
        "steps": torch.tensor(3), "empty": torch.empty(0, 2), "mask": torch.tensor([True, False]),
    }  # fmt: skip


def odd() -> dict[str, Any]:
    """Tensors of every layout and dtype that torch rebuilds in a way of its own."""
    base = torch.arange(12.0)
    dense = torch.eye(2)
    quantized = torch.quantize_per_tensor(dense, 0.5, 1, torch.qint8)
    channels = torch.quantize_per_channel(dense, torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.quint8)
    return {
        "view": base[2:8].view(2, 3).t(), "tail": base[9:], "wide": torch.ones(1).expand(3), "conj": torch.ones(2, dtype=torch.cfloat).conj(),
        "neg": torch.ones(2, dtype=torch.cfloat).conj().imag, "coo": dense.to_sparse(), "csr": dense.to_sparse_csr(), "q": quantized,
        "qc": channels, "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "meta": torch.ones(2, device="meta"),
        "f8": dense.to(torch.float8_e4m3fn), "u16": torch.ones(2, dtype=torch.uint16), "param": nn.Parameter(dense),
        "buffer": nn.Buffer(dense), "array": np.arange(3), "size": torch.Size([1, 2]), "dtype": torch.float16, "device": torch.device("cpu"),
    }  # fmt: skip


def module() -> nn.Module:
    """A whole module, with layers whose classes say what their parameters are."""
    return nn.Sequential(OrderedDict(a=nn.Linear(2, 2), n=nn.LayerNorm([2, 1]), r=nn.LSTM(1, 1), b=nn.BatchNorm1d(2)))


def weight_norm() -> Any:
    """Parameters of which two make one weight."""
    return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)).state_dict()


def graph() -> nn.Module:
    """A module whose source code is in the file."""
    return fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def training() -> dict[str, Any]:
    """A training run: the model, its optimizer, and what else people save."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "loss": 0.5,
        "tags": ["a", ("b", None)],
    }


SAVED: dict[str, Callable[[], Any]] = {
    "plain": plain, "odd": odd, "module": module, "weight_norm": weight_norm, "graph": graph, "training": training,
    "bare": lambda: torch.ones(2),
}  # fmt: skip

HOSTILE = (
    b"cos\nsystem\n(X\x04\0\0\0truetR.",
    b"\x80\x02cbuiltins\neval\n(X\x01\0\0\x001tR.",
    b"\x80\x04\x95\x08\0\0\0\0\0\0\0\x8c\x02os\x8c\x06system\x93.",
    b"\x80\x02}q\0(X\x01\0\0\0aq\1cposix\nsystem\n(X\x04\0\0\0truetRu.",
    b"\x80\x02]q\0h\0a.",
    b"\x80\x02}q\0X\x01\0\0\0ah\0s.",
    b"(dp0\nS'a'\np1\nI1\nsg1\nL2L\ns.",
    b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".",
)


# --- one function a target -----------------------------------------------------------------------


def torch_zip() -> Iterator[bytes]:
    """Archives of torch.save, in each protocol, and some that hold an attack."""
    for make in SAVED.values():
        yield saved(make())
    yield saved(training(), pickle_protocol=4)
    yield deflated(saved(plain(), pickle_protocol=5))
    yield from (wrapped(body) for body in HOSTILE)


def torch_legacy() -> Iterator[bytes]:
    """Files as torch before 1.6 wrote them."""
    for name, make in SAVED.items():
        if name not in ("odd", "module"):
            yield saved(make(), _use_new_zipfile_serialization=False)
    yield saved(
        {name: held for name, held in odd().items() if name not in ("f8", "u16", "meta")},
        _use_new_zipfile_serialization=False,
    )
    yield saved(plain(), _use_new_zipfile_serialization=False, pickle_protocol=4)
    small = nn.Identity()  # the source of its class is in the file, too
    small.register_buffer("scale", torch.ones(2))
    yield saved(small, _use_new_zipfile_serialization=False)
    one = old_torch.tensor(old_torch.storage(old_torch.u("7"), 4), 0, (2, 2), (2, 1))
    yield old_torch.legacy(old_torch.pickled(one), ["7"], [old_torch.floats(1, 2, 3, 4)])
    yield from (old_torch.legacy(body, [], []) for body in HOSTILE)


def torch_tar() -> Iterator[bytes]:
    """Tar archives as torch before 0.1.10 wrote them."""
    for held in ({name: tensor for name, tensor in plain().items() if name != "mask"}, module(), training()):
        yield written(lambda path, held=held: old_torch.save_tar(held, path))  # type: ignore[misc]


class Net(nn.Module):
    """A module that TorchScript and torch.export take."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.lin.weight
        self.attribute = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.tied(self.norm(self.lin(x))) + self.passing + self.attribute
        return out


def torchscript() -> Iterator[bytes]:
    """Archives of torch.jit.save, scripted, traced and for phones."""
    net = Net().eval()
    yield written(lambda path: jit.save(jit.script(net), path))
    yield written(lambda path: jit.save(jit.trace(net, torch.ones(1, 2)), path))
    yield written(lambda path: jit.script(net)._save_for_lite_interpreter(str(path)))


def torchscript_json() -> Iterator[bytes]:
    """Archives of torch.jit.save before 1.4."""
    yield written(lambda path: old_torch.save_script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), path))


def torch_export() -> Iterator[bytes]:
    """Archives of torch.export.save as torch 2.13, 2.7 and 2.6 write them."""
    program = torch.export.export(Net().eval(), (torch.ones(1, 2),))
    now = written(lambda path: torch.export.save(program, path))
    yield now
    weights, constants = saved(dict(program.state_dict)), saved(dict(program.constants))
    kept = [
        each
        for each in archive_mutator.records_of(now)
        if b"/data/weights/" not in each.name and b"/data/constants/" not in each.name
    ]
    folder = kept[0].name.partition(b"/")[0]
    record = archive_mutator.Record
    pickled = [
        record(folder + b"/data/weights/model.pt", weights),
        record(folder + b"/data/constants/model.pt", constants),
    ]
    yield archive_mutator.zip_of([*kept, *pickled])
    described = next(each.data for each in kept if each.name.endswith(b"models/model.json"))
    old = {
        "version": b"5.1",
        "serialized_exported_program.json": described,
        "serialized_state_dict.pt": weights,
        "serialized_constants.pt": constants,
    }
    yield archive_mutator.zip_of([record(name.encode(), data) for name, data in old.items()])


def safe() -> Iterator[bytes]:
    """Files of safetensors."""
    for tensors in (
        {},
        {"a": torch.ones(2, 3)},
        {**plain(), "1.weight": torch.ones(2), "f8": torch.ones(2).to(torch.float8_e5m2)},
    ):
        yield safetensors.torch.save(tensors, {"format": "pt", "note": "é"})
    yield from map(
        _safetensors, ({"a": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}, {"__metadata__": {"a": "b"}})
    )
    yield _safetensors(
        {
            "e": {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]},
            "s": {"dtype": "I8", "shape": [], "data_offsets": [0, 1]},
        }
    )


def _safetensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(2)


def sharded() -> Iterator[bytes]:
    """Sets of shards with an index, as transformers writes them."""
    first, second = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}, {"b.weight": torch.zeros(2, 2)}
    for suffix in (".safetensors", ".bin", ".old.bin"):
        yield folder(lambda path, suffix=suffix: set_files.make(path, [first, second], suffix))  # type: ignore[misc]


def dcp() -> Iterator[bytes]:
    """Sets of torch.distributed.checkpoint by one process, and one whose tensors are in chunks."""
    yield folder(lambda path: set_files.saved(path, {**plain(), "n": 3}))
    yield folder(lambda path: set_files.saved(path, training()))
    yield folder(_chunked)


def _chunked(place: Path) -> None:
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    set_files.saved(place, {"w": torch.ones(4, 2)})
    described = pickle.loads((place / ".metadata").read_bytes())  # which was written here, just now
    tensor = described.state_dict_metadata["w"]
    (info,) = described.storage_data.values()
    halves = [dcp.ChunkStorageMetadata(torch.Size((i, 0)), torch.Size((2, 2))) for i in (0, 2)]
    tensor.chunks = halves
    described.storage_data = {
        dcp.MetadataIndex("w", half.offsets, i): _StorageInfo(info.relative_path, info.offset, info.length)
        for i, half in enumerate(halves)
    }
    (place / ".metadata").write_bytes(pickle.dumps(described))


def dcp_shards() -> Iterator[bytes]:
    """Sets of safetensors files of which each holds a part of every tensor."""
    files = []
    for rank in range(2):
        place = json.dumps({"w": {"saved_offsets": [2 * rank, 0]}})
        metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": place}
        held = safetensors.torch.save({"w": torch.full((2, 3), float(rank))}, metadata)
        files.append((f"shard-{rank:05}-model-00001-of-00001.safetensors", held))
    yield folders.packed(files)
    yield files[0][1]


def npy() -> Iterator[bytes]:
    """Arrays of NumPy, which `set` takes values from."""
    for array in (
        np.ones((2, 3), "<f4"),
        np.asfortranarray(np.ones((2, 2), ">f8")),
        np.arange(3),
        np.array(1.5),
        np.array([None], object),
    ):
        held = io.BytesIO()
        np.lib.format.write_array(held, array, allow_pickle=True)
        yield held.getvalue()


def journal() -> Iterator[bytes]:
    """Files whose change in place was cut short, with the journal that undoes it."""
    from paramctl.files.checksums import crc32

    for data in (saved(plain()), b"0123456789abcdef" * 8):
        old, changed = data[16:24], data[:16] + bytes(8) + data[24:]
        run = [16, 8, crc32(old), crc32(bytes(8))]
        described = {
            "file": "x.bin",
            "inode": 0,
            "size": len(data),
            "boot": "",
            "runs": [run],
            "rest": [[0, 8, crc32(data[:8])]],
        }
        yield folders.packed(
            [
                ("x.bin", changed),
                (".x.bin.paramctl-journal", mutators.sealed_journal(old, json.dumps(described).encode())),
            ]
        )


def pickles() -> Iterator[bytes]:
    """Pickles alone, as they are in archives: the fuzzer puts an archive around each."""
    for data in torch_zip():
        yield from (record.data for record in archive_mutator.records_of(data) if record.name.endswith(b"data.pkl"))


def everything() -> Iterator[bytes]:
    """The first seeds of each format, for what is done with all of them."""
    for make in (
        torch_zip,
        torch_legacy,
        torch_tar,
        torchscript,
        torchscript_json,
        torch_export,
        safe,
        sharded,
        dcp,
        dcp_shards,
    ):
        yield from list(make())[:4]


@cache
def made(make: Callable[[], Iterator[bytes]]) -> tuple[bytes, ...]:
    """Return the seeds that a function makes, without what the libraries have to say."""
    with quiet():
        return tuple(make())


# --- how files come to be ------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Deprecations of torch are none of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def saved(held: object, **options: Any) -> bytes:
    """Return what torch.save writes."""
    out = io.BytesIO()
    torch.save(held, out, **options)
    return out.getvalue()


def deflated(data: bytes) -> bytes:
    """Return an archive with its records compressed, as other tools repack it."""
    return archive_mutator.zip_of([record._replace(deflated=True) for record in archive_mutator.records_of(data)])


def wrapped(body: bytes) -> bytes:
    """Return an archive of torch.save around a pickle, with a few storages that it may name."""
    record = archive_mutator.Record
    storages = [record(b"a/data/%d" % i, bytes(range(64))) for i in range(4)]
    return archive_mutator.zip_of(
        [record(b"a/data.pkl", body), record(b"a/byteorder", b"little"), *storages, record(b"a/version", b"3\n")]
    )


def written(write: Callable[[Path], object]) -> bytes:
    """Return the file that a function writes."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "x.bin")
        write(path)
        return path.read_bytes()


def folder(write: Callable[[Path], object]) -> bytes:
    """Return the folder that a function writes."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "set")
        write(path)
        return folders.of(path)


def mutations(name: str, seeds: tuple[bytes, ...], count: int) -> Iterator[bytes]:
    """Yield mutations of seeds; the same ones each time."""
    rng = Random(name)
    return (mutators.mutate(rng.choice(seeds), rng, rng.choice(seeds)) for _ in range(count))
