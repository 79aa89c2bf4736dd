"""Say where a tensor stands in a pickle, and which storages its archive has."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, Protocol

from paramctl.files.content import read
from paramctl.formats.pickles.nodes import Call
from paramctl.model.checkpoint import Kind, Param, Storage
from paramctl.model.dtypes import DType
from paramctl.model.shapes import Sizes


class Stored(NamedTuple):
    """The storage a tensor names: its key, the dtype its class says, its bytes, and its device.

    A storage may be a part of the one with that key, `start` bytes into it.
    """

    key: str
    dtype: DType | None  # None: untyped, the tensor says its dtype itself
    nbytes: int
    device: str
    start: int = 0


class Storages(Protocol):
    """The storages of an archive: `find` takes a pickled id, `open` reads one."""

    def find(self, pid: object) -> Stored: ...
    def open(self, key: str) -> Storage: ...


class Remembered:
    """Storages, and the sizes that were read from them: many tensors may share one table of those."""

    def __init__(self, storages: Storages) -> None:
        self.find = storages.find
        self._open = storages.open
        self._ragged: dict[tuple[str | None, int, Sizes], Sizes] = {}

    def ragged(self, table: Param) -> Sizes:
        """Return the sizes of the tensors in a nested one, row by row in `table`; a size that differs is -1."""
        key = table.storage, table.offset, table.shape
        if key not in self._ragged:
            self._ragged[key] = self._read(table)
        return self._ragged[key]

    def _read(self, table: Param) -> Sizes:
        rows, columns = table.shape
        stored = self._open(str(table.storage))
        pattern = f"{'<' if stored.byteorder == 'little' else '>'}{rows * columns}q"
        found = struct.unpack(pattern, read(stored.content, table.start, table.nbytes))
        distinct = [set(found[i::columns]) for i in range(columns)]
        return tuple(sizes.pop() if len(sizes) == 1 else -1 for sizes in distinct)


class TensorPlace(NamedTuple):
    """The place of a tensor in a pickle: its path and kind, its node, and the container that holds it.

    `position` counts as `pickle_writer.write` counts. `module` is the step of the module whose parameter
    it is, or None outside of modules. `depth` counts the tensors wrapped around it; `is_part` says that
    it is a part of another, which has no parts itself: those of parts of parts would be without end.
    """

    path: str
    kind: Kind
    node: Call
    step: Step | None
    position: int
    module: Step | None
    depth: int = 0
    is_part: bool = False


class Step:
    """A container on the way from the root to a tensor, as one path reaches it.

    `position` is where it lies in the container of `parent`.
    """

    __slots__ = ("container", "parent", "position")

    def __init__(self, container: Any, parent: Step | None, position: int) -> None:
        self.container = container
        self.parent = parent
        self.position = position
