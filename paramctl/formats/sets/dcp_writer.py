"""Write a folder of torch.distributed.checkpoint with torch's own writer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.errors import FileError
from paramctl.files.content import Buffer
from paramctl.files.sources import Source, open_source
from paramctl.model.dtypes import DType

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
from collections.abc import Sequence
from functools import partial

from paramctl.errors import UsageError
from paramctl.files.content import Extent, chunks
from paramctl.files.set_names import Part
from paramctl.formats.sets.dcp_metadata import INDEX, NAME
from paramctl.model.checkpoint import Checkpoint, Entry, Leaf
from paramctl.model.dtypes import PAIRS
from paramctl.model.keys import InTuple, Keys, nested, path_of
from paramctl.values.arrays import content_of
from paramctl.values.torch_import import import_torch


class Saved(NamedTuple):
    """A tensor that is to be saved; `chunks` makes its values, little-endian in C order, when they are needed."""

    dtype: DType
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Buffer]]


def save_distributed(items: Mapping[str, Saved | object], nested: Mapping[str, Any]) -> dict[str, Source]:
    """Return the files that torch.distributed.checkpoint makes of tensors and plain values, by their names.

    `items` are all of them by path, `nested` the same as they are to lie in dicts and lists.
    They lie in the directory for temporary files and have lost their names there, so that they are gone
    when nobody reads them any more. Of the tensors one is in memory at a time.
    """
    with TemporaryDirectory(prefix="paramctl-") as folder:
        _save_distributed(items, nested, folder)
        return {path.name: open_source(str(path)) for path in Path(folder).iterdir()}


def _save_distributed(items: Mapping[str, Saved | object], nested: Mapping[str, Any], folder: str) -> None:
    """Write with torch's own writer, which is told nothing that differs from one run to the next."""
    torch = import_torch()
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    last: list[Any] = []  # the tensor that was read last

    class Planner(DefaultSavePlanner):
        """Reads a tensor when its turn comes, and takes the memory of the one before, which the writer still holds."""

        def lookup_object(self, index: Any) -> object:
            saved = items.get(index.fqn)
            if not isinstance(saved, Saved):  # a value, or a list of them
                return super().lookup_object(index)
            for tensor in last:
                tensor.untyped_storage().resize_(0)
            last[:] = [_tensor_of_its_own(saved)]
            return last[0]

    class Writer(FileSystemWriter):
        def storage_meta(self) -> None:
            return None

    def described(found: Any) -> Any:
        """Return the object with each tensor in it replaced by a description without values."""
        if isinstance(found, Saved):
            return torch.empty(found.shape, dtype=getattr(torch, found.dtype.name), device="meta")
        if isinstance(found, Mapping):
            return {key: described(each) for key, each in found.items()}
        return type(found)(map(described, found)) if type(found) in (list, tuple) else found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process, which is what is meant
        try:
            save(described(nested), storage_writer=Writer(folder, sync_files=False), planner=Planner(), no_dist=True)
        except CheckpointException as error:
            raise _reason(error) from None


def _reason(error: CheckpointException) -> BaseException:
    """Return the error of the only process."""
    found = error.failures[0][0]
    refusal: BaseException | None = found
    while refusal is not None and not isinstance(refusal, OSError):
        refusal = refusal.__context__  # torch closes its archive after a failed write, and fails at that too
    if refusal is None:
        return found
    hint = "make room in the directory for temporary files, or set TMPDIR to a larger place"
    return FileError(f"cannot write: {refusal.strerror}", hint=hint)


def _tensor_of_its_own(saved: Saved) -> torch.Tensor:
    """Return a tensor whose memory torch can free."""
    import ctypes

    torch = import_torch()
    made = torch.empty(saved.shape, dtype=getattr(torch, saved.dtype.name))
    # An array of numpy's over the same memory would keep torch from giving it back.
    memory = (ctypes.c_ubyte * made.nbytes).from_address(made.data_ptr()) if made.nbytes else b""
    view, at = memoryview(memory).cast("B"), 0
    for chunk in saved.chunks():
        view[at : at + len(chunk)] = chunk
        at += len(chunk)
    return made  # type: ignore[no-any-return]


def no_place(entry: Entry, keys: Mapping[str, Keys]) -> str:
    """Return why an entry cannot be written anew; empty if it can."""
    if isinstance(entry, Leaf):
        return "object" if entry.is_object else "empty dict" if entry.value == {} else ""
    if not entry.is_plain:
        return f"{entry.layout} tensor"
    if any(isinstance(key, InTuple) for key in keys.get(entry.path, ())):
        return "tensor in a tuple, which torch saves as one object"
    if entry.dtype.name.startswith(("float6_", "float4_")) and entry.dtype.name != PAIRS:
        return f"{entry.dtype.name}, which torch has no dtype for"
    return f"{entry.dtype.name} tensor" if entry.dtype.bits % 8 else ""


def new_set(checkpoint: Checkpoint, names: Mapping[str, str]) -> Sequence[Part]:
    """Return the files that torch's own writer makes, with one tensor in memory at a time."""
    from paramctl.formats.sets.dcp_writer import Saved, save_distributed

    items: dict[str, Saved | object] = {}
    keys: list[Keys] = []
    for entry in checkpoint.entries:
        if entry.path in items:
            raise UsageError(f"two entries print as '{entry.path}', and {NAME} has one name for each")
        if isinstance(entry, Leaf):
            items[entry.path] = entry.value
        else:
            content = content_of(checkpoint, entry)
            items[entry.path] = Saved(entry.dtype, entry.shape, partial(chunks, content))
        found = checkpoint.keys.get(entry.path, ())
        keys.append(found if path_of(found) == entry.path else (entry.path,))
    whole = nested(zip(keys, items.values(), strict=True))
    sources = save_distributed(items, whole if isinstance(whole, dict) else items)
    ordered = sorted(sources, key=lambda name: name == INDEX)
    return [Part(names.get(name, name), (Extent(sources[name], 0, sources[name].size),), name) for name in ordered]
