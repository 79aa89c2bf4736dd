"""Files as old versions of torch wrote them, made byte by byte: today's torch reads them and writes none."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

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


# --- TorchScript before 1.4 ----------------------------------------------------------------------

CAFFE2 = {
    torch.float32: "FLOAT", torch.float64: "DOUBLE", torch.float16: "FLOAT16", torch.bool: "BOOL", torch.uint8: "UINT8",
    torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64",
    torch.qint8: "INT8", torch.quint8: "UINT8", torch.qint32: "INT32",
}  # fmt: skip
CODE = b"op_version_set = 0\ndef forward(self,\n    x: Tensor) -> Tensor:\n  return x\n"


def raw_storage(held: torch.UntypedStorage) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(held).numpy().tobytes()


class _Table:
    """The table of tensors, and the records that they lie in."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.records: dict[str, bytes] = {}
        self._keys: dict[int, str] = {}

    def add(self, value: torch.Tensor) -> str:
        held = value.untyped_storage()
        key = self._keys.setdefault(held.data_ptr() or id(value), f"tensors/{len(self.lines)}")
        self.records.setdefault(key, raw_storage(held))
        line = {
            "dims": [str(n) for n in value.shape], "offset": str(value.storage_offset()),
            "strides": [str(n) for n in value.stride()], "requiresGrad": value.requires_grad,
            "dataType": CAFFE2[value.dtype], "data": {"key": key}, "device": str(value.device),
        }  # fmt: skip
        if value.is_quantized:
            line |= {"isQuantized": True, "scale": value.q_scale(), "zeroPoint": str(value.q_zero_point())}
        self.lines.append(line)
        return str(len(self.lines) - 1)


def script_records(module: nn.Module, name: str = "Net") -> dict[str, bytes]:
    """What torch.jit.save before 1.4 made of a module: its records in their order."""
    table = _Table()

    def described(module: nn.Module, name: str) -> dict[str, Any]:
        held = [(each, False) for each in module._parameters.items()] + [(each, True) for each in module._buffers.items()]
        return {
            "submodules": [described(inner, key) for key, inner in module._modules.items() if inner is not None],
            "torchscriptArena": {"key": "code/Net.py"},
            "parameters": [
                {"isBuffer": is_buffer, "tensorId": table.add(value), "name": key}
                for (key, value), is_buffer in held if value is not None
            ],
            "name": name, "optimize": True,
        }  # fmt: skip

    main = described(module, name)
    table.add(torch.full((2,), 7.0))  # a constant of the code
    model = {
        "protoVersion": "3", "mainModule": main, "producerName": "pytorch", "producerVersion": "1.0",
        "tensors": table.lines,
    }  # fmt: skip
    attributes = pickle.dumps((), 2)
    return {
        **table.records, "code/Net.py": CODE, "attributes.pkl": attributes, "model.json": json.dumps(model).encode(),
    }  # fmt: skip


def save_script(module: nn.Module, path: Path) -> Path:
    """A TorchScript archive from before 1.4."""
    return script_archive(path, script_records(module))


def script_archive(path: Path, records: Mapping[str, bytes]) -> Path:
    """An archive of these records, as torch's own writer makes it."""
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in records.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return path
