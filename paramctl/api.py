"""Offer the commands' verbs in Python, on a checkpoint that is indexed like the model it saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramctl.edit.report import Change, Edit
from paramctl.errors import NoMatch
from paramctl.files import targets
from paramctl.formats import opening, registry, saving
from paramctl.model.checkpoint import Checkpoint, Leaf, Param
from paramctl.model.selections.selection import find
from paramctl.model.tree import Node, Scalar, Tensor, build

if TYPE_CHECKING:
    import torch

    from paramctl.check.check import Report
    from paramctl.compare.diff import Difference
    from paramctl.compare.distance import Tolerance
    from paramctl.stats.stats import Figures
    from paramctl.values.arrays import Array


class Parameter:
    """One parameter or buffer of an open checkpoint. Its values are read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, index: int) -> None:
        self._checkpoint = checkpoint
        self._index = index

    def __repr__(self) -> str:
        tied = f", tied to {self.tied_to}" if self.tied_to else ""
        return f"Parameter({self.path!r}, {self.dtype}, {list(self.shape)}{tied})"

    @property
    def _param(self) -> Param:
        return self._checkpoint.params[self._index]

    @property
    def path(self) -> str:
        """The name in the checkpoint, such as `0.block 1.0.bias`."""
        return self._param.path

    @property
    def kind(self) -> str:
        """`parameter`, `buffer`, `optimizer`, or `tensor` where the file does not say."""
        return self._param.kind

    @property
    def dtype(self) -> str:
        """torch's name of the dtype, without the prefix."""
        return self._param.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, in elements."""
        return self._param.shape

    @property
    def requires_grad(self) -> bool | None:
        """The flag in the file; None if it has none."""
        return self._param.requires_grad

    @property
    def tied_to(self) -> str | None:
        """The path of the first param of its group of ties; None for that one, and without ties."""
        leader = self._checkpoint.tied_to.get(self._index)
        return None if leader is None else self._checkpoint.labels[leader]

    def numpy(self) -> Array:
        """Return the values, a new array; those of a quantized param dequantized, as float32.

        Values that repeat (stride 0) are a view that cannot be written to. Raises FormatError if the file is corrupt
        there, UsageError for a sparse or nested param, which `torch` returns.
        """
        from paramctl.values.torch_tensors import array

        return array(self._checkpoint, self._param)

    def torch(self) -> torch.Tensor:
        """Return the values, a new tensor of the saved kind: sparse, nested, quantized, expanded.

        If torch cannot make that kind (quantized in less than a byte), it is float32. Raises FormatError like `numpy`.
        """
        from paramctl.values.torch_tensors import tensor

        return tensor(self._checkpoint, self._param)


class Layer:
    """A layer of an open checkpoint: index it by name, by position, or by a longer path."""

    def __init__(self, checkpoint: Checkpoint, node: Node, indices: dict[int, int]) -> None:
        self._checkpoint = checkpoint
        self._node = node
        self._indices = indices

    def __repr__(self) -> str:
        kind = self._node.module.text if self._node.module else "Layer"
        return f"{kind}: {', '.join(self)}"

    def __len__(self) -> int:
        return len(self._node.children)

    def __iter__(self) -> Iterator[str]:
        return (child.name for child in self._node.children)

    def __getitem__(self, key: int | str) -> Any:
        """Return the child at a position, or under a name or path; of a scalar, its value.

        Raises NoMatch (which is a LookupError) if there is none.
        """
        if isinstance(key, int):
            try:
                return self._opened(self._node.children[key])
            except IndexError:
                raise NoMatch(f"there is no child {key} among {len(self)}") from None
        for child in self._node.children:
            if child.name == key:
                return self._opened(child)
        name, dot, rest = key.partition(".")
        while dot:
            for child in self._node.children:
                if child.name == name and isinstance(child, Node):
                    return Layer(self._checkpoint, child, self._indices)[rest]
            more, dot, rest = rest.partition(".")
            name = f"{name}.{more}"
        raise NoMatch(f"there is no '{key}' here; there are {', '.join(self)}")

    def __deepcopy__(self, memo: object) -> Layer:
        """Return the layer itself: it is immutable."""
        return self

    def _opened(self, child: Node | Tensor | Scalar) -> Any:
        """Return a child as Layer, Parameter or value."""
        if isinstance(child, Node):
            return Layer(self._checkpoint, child, self._indices)
        if isinstance(child, Tensor):
            return Parameter(self._checkpoint, self._indices[id(child.param)])
        return child.value


class Model(Layer):
    """An open checkpoint. Verbs return a new one and leave this one unchanged; `save` writes.

    `changes` are the changes of the last verb, `seed` the seed it drew with.
    """

    def __init__(self, checkpoint: Checkpoint, edit: Edit | None = None) -> None:
        indices = {id(param): i for i, param in enumerate(checkpoint.params)}
        super().__init__(checkpoint, build(checkpoint), indices)
        self._edit = edit

    def __repr__(self) -> str:
        return f"Model({self._checkpoint.file!r}, {self.format}, {len(self.parameters)} tensors)"

    def __getitem__(self, key: int | str) -> Any:
        """Return a child; a text may also be positions (`[0][1].bias`) or a path in the model inside."""
        try:
            return super().__getitem__(key)
        except NoMatch:
            if isinstance(key, int):
                raise
            found = find(self._checkpoint, key)
            return found.value if isinstance(found, Leaf) else Parameter(self._checkpoint, found)

    @property
    def format(self) -> str:
        """The name of the format it was read from."""
        return self._checkpoint.format

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every tensor, in the file's order."""
        return tuple(Parameter(self._checkpoint, i) for i in range(len(self._checkpoint.params)))

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """The paths of each group of tied params."""
        labels = self._checkpoint.labels
        return tuple(tuple(labels[i] for i in group) for group in self._checkpoint.groups())

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes that the verb that made this checkpoint did to each param."""
        return self._edit.changed if self._edit else ()

    @property
    def seed(self) -> int | None:
        """The seed of the last `init`."""
        return self._edit.seed if self._edit else None

    def stats(self, layer: str | Sequence[str] = (), *, by_layer: bool = False) -> dict[str, Figures]:
        """Return the figures of each parameter, or of each layer, by path; see `paramctl stats`.

        Raises FormatError if the file is corrupt.
        """
        from paramctl.model.selections.selection import select
        from paramctl.stats.stats import stats

        chosen = select(self._checkpoint, _texts(layer), alike=True).indices if layer else None
        rows = stats(self._checkpoint, chosen, by_layer=by_layer)
        labels = self._checkpoint.labels
        return {row.path if row.at is None else labels[row.at]: row.summary.figures for row in rows}

    def diff(self, other: Model, *, tolerance: Tolerance | None = None) -> Difference:
        """Return the differences to `other`, which are false if there are none; see `paramctl diff`."""
        from paramctl.compare.diff import diff

        return diff(self._checkpoint, other._checkpoint, tolerance=tolerance)

    def check(self) -> Report:
        """Check the file it was opened from: soundness, plausible values, harmless loading; see `paramctl check`."""
        from paramctl.check.check import check_source

        return check_source(self._checkpoint.sources[0])

    def init(
        self,
        layer: str | Sequence[str] = (),
        scheme: str | Sequence[str] = "default",
        *,
        seed: int | None = None,
        bias: str | None = None,
        reset_optimizer: bool = False,
    ) -> Model:
        """Draw layers anew; see `paramctl init`. Raises UsageError if a scheme cannot apply."""
        from paramctl.edit.init import init

        layers, schemes = _texts(layer), _texts(scheme)
        made = init(self._checkpoint, layers, schemes, seed=seed, bias=bias, reset_optimizer=reset_optimizer)
        return self._made(made)

    def set(self, *statements: str, reset_optimizer: bool = False) -> Model:
        """Set values, as in `"0.weight[0,0] = 42"`; see `paramctl set`."""
        from paramctl.edit.set import set

        return self._made(set(self._checkpoint, *statements, reset_optimizer=reset_optimizer))

    def tie(self, first: str, *others: str, reset_optimizer: bool = False) -> Model:
        """Tie each of `others` to `first`; see `paramctl tie`."""
        from paramctl.edit.tie import tie

        return self._made(tie(self._checkpoint, first, *others, reset_optimizer=reset_optimizer))

    def untie(self, *paths: str) -> Model:
        """Give params copies of their own; see `paramctl untie`."""
        from paramctl.edit.tie import untie

        return self._made(untie(self._checkpoint, *paths))

    def save(
        self, path: str | Path, *, force: bool = False, lossy: bool = False, max_shard_size: int | str | None = None
    ) -> int:
        """Write it to `path`, whole or not at all, in the format of its suffix; return the bytes written.

        A path that ends in a slash, an index, or a `max_shard_size` (bytes, or a text such as `5GB`) makes a
        set of shards, unless it is one already.
        Raises UsageError if the file exists and `force` is not given, or if the format cannot hold
        everything and `lossy` is not given.
        """
        from paramctl.edit.convert import convert
        from paramctl.formats.sets.shard_division import division_for

        target = targets.NewFile(Path(path), force)
        form = registry.by_suffix(Path(path), self.format) or registry.named(self.format)
        checkpoint = self._checkpoint
        size = None if max_shard_size is None else str(max_shard_size)
        division = division_for(str(path), None, size)
        if division and (size is not None or not registry.as_set(registry.named(self.format))):
            form = division.set_format
            checkpoint = convert(checkpoint, form, lossy=lossy, division=division).checkpoint
        elif checkpoint.format != form.NAME:
            checkpoint = convert(checkpoint, form, lossy=lossy).checkpoint
        return saving.save(checkpoint, target, form)

    def _made(self, edit: Edit) -> Model:
        """Return the checkpoint of an edit."""
        return Model(edit.checkpoint, edit)


def open(path: str | Path) -> Model:
    """Open a checkpoint; only its headers are read. `-` is standard input.

    Raises FileError if it cannot be read, FormatError if it is no checkpoint.
    """
    return Model(opening.open(str(path)))


def _texts(given: str | Sequence[str]) -> Sequence[str]:
    """Return one text, or several, as a sequence."""
    return [given] if isinstance(given, str) else given


