"""What a saved model is, whatever its format: its params, where their bytes are, and what else it holds.

Everything here is immutable and holds no values. A verb returns a new Checkpoint that shares what it
did not touch; a format turns one into segments.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Literal, NamedTuple, TypeVar, cast

from paramctl.errors import FormatError, ParamctlError
from paramctl.files.content import Content, crc32
from paramctl.files.sources import STDIN, Source
from paramctl.model.dtypes import DType
from paramctl.model.keys import Keys
from paramctl.model.shapes import MAX_INT

Kind = Literal["parameter", "buffer", "optimizer", "tensor"]
T = TypeVar("T")
View = tuple[str | None, int, tuple[int, ...], tuple[int, ...], str, frozenset[str]]


class Storage(NamedTuple):
    """A run of bytes that holds values.

    `content` says where the bytes are; `byteorder` how each element is stored; `crc32` what they must
    sum up to, or None where the file does not say or they are new.
    """

    content: tuple[Content, ...]
    nbytes: int
    byteorder: Literal["little", "big"] = "little"
    crc32: int | None = None

    def check(self, key: str) -> None:
        """Raise FormatError if the bytes are not those that were written."""
        if self.crc32 is not None:
            self.check_sum(crc32(self.content), key)

    def check_sum(self, found: int, key: str) -> None:
        """Raise FormatError if the bytes sum up to something else than those that were written."""
        if self.crc32 not in (None, found):
            raise FormatError(f"storage {key} is corrupt: its bytes do not match their CRC-32")


class Quantizer(NamedTuple):
    """The rule by which the integers of a quantised tensor become values: `(q - zero_point) * scale`.

    `scheme` is torch's word: `per_tensor_affine`, `per_channel_affine` or, where the zero points are
    fractions, `per_channel_affine_float_qparams`. Per channel, `axis` is that of the channels, and scales
    and zero points are tensors, the param's `components`.
    """

    scheme: str
    scale: float | None = None
    zero_point: int | None = None
    axis: int | None = None


class Param(NamedTuple):
    """A parameter or buffer: its place in the file and the view it takes of a storage.

    `shape`, `strides` and `offset` count elements. `storage` is a key of `Checkpoint.storages`, or
    None where no bytes are saved (meta tensors). `layout` is torch's word (`strided`, `sparse_coo`, …,
    `quantized`, `nested`); a tensor made of others has them in `components`. `flags` holds `conj` and
    `neg` where the stored bytes are still to be conjugated or negated. `place` belongs to the format.
    `quantizer` says what stored integers mean, where the file says it in a way that can be followed. `global_shape` is
    the shape of the whole tensor if the file holds a part of it alone, as the file of one rank does.
    """

    path: str
    kind: Kind
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: str | None
    offset: int = 0
    requires_grad: bool | None = None
    device: str | None = None
    layout: str = "strided"
    components: tuple[Param, ...] = ()
    flags: frozenset[str] = frozenset()
    place: object = None
    quantizer: Quantizer | None = None
    global_shape: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        """Number of elements; of a nested tensor, whose ragged sizes are -1, those of its buffer."""
        return self.components[0].numel if -1 in self.shape else prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes its values take, written out one after the other."""
        if self.storage is None and self.components:
            return sum(part.nbytes for part in self.components)
        return self.dtype.nbytes(self.numel)

    @property
    def view(self) -> View:
        """What two params must share to be tied."""
        return (self.storage, self.offset, self.shape, self.strides, self.dtype.name, self.flags)

    @property
    def span(self) -> int:
        """Elements from its first to its last in the storage, both included; 0 if it has none."""
        return span(self.shape, self.strides)

    @property
    def start(self) -> int:
        """Byte of its storage at which its first element begins."""
        return self.offset * self.dtype.bits // 8

    @property
    def is_plain(self) -> bool:
        """Whether it is one strided view of saved bytes: what can be drawn, set and tied."""
        return self.layout == "strided" and self.storage is not None

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one after the other, as numpy's C order has them."""
        return self.strides == contiguous(self.shape) or 0 in self.shape or self._dense_but_for_ones()

    def _dense_but_for_ones(self) -> bool:
        real = [(n, step) for n, step in zip(self.shape, self.strides, strict=True) if n != 1]
        return tuple(step for _, step in real) == contiguous(tuple(n for n, _ in real))

    @property
    def repeats_itself(self) -> bool:
        """Whether several of its own elements are the same bytes (an expanded tensor)."""
        return any(n > 1 and step == 0 for n, step in zip(self.shape, self.strides, strict=True)) or (
            self.numel > self.span > 0
        )


class Leaf(NamedTuple):
    """An entry that is not a tensor: a scalar of a training run, or an object of a foreign class.

    `value` is what JSON can hold; for an object, a short text that names its class. `moments` says that the
    object is an optimizer which remembers tensors of its own.
    """

    path: str
    value: object
    is_object: bool = False
    moments: bool = False


Entry = Param | Leaf


class Loss(NamedTuple):
    """An entry that a format has no place for, and why: `scalar`, `sparse_coo tensor`."""

    entry: Entry
    why: str

    @property
    def text(self) -> str:
        return f"{self.entry.path or '.'} ({self.why})"


class Module(NamedTuple):
    """The class of a layer, where the file names it: `Linear`, and `Linear(4 → 8)` for people.

    `padding_idx` is the row of an embedding that stands for padding, which its default keeps zero. `full_name` is the
    class with its module, `torch.nn.modules.linear.Linear`; "" if the file does not name it.
    """

    type: str
    text: str
    padding_idx: int | None = None
    full_name: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One saved model.

    `entries` are in the file's order. `saved` holds the storages as the file has them, `edited` those
    that a verb changed or added. `modules` maps a layer's path to its class, `metadata` holds the
    file's own notes, `sources` the open files its bytes lie in. `keys` says of an entry, by its path, which
    keys lead to it where the file has containers in one another. `document` is what the format needs to
    write the file back, and nobody else reads it.
    """

    format: str
    file: str
    entries: tuple[Entry, ...]
    saved: Mapping[str, Storage]
    edited: Mapping[str, Storage] = field(default_factory=dict)
    modules: Mapping[str, Module] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    keys: Mapping[str, Keys] = field(default_factory=dict, repr=False, compare=False)
    document: object = field(default=None, repr=False)

    @cached_property
    def storages(self) -> Mapping[str, Storage]:
        """Every storage as it is now, by its key."""
        return ChainMap({**self.edited}, self.saved)  # type: ignore[arg-type]

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """Every tensor, in the file's order."""
        return tuple([entry for entry in self.entries if isinstance(entry, Param)])  # faster than a generator's

    @cached_property
    def tied_to(self) -> Mapping[int, int]:
        """Position in `params` of a tied param → position of the first of its group."""
        if len({param.storage for param in self.params}) == len(self.params):
            return {}
        first: dict[View, int] = {}
        tied: dict[int, int] = {}
        for i, param in enumerate(self.params):
            if param.storage is None or 0 in param.shape:
                continue
            leader = first.setdefault(param.view, i)
            if leader != i:
                tied[i] = leader
        return tied

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Each param's path; where several print alike, the later ones with `#2`, `#3`, …: one name each."""
        seen: dict[str, int] = {}
        out = []
        for param in self.params:
            n = seen[param.path] = seen.get(param.path, 0) + 1
            out.append(param.path if n == 1 else f"{param.path}#{n}")
        return tuple(out)

    @cached_property
    def own_params(self) -> Mapping[str, tuple[int, ...]]:
        """Path of each layer → positions in `params` of those that are its own, not of layers in it."""
        found: dict[str, list[int]] = {}
        for i, param in enumerate(self.params):
            found.setdefault(param.path.rpartition(".")[0], []).append(i)
        return {layer: tuple(indices) for layer, indices in found.items()}

    @cached_property
    def groups_by_first(self) -> Mapping[int, tuple[int, ...]]:
        """Position in `params` of the first of each group of ties → positions of all of it."""
        members: dict[int, list[int]] = {}
        for i, leader in self.tied_to.items():
            members.setdefault(leader, [leader]).append(i)
        return {leader: tuple(group) for leader, group in sorted(members.items())}

    def groups(self) -> Iterator[tuple[int, ...]]:
        """Positions in `params` of each group of ties, in the file's order."""
        yield from self.groups_by_first.values()

    def derived(self, make: Callable[[Checkpoint], T]) -> T:
        """`make(self)`, made once: what follows from the entries and modules, whatever the values are.

        It must not hold the checkpoint, whose files are closed when its last user lets go of it.
        """
        if make not in self._derived:
            self._derived[make] = make(self)
        return cast(T, self._derived[make])

    @cached_property
    def _derived(self) -> dict[Callable[[Checkpoint], object], object]:
        return {}

    def with_params(self, changed: Mapping[int, Param]) -> Checkpoint:
        """Return the same checkpoint with some params, by position in `params`, replaced."""
        at = -1
        entries: list[Entry] = []
        for entry in self.entries:
            if isinstance(entry, Param):
                at += 1
                entry = changed.get(at, entry)
            entries.append(entry)
        return replace(self, entries=tuple(entries))

    def with_storages(self, changed: Mapping[str, Storage]) -> Checkpoint:
        """Return the same checkpoint with some storages replaced or added; every tied param sees it."""
        made = replace(self, edited={**self.edited, **changed})
        vars(made).update((name, vars(self)[name]) for name in _OF_ENTRIES if name in vars(self))
        return made


# Cached properties that stay true where only storages change: a verb may change those many times.
_OF_ENTRIES = ("params", "tied_to", "labels", "own_params", "groups_by_first", "_derived")


@contextmanager
def blamed(checkpoint: Checkpoint) -> Iterator[None]:
    """Name the file of this checkpoint in an error that is raised inside."""
    try:
        yield
    except ParamctlError as error:
        error.file = error.file or ("standard input" if checkpoint.file == STDIN else checkpoint.file)
        raise


def dims(shape: Iterable[int]) -> str:
    """Return a shape as people write it: `8 × 4`, or `scalar`."""
    return " × ".join(map(str, shape)) or "scalar"


@lru_cache(4096)  # a model has many tensors of few shapes
def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a view, both included; 0 if it has none."""
    if 0 in shape:
        return 0
    reach = 1
    for n, step in zip(shape, strides, strict=True):
        reach += (n - 1) * abs(step)
    return reach


@lru_cache(4096)
def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a tensor of `shape` whose elements lie in C order.

    Those of an empty one, which lead nowhere, end at the largest that torch has.
    """
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step = min(step * max(n, 1), MAX_INT - 1)
    return tuple(reversed(strides))


def natural_key(path: str) -> list[tuple[bool, int | str]]:
    """Sorts `layer.2` before `layer.10`."""
    return [(True, part) if i % 2 == 0 else (False, int(part)) for i, part in enumerate(_DIGITS.split(path))]


_DIGITS = re.compile(r"([0-9]{1,18})")
