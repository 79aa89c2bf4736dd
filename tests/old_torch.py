"""Files as old versions of torch wrote them, made byte by byte: today's torch reads them and writes none."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def legacy(
    saved: bytes, keys: object, storages: Sequence[tuple[int, bytes]], system: object = SYSTEM, end: bytes = b""
) -> bytes:
    """A file from before 1.6: the pickled object, the keys, and of each storage its number of elements and its bytes."""
    front = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, system))
    behind = b"".join(struct.pack("<q", numel) + data for numel, data in storages)
    return front + saved + (keys if isinstance(keys, bytes) else pickle.dumps(keys, 2)) + behind + end


def floats(*values: float) -> tuple[int, bytes]:
    """A storage of float32."""
    return len(values), struct.pack(f"<{len(values)}f", *values)


# --- pickles, opcode by opcode -------------------------------------------------------------------


def u(text: str | bytes) -> bytes:
    """A str of Python 2."""
    raw = text.encode() if isinstance(text, str) else text
    return b"U" + bytes([len(raw)]) + raw


def x(text: str) -> bytes:
    """A text."""
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(n: int) -> bytes:
    """An integer as protocol 0 has it."""
    return b"I%d\n" % n


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def sizes(*numbers: int) -> bytes:
    return tuple_of(*map(number, numbers))


def storage(key: bytes, numel: int, word: str = "Float", device: bytes = u("cpu"), rest: bytes = b"N") -> bytes:
    """The persistent id of a storage; `rest` is its view, nothing in files that have none yet."""
    return tuple_of(u("storage"), f"ctorch\n{word}Storage\n".encode(), key, device, number(numel), rest) + b"Q"


def tensor(pid: bytes, offset: int, shape: Sequence[int], strides: Sequence[int], how: str = "_rebuild_tensor") -> bytes:
    more = b"\x89ccollections\nOrderedDict\n)R" if how == "_rebuild_tensor_v2" else b""
    return f"ctorch._utils\n{how}\n".encode() + tuple_of(pid, number(offset), sizes(*shape), sizes(*strides), more) + b"R"


def python2_dict(*pairs: tuple[bytes, bytes]) -> bytes:
    """An OrderedDict as Python 2 pickles it: of a list of lists."""
    items = b"".join(b"](" + key + value + b"e" for key, value in pairs)
    return b"ccollections\nOrderedDict\n](" + items + b"e\x85R"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


# --- tar -----------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Names tensors by number and modules by their class, as torch did."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 2)
        self.tensors: dict[int, torch.Tensor] = {}
        self.classes: set[type] = set()

    def persistent_id(self, obj: object) -> Any:
        if isinstance(obj, torch.Tensor):
            self.tensors[id(obj)] = obj
            return str(list(self.tensors).index(id(obj)) + 1)
        if isinstance(obj, type) and issubclass(obj, torch.nn.Module) and obj not in self.classes:
            self.classes.add(obj)  # from now on it is named by its module, as any other
            return (obj, None, None)
        return None


_STORAGES = {
    torch.float32: torch.FloatStorage, torch.float64: torch.DoubleStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
}  # fmt: skip


def save_tar(saved: object, path: Path) -> Path:
    """A tar file from before 0.1.10. Numbers of tensors count from 1, keys of storages from 1000."""
    made = io.BytesIO()
    pickler = _Pickler(made)
    pickler.dump(saved)
    tensors = pickler.tensors.values()
    numbers = {id(tensor): number for number, tensor in enumerate(tensors, 1)}
    holders = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
    keys = {cdata: key for key, cdata in enumerate(holders, 1000)}
    table = io.BytesIO()
    pickle.dump(len(tensors), table, 2)
    for tensor in tensors:
        pickle.dump((numbers[id(tensor)], keys[tensor.untyped_storage()._cdata], _STORAGES[tensor.dtype]), table, 2)
        sizes = (*tensor.shape, *tensor.stride())
        table.write(struct.pack(f"<i4x{len(sizes)}qq", tensor.dim(), *sizes, tensor.storage_offset()))
    values = pickle.dumps(len(holders), 2)
    for cdata, tensor in holders.items():
        data = bytes(tensor.untyped_storage())
        values += pickle.dumps((keys[cdata], "cpu", _STORAGES[tensor.dtype]), 2)
        values += struct.pack("<q", len(data) // tensor.element_size()) + data
    members = {"sys_info": pickle.dumps(SYSTEM, 2), "pickle": made.getvalue(), "tensors": table.getvalue()}
    return tar(path, {**members, "storages": values + pickle.dumps([], 2)})


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
