"""One safetensors file: a length, a JSON header, and every tensor's bytes one after the other.

Reference: https://github.com/huggingface/safetensors. The header is read by hand: it is JSON, and the
library imports numpy as soon as it opens a file.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from paramctl.errors import FormatError, UsageError
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.protocol import Writes
from paramctl.formats.safetensors_header import (
    METADATA,
    DTypeAndShape,
    check_coverage,
    check_encodable,
    decoded,
    entry_of,
    header_bytes,
    header_length,
    metadata_of,
    parse,
    word_of,
)
from paramctl.model.checkpoint import Checkpoint, Entry, Leaf, Loss, Param, Storage, View, natural_key
from paramctl.progress import ProgressCallback, ignore
from paramctl.values.arrays import content_of

if TYPE_CHECKING:
    from paramctl.findings import Finding

NAME = "safetensors"
SUFFIXES: tuple[str, ...] = (".safetensors",)
WRITES: Writes = "any"
KEEPS_TIES = True
KEEPS_METADATA = True
FORMAT_KEY = "format"  # names the framework that wrote the file, never a tensor


class SafetensorsDocument(NamedTuple):
    """The parts needed to write the file back as it was."""

    source: Source
    data_start: int  # bytes of the header: the eight of its length, and the JSON
    places: list[tuple[int, int, str]]  # begin, end and name of each tensor's bytes, in their order
    listed: tuple[Param, ...]  # every param as read


class _Storages(Mapping[str, Storage]):
    """The tensors' bytes, each described when it is asked for: a listing asks for none."""

    def __init__(self, source: Source, data_start: int, places: list[tuple[int, int, str]]) -> None:
        self.source = source
        self.data_start = data_start
        self.places = places

    @cached_property
    def by_name(self) -> dict[str, tuple[int, int]]:
        return {name: (begin, end) for begin, end, name in self.places}

    def __getitem__(self, name: str) -> Storage:
        begin, end = self.by_name[name]
        return Storage((Extent(self.source, self.data_start + begin, end - begin),), end - begin)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a plausible header length and then JSON come first; a name that says so gets the errors."""
    opens = head[8:].lstrip(b" ")[:1]
    if len(head) > 8 and opens == b"{":
        return True
    named = source.path is not None and source.path.suffix.lower() in SUFFIXES
    foreign = head.startswith((b"PK\x03\x04", b"\x80", b"GGUF", b"version https", b"<"))
    return named and not foreign


def read(source: Source) -> Checkpoint:
    """List a safetensors file. Raises FormatError for anything the specification forbids."""
    data_start = 8 + header_length(source)
    entries = parse(decoded(source.read(8, data_start - 8)))
    metadata = metadata_of(entries.pop(METADATA, {}))
    params: dict[str, Param] = {}
    places: list[tuple[int, int, str]] = []
    forms: dict[str, DTypeAndShape] = {}
    for name, entry in entries.items():
        (dtype, shape, strides, _), begin, end = entry_of(name, entry, forms)
        params[name] = Param(name, "tensor", dtype, shape, strides, name)
        places.append((begin, end, name))
    places.sort()
    check_coverage(places, source.size - data_start)
    listed = _with_aliases(params, metadata)
    return Checkpoint(
        format=NAME,
        file=source.name,
        entries=listed,
        saved=_Storages(source, data_start, places),
        metadata={key: text for key, text in metadata.items() if not _is_alias(key, text, params)},
        sources=(source,),
        document=SafetensorsDocument(source, data_start, places, listed),
    )


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a safetensors file cannot hold: everything that is not a tensor of a dtype it knows."""
    return [Loss(entry, why) for entry in checkpoint.entries if (why := _no_place(entry))]


def unlisted_tensors(checkpoint: Checkpoint) -> list[str]:
    """Return no places: a file of this format holds nothing but its params."""
    return []


def _no_place(entry: Entry) -> str:
    """Return why an entry cannot be written; empty if it can."""
    if isinstance(entry, Leaf):
        return "object" if entry.is_object else "scalar"
    if not entry.is_plain:
        return f"{entry.layout} tensor"
    if entry.repeats_itself:
        return "repeats a few values over its shape: stride 0"
    return "" if word_of(entry) else f"{entry.dtype.name}, which safetensors has no word for"


def layout(checkpoint: Checkpoint) -> Iterator[Segment]:
    """Yield the file's segments: its own header if nothing but values changed, else a new one."""
    document = checkpoint.document
    params = list(checkpoint.params)
    if isinstance(document, SafetensorsDocument) and _same(params, document.listed):
        yield Extent(document.source, 0, document.data_start)
        for _, _, name in document.places:
            yield from checkpoint.storages[name].content
        return
    previous = [name for _, _, name in document.places] if isinstance(document, SafetensorsDocument) else []
    kept, aliases = _leaders(params)
    _check_aliases(aliases, checkpoint.metadata)
    _check_names(params)
    order = _data_order(kept, previous)
    contents = {param.path: content_of(checkpoint, param) for param in order}
    start = document.data_start if isinstance(document, SafetensorsDocument) else 0
    yield Literal(header_bytes(kept, order, aliases, checkpoint.metadata, start))
    for param in order:
        yield from contents[param.path]


def verify(path: Path, meant: Checkpoint) -> None:
    """Open a file that was just written with the library itself, unless it could not open the source."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except SafetensorError as error:
        document = meant.document
        if not isinstance(document, SafetensorsDocument) or _opens(document.source):
            raise FormatError(f"was written, but safetensors refuses it: {error}") from None


def audit(checkpoint: Checkpoint, on_progress: ProgressCallback = ignore) -> Iterator[Finding]:
    """Report names in the metadata that look like aliases, but of no tensor; reading a file checks the rest."""
    from paramctl.findings import Finding

    names = {param.path for param in checkpoint.params}
    last_names = {name.rpartition(".")[2] for name in names}
    for key, text in checkpoint.metadata.items():
        if key in names or text in names or key == FORMAT_KEY:
            continue
        end = key.rpartition(".")[2]
        if "." in key and "." in text and end == text.rpartition(".")[2] and end in last_names:
            what = f"is tied to {text}, and there is no such tensor"
            yield Finding("error", "integrity", "dangling-alias", key, what)


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield no pickles: loading this file runs nothing."""
    yield from ()


def _opens(source: Source) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source.path or f"/proc/self/fd/{source.fileno()}", framework="np"):
            return True
    except SafetensorError:
        return False


def _same(params: list[Param], listed: tuple[Param, ...]) -> bool:
    """Return whether the header that listed those params says what these are."""
    return [(p.path, p.view) for p in params] == [(p.path, p.view) for p in listed]


def _is_alias(key: str, text: str, params: Mapping[str, Param]) -> bool:
    """Return whether a metadata entry is `dropped name → kept name`, as `save_model` records ties."""
    return key != FORMAT_KEY and text in params and key not in params


def _with_aliases(params: Mapping[str, Param], metadata: Mapping[str, str]) -> tuple[Param, ...]:
    """Return the params in header order, with each alias at the place of its layer if layers are sorted."""
    listed = list(params.values())
    aliases = [params[text]._replace(path=key) for key, text in metadata.items() if _is_alias(key, text, params)]
    if not aliases:
        return tuple(listed)
    rank = {name: i for i, name in enumerate(params)}
    aliases.sort(key=lambda alias: (natural_key(_layer(alias)), rank[str(alias.storage)]))
    layers = [natural_key(_layer(param)) for param in listed]
    in_order = layers == sorted(layers)
    spots: dict[int, list[Param]] = {}
    for alias in aliases:
        spot = bisect(layers, natural_key(_layer(alias))) if in_order else len(listed)
        spots.setdefault(max(spot, rank[str(alias.storage)] + 1), []).append(alias)
    return tuple(p for i in range(len(listed) + 1) for p in (*spots.get(i, ()), *listed[i : i + 1]))


def _layer(param: Param) -> str:
    return param.path.rpartition(".")[0]


def _leaders(params: Iterable[Param]) -> tuple[list[Param], dict[str, str]]:
    """Return the params that are written, and for each tied one the name of the one that stands for it."""
    first: dict[View, Param] = {}
    kept: list[Param] = []
    aliases: dict[str, str] = {}
    for param in params:
        leader = first.setdefault(param.view, param) if param.numel else param
        if leader is param:
            kept.append(param)
        else:
            aliases[param.path] = leader.path
    return kept, aliases


def _check_aliases(aliases: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Raise UsageError for an alias that is a key of the metadata with another meaning."""
    for name in aliases:
        if name == FORMAT_KEY or name in metadata:
            raise UsageError(
                f"'{name}' cannot be tied: {METADATA} uses that name for something else",
                hint="tie the others to it, or keep it untied",
            )


def _check_names(params: Iterable[Param]) -> None:
    seen: set[str] = set()
    for param in params:
        if param.path in seen:
            raise UsageError(f"two tensors print as '{param.path}', and safetensors has one name for each")
        if param.path == METADATA:
            raise UsageError(f"a tensor is called {METADATA}, which safetensors keeps for itself")
        seen.add(param.path)
        check_encodable(param.path)


def _data_order(kept: list[Param], previous: list[str]) -> list[Param]:
    """Return the params in the order of their bytes: as before; new ones after the last whose alignment is as large."""
    rank = {name: i for i, name in enumerate(previous)}
    order = sorted((p for p in kept if p.storage == p.path in rank), key=lambda p: rank[p.path])
    settled = {param.path for param in order}
    new = sorted((p for p in kept if p.path not in settled), key=lambda p: (-p.dtype.bits, p.path))
    if not order:
        return new
    after_last = {old.dtype.bits: i for i, old in enumerate(order, 1)}
    spots: dict[int, list[Param]] = {}
    for param in new:
        spot = max((i for bits, i in after_last.items() if bits >= param.dtype.bits), default=0)
        spots.setdefault(spot, []).append(param)
    return [p for i in range(len(order) + 1) for p in (*spots.get(i, ()), *order[i : i + 1])]
