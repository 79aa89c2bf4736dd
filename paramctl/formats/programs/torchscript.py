"""TorchScript archives: what torch.jit.save and torch's mobile exporter write.

The attributes of a module lie flat in the pickle; which are parameters and buffers says the code beside it.
Listed is what `state_dict()` of the loaded module has, in its order, and plain attributes as scalars. Other
tensors (in attributes, and constants of the code) are kept and not listed, as those of a whole torch.nn.Module
are; only a frozen module, which has nothing but constants, is listed as these: `CONSTANTS.c0`, as its code calls
them. Reference: torch/csrc/jit/serialization/export_module.cpp, unpickler.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramctl.errors import FormatError, UsageError
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.containers import zip_pickles, zips
from paramctl.formats.containers.zips import Archive
from paramctl.formats.pickles import reader, writer
from paramctl.formats.pickles.nodes import Call, Dict, Global, Persistent, is_key, slots
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.programs.script_source import Code, ScriptClass, is_script
from paramctl.formats.protocol import Writes
from paramctl.formats.pytorch import edits
from paramctl.formats.pytorch.archives import (
    ArchiveDocument,
    Storages,
    alignment_of,
    byteorder_of,
    check_version,
    folder_of,
    kind,
    pickle_limit,
    record_of,
)
from paramctl.formats.pytorch.edits import Editor, Rewriter, Walk
from paramctl.formats.pytorch.layers import describe_layer
from paramctl.formats.pytorch.objects import Walk as Objects
from paramctl.formats.pytorch.plain_values import key_text
from paramctl.formats.pytorch.tensor_nodes import storage_id, untagged
from paramctl.formats.pytorch.tensor_places import Step, TensorPlace
from paramctl.formats.pytorch.tensors import is_tensor
from paramctl.model.checkpoint import Checkpoint, Kind, Loss, Module, Param
from paramctl.model.dtypes import BY_NAME, BY_STORAGE, DType
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "torchscript"
SUFFIXES: tuple[str, ...] = (".jit", ".ptl", ".torchscript", ".pts", ".pt", ".pth")
WRITES: Writes = "own"
KEEPS_TIES = True
KEEPS_METADATA = False
CONSTANTS = "CONSTANTS.c"  # what the code calls a constant, before its number
Child = tuple[str, object, Step, int, Kind]


def recognises(head: bytes, source: Source) -> bool:
    """Return whether torch.jit.save wrote the file: a zip archive that has constants."""
    return head.startswith(zips.MAGIC) and kind(source) == "TorchScript"


def read(source: Source) -> Checkpoint:
    """List a TorchScript module. Raises FormatError where the archive contradicts itself."""
    archive = zips.read(source)
    prefix = folder_of(archive)
    check_version(archive, prefix)
    if archive.find(f"{prefix}data.pkl") is None:
        raise FormatError("has constants and no modules (no record data.pkl)")
    pickle, storages = _part(archive, prefix, "data")
    objects = _Modules(pickle, storages, Code(archive, prefix))
    listing = objects.run()
    part, entries = "data", listing.entries
    if not any(isinstance(entry, Param) for entry in entries) and archive.find(f"{prefix}constants.pkl"):
        part = "constants"
        pickle, storages = _part(archive, prefix, part)
        entries = (*entries, *_constants(pickle, storages))
    entries = tuple(_as_one_object(entry) if isinstance(entry, Param) else entry for entry in entries)
    saved = tuple(entry for entry in entries if isinstance(entry, Param))
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=entries,
        saved=storages,
        modules=listing.modules,
        sources=(source,),
        document=ArchiveDocument(
            storages,
            record_of(archive, f"{prefix}{part}.pkl"),
            pickle,
            _ScriptEditor(pickle, saved, _storage_id),
            alignment_of(archive, prefix),
            partial(writer.write, late=True),
        ),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return none for a program that was read. Raises UsageError for anything else: it has no code to write."""
    if not isinstance(checkpoint.document, ArchiveDocument):
        what = "a TorchScript archive holds code too, and cannot be made of tensors alone"
        raise UsageError(what, hint="convert to .pt, load_state_dict() that into a scripted module, and save it")
    return []


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return the places in other modules and objects that still hold tensors which no path names any more."""
    return edits.unlisted_tensors(checkpoint, ArchiveDocument)


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the archive's own records around those that changed."""
    assert isinstance(checkpoint.document, ArchiveDocument), "losses() refused it"
    return checkpoint.document.layout(checkpoint)


def verify(path: Path, meant: Checkpoint) -> None:
    """Do nothing beyond reading it back: torch takes seconds to import and checks less than we do."""


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Yield the findings about the archive, every byte of it read: records, end of its pickle, unused storages."""
    assert isinstance(checkpoint.document, ArchiveDocument)
    return checkpoint.document.audit(checkpoint, on_progress)


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles in the archive, each with the name of its record, except those that only help debugging."""
    return zip_pickles.code(source)


def _part(archive: Archive, prefix: str, name: str) -> tuple[Pickle, _ScriptStorages]:
    """Return one of the archive's pickles, and the storages that it names."""
    record = record_of(archive, f"{prefix}{name}.pkl")
    pickle = reader.read(archive.read(record, pickle_limit(record)))
    return pickle, _ScriptStorages(archive, f"{prefix}{name}/", byteorder_of(archive, prefix))


def _constants(pickle: Pickle, storages: Storages) -> Iterator[Param]:
    """Yield the tensors among the constants of the code, by the names that it knows them under."""
    for entry in Objects(pickle, storages).run().entries:
        if isinstance(entry, Param):
            place = entry.place
            assert isinstance(place, TensorPlace)
            yield entry._replace(path=f"{CONSTANTS}{entry.path}", place=place._replace(module=place.step))


def _as_one_object(param: Param) -> Param:
    """Return a param with a place that says: when tied to others, it becomes one object with them.

    torch's C++ reader reads a storage once for each object that names it.
    """
    assert isinstance(param.place, TensorPlace)
    return param._replace(place=param.place._replace(kind="tensor"))


_WORDS = {  # the classes of storages that only C++ has
    BY_NAME[name]: f"{word}Storage"
    for name, word in (
        ("complex32", "ComplexHalf"),
        ("float4_e2m1fn_x2", "Float4_e2m1fn_x2"),
        *((name, f"UInt{name[4:]}") for name in ("uint16", "uint32", "uint64")),
        *((name, name.capitalize()) for name in BY_NAME if name.startswith(("float8", "bits"))),
    )
}


class _ScriptStorages(Storages):
    """Storages by the classes that C++ names them by."""

    words: Mapping[str, DType] = {**BY_STORAGE, **{word: dtype for dtype, word in _WORDS.items()}}


def _storage_id(key: str, dtype: DType, nbytes: int, device: str) -> Persistent:
    """Return the pickled id of a storage, as torch.jit.save writes it."""
    if dtype not in _WORDS:
        return storage_id(key, dtype, nbytes, device)
    return Persistent(("storage", Global("torch", _WORDS[dtype]), key, device, nbytes // dtype.itemsize))


class _Modules(Objects):
    """A walk that knows the objects of a TorchScript archive by the code of their classes."""

    def __init__(self, pickle: Pickle, storages: Storages, code: Code) -> None:
        super().__init__(pickle, storages)
        self.code = code

    def children(
        self, node: object, path: str, step: Step | None, position: int, kind: Kind
    ) -> tuple[Iterator[Child] | None, Step | None]:
        state = _state(node, Step(node, step, position))
        if state is None or not isinstance(node, Call):
            return super().children(node, path, step, position, kind)
        known = self.code.find(node.func)
        if known is not None and not known.is_module:
            return None, None
        self.budget.spend(len(state.container.pairs))  # all are looked at, listed or not, each time it is met
        self.modules[path] = _described(node, state.container, known)
        return self.attributes(state, known), state

    def attributes(self, state: Step, known: ScriptClass | None) -> Iterator[Child]:
        """Yield a module's parameters, buffers, plain attributes and sub-modules, each in the order of its class."""
        found: dict[str, list[Child]] = {"parameter": [], "buffer": [], "plain": [], "module": []}
        last = {key_text(key): i for i, (key, _) in enumerate(state.container.pairs)}
        for name, i in last.items():
            value = state.container.pairs[i][1]
            if is_tensor(value):
                kind = _kind(name, known)
                if kind is not None:
                    found["buffer" if kind == "buffer" else "parameter"].append((name, value, state, i, kind))
            elif self.is_module(value):
                found["module"].append((name, value, state, i, "tensor"))
            elif name[:1] != "_" and name != "training" and self.as_plain(untagged(value))[0] is not None:
                found["plain"].append((name, untagged(value), state, i, "tensor"))
        for children in found.values():
            yield from children

    def is_module(self, value: object) -> bool:
        """Return whether an attribute is a sub-module; without its code, any object of the archive's own classes is."""
        if not isinstance(value, Call) or not is_script(value.func):
            return False
        known = self.code.find(value.func)
        return known is None or known.is_module


def _state(node: object, here: Step) -> Step | None:
    """Return the step of the attributes of an object of one of the archive's classes."""
    if not isinstance(node, Call) or not is_script(node.func):
        return None
    for i, (verb, state) in enumerate(node.mutations or ()):
        if verb == "build" and isinstance(state, Dict):
            return Step(state, here, i)
    return None


def _kind(name: str, known: ScriptClass | None) -> Kind | None:
    """Return the kind of a tensor among a module's attributes; None for one that its state_dict does not have."""
    if known is None:
        return "tensor"
    if name in known.parameters:
        return "parameter"
    return "buffer" if known.buffers is None or name in known.buffers else None


def _described(node: Call, state: Dict, known: ScriptClass | None) -> Module:
    """Return the class of a module, and the constants in its code that people know it by."""
    told, parameters = Dict(), Dict()
    told.pairs = [*known.constants.items()] if known else []
    parameters.pairs = [pair for pair in state.pairs if known and key_text(pair[0]) in known.parameters]
    told.pairs.append(("_parameters", parameters))
    return describe_layer(node, told)


class _ScriptEditor(Editor):
    """Edits of what torch.jit.save wrote."""

    @property
    def rewriter(self) -> type[Rewriter]:
        return _ScriptRewriter


class _ScriptRewriter(Rewriter):
    """Replacements in the flat attributes of TorchScript's modules."""

    def follow(self, now: Mapping[int, Call]) -> None:
        """Replace a module's tensors in its other attributes too, such as `_flat_weights` of an LSTM."""
        listed = {(id(place.step.container), place.position) for _, place in self.placed if place.step is not None}
        wanted: dict[Step, dict[int, Any]] = {}
        for _, place in self.changed:
            assert place.step is not None, "the root is a module"
            wanted.setdefault(place.step, {})[id(place.node)] = now[id(place)]
        inner = self.editor.graph.leading_to(self.moved, {container for container, _ in listed})
        for state, moves in wanted.items():
            walk = Walk(self, moves, inner, inner)
            for position, held in slots(state.container):
                if not is_key(position) and (id(state.container), position) not in listed:
                    walk.renew(self.own(state), position, held)
            walk.drain()
