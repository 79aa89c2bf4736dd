"""What tests of formats share: sources made of bytes, listings told as rows, and files compared byte by byte."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from paramctl.errors import ParamctlError
from paramctl.files import targets
from paramctl.files.sources import Source, open_source
from paramctl.formats import opening, saving
from paramctl.model.checkpoint import Checkpoint

# --- errors and files ----------------------------------------------------------------------------


def refused(kind: type[ParamctlError], call: Callable[..., object], *args: Any) -> str:
    """The message of the error of just this kind that a call raises."""
    try:
        call(*args)
    except ParamctlError as error:
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        return str(error)
    raise AssertionError(f"{kind.__name__} was not raised")


def file_of(folder: Path, data: bytes, name: str = "x.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def source_of(folder: Path, data: bytes, name: str = "x.bin") -> Source:
    return open_source(str(file_of(folder, data, name)))


def listing(path: Path) -> Checkpoint:
    return opening.open(str(path))


def save(checkpoint: Checkpoint, path: Path) -> Path:
    """The checkpoint in a new file, or in one that may be replaced."""
    saving.save(checkpoint, targets.NewFile(path, True))
    return path


def streamed(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as a pipe gets it."""
    read_end, write_end = os.pipe()
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read_end, "rb") as file:
            got.append(file.read())

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        saving.save(checkpoint, targets.Stream(write_end))
    finally:
        os.close(write_end)
        reader.join()
    return got[0]


def source_in_memory(data: bytes) -> Source:
    """A source that is no file on any disk, for tests that need thousands."""
    fd = os.memfd_create("test")
    os.write(fd, data)
    return Source(fd, "-", None)


@contextlib.contextmanager
def stdin_from(fd: int) -> Iterator[None]:
    """Standard input is `fd` meanwhile."""
    kept = os.dup(0)
    os.dup2(fd, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@contextlib.contextmanager
def stdin_pipe(data: bytes) -> Iterator[None]:
    """Standard input is a pipe through which `data` comes."""
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=feed)
    writer.start()
    try:
        with stdin_from(read_end):
            yield
    finally:
        os.close(read_end)
        writer.join()


def changed_bytes(a: Path, b: Path) -> set[int]:
    """Offsets at which two files of one length differ."""
    one, other = a.read_bytes(), b.read_bytes()
    assert len(one) == len(other)
    return {i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y}


# --- what is listed ------------------------------------------------------------------------------

Row = tuple[str, str, tuple[int, ...], tuple[int, ...]]


def rows(checkpoint: Checkpoint) -> list[Row]:
    """Path, dtype, shape and strides of every param."""
    return [(p.path, p.dtype.name, p.shape, p.strides) for p in checkpoint.params]


def ties(checkpoint: Checkpoint) -> list[list[str]]:
    return [[checkpoint.labels[i] for i in group] for group in checkpoint.groups()]


# --- what torch holds ----------------------------------------------------------------------------


def tensors(obj: object) -> dict[str, torch.Tensor]:
    """Every tensor of an object that torch saved, by the path it should have, in order."""
    return dict(_walk(obj, ""))


def _walk(obj: object, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(obj, torch.Tensor):
        yield path, obj
        return
    children: Iterator[tuple[object, object]] = iter(())
    if isinstance(obj, nn.Module):
        found = vars(obj)
        parts = (held for key, held in found.items() if key in ("_parameters", "_buffers", "_modules"))
        children = ((name, child) for held in parts for name, child in held.items())
    elif isinstance(obj, Mapping):
        children = iter(obj.items())
    elif isinstance(obj, list | tuple):
        children = iter(enumerate(obj))
    for name, child in children:
        yield from _walk(child, f"{path}.{name}" if path else str(name))


def raw(tensor: torch.Tensor) -> bytes:
    """The values of a strided tensor as bytes in C order."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(plain.untyped_storage())[plain.storage_offset() * plain.element_size() :][
        : plain.numel() * plain.element_size()
    ]


def assert_same_but(before: object, after: object, changed: set[str]) -> None:
    """Every tensor is the same bytes in the same shape and dtype, except for those that were `changed`."""
    old, new = tensors(before), tensors(after)
    assert list(old) == list(new)
    for path, tensor in old.items():
        other = new[path]
        assert (tensor.shape, tensor.dtype, type(tensor)) == (other.shape, other.dtype, type(other)), path
        if tensor.layout == torch.strided and not tensor.is_meta and path not in changed:
            assert raw(tensor) == raw(other), path


# --- zip archives --------------------------------------------------------------------------------


class Spot(NamedTuple):
    """Where the parts of one record of a zip file lie."""

    local: int
    payload: int
    nbytes: int
    central: int


def spots(path: Path) -> dict[str, Spot]:
    """The place of each record, as Python's zipfile tells it."""
    data = path.read_bytes()
    found: dict[str, Spot] = {}
    with zipfile.ZipFile(path) as archive:
        central = archive.start_dir
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<2H", data, info.header_offset + 26)
            payload = info.header_offset + 30 + name_length + extra_length
            found[info.filename] = Spot(info.header_offset, payload, info.compress_size, central)
            central += 46 + sum(struct.unpack_from("<3H", data, central + 28))
    return found


def record_of(path: Path, ending: str) -> Spot:
    (found,) = [spot for name, spot in spots(path).items() if name.endswith(ending)]
    return found


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rezipped(path: Path, held: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """An archive of these records, as Python's zipfile writes it."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


def sums_hold(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def without_plan(report: str) -> str:
    """The report of a dry run without what a write would take, which depends on the size of torch's files."""
    return re.sub(r"(?<=\(dry run\); )would .*", "…", report)
