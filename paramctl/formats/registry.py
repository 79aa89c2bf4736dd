"""The table of formats, one line each, and how a file finds its own by its bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paramctl.errors import FormatError, UsageError
from paramctl.files.sources import Source
from paramctl.formats import lazy
from paramctl.formats.lazy import Later
from paramctl.formats.protocol import AnyFormat, Format, SetFormat
from paramctl.formats.unknown import of_a_set, why_not
from paramctl.model.checkpoint import Checkpoint


def _later(module: str, name: str, suffixes: tuple[str, ...], may_be: lazy.MayBe) -> Any:
    return Later(module, name, suffixes, may_be)


_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_SCRIPT = (".jit", ".ptl", ".torchscript", ".pts", ".pt", ".pth")
_INDEX = (".safetensors.index.json", ".bin.index.json")
_ZIP = lazy.begins(b"PK\x03\x04")
FORMATS: tuple[Format, ...] = (
    _later("pytorch.zip_file", "torch-zip", _TORCH, _ZIP),
    _later("programs.torchscript", "torchscript", _SCRIPT, _ZIP),
    _later("programs.torchscript_json", "torchscript-json", _SCRIPT, _ZIP),
    _later("programs.torch_export", "torch-export", (".pt2",), _ZIP),
    _later("pytorch.legacy_file", "torch-legacy", _TORCH, lazy.begins(b"\x80", b"L")),
    _later("pytorch.tar_file", "torch-tar", _TORCH, lazy.begins(b"ustar", at=257)),
    _later("safetensors", "safetensors", (".safetensors",), lazy.always),
)
SETS: tuple[SetFormat, ...] = (
    _later("sets.sharded", "sharded", _INDEX, lazy.called(*_INDEX, begins=b"{")),
    _later("sets.dcp", "dcp", (".metadata",), lazy.called(".metadata", begins=b"\x80")),
    _later("sets.dcp_safetensors", "dcp-safetensors", (), lazy.holds(b"DCP_SHARDING_INFO")),
)
BY_NAME: dict[str, AnyFormat] = {form.NAME: form for form in (*FORMATS, *SETS)}
HEAD = 512  # bytes that tell every format from every other


def read(source: Source) -> Checkpoint:
    """List the checkpoint that `source` holds."""
    return _read(source, of)


def read_single(source: Source) -> Checkpoint:
    """List one file of a set, which is no index of others."""
    return _read(source, single)


def _read(source: Source, which: Callable[[Source], AnyFormat | None]) -> Checkpoint:
    if source.size == 0:
        raise FormatError("is empty", hint="check the command or the download that made it")
    if form := which(source):
        try:
            return form.read(source)
        except FormatError as error:
            error.hint = error.hint or of_a_set(source.name)
            raise
    head = source.read(0, min(HEAD, source.size))
    raise why_not(head, ", ".join(form.NAME for form in FORMATS))


def of(source: Source) -> AnyFormat | None:
    """The format of a file, by its bytes; None where it is none that paramctl knows."""
    head = source.read(0, min(HEAD, source.size))
    return next((form for form in SETS if form.recognises(head, source)), None) or single(source)


def single(source: Source) -> Format | None:
    """The format of a file that is all of a checkpoint, or one of its shards."""
    head = source.read(0, min(HEAD, source.size))
    return next((form for form in FORMATS if form.recognises(head, source)), None)


def as_set(form: AnyFormat | None) -> SetFormat | None:
    """A format, if it is one of several files."""
    return next((found for found in SETS if form and found.NAME == form.NAME), None)


def by_suffix(path: Path, own: str = "") -> AnyFormat | None:
    """The format that files of this name usually have: the one called `own`, where several have such names."""
    if whole := next((form for form in SETS if path.name.endswith(form.SUFFIXES)), None):
        return whole
    found = [form for form in FORMATS if path.suffix.lower() in form.SUFFIXES]
    return next((form for form in found if own == form.NAME), found[0] if found else None)


def named(name: str) -> AnyFormat:
    """The format called `name`, or known by that suffix."""
    for form in BY_NAME.values():
        if name == form.NAME or f".{name.lstrip('.').lower()}" in form.SUFFIXES:
            return form
    known = ", ".join(form.NAME for form in (*FORMATS, *SETS) if form.SUFFIXES)
    raise UsageError(f"no format '{name}'", hint=f"name one of {known}")
