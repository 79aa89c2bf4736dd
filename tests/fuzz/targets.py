"""What is fuzzed: one target for each format, and some for what is done with any file.

A target is given bytes and a folder of its own. It yields steps; the rules hold for each of them by itself.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import typer
from fuzz import folders, mutators, seeds
from fuzz.rules import Step, Steps

from paramctl.check.check import check
from paramctl.cli import app, output
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import ParamctlError
from paramctl.files import undo_journal as undo
from paramctl.files.sources import open_source
from paramctl.files.targets import NewFile
from paramctl.formats import opening, protocol, registry, saving
from paramctl.model.checkpoint import Checkpoint
from paramctl.values import npy
from paramctl.values.arrays import read_values

FEW = 6  # params of which values are read: what is wrong with one shows in few
LISTED = 200  # params up to which a listing is edited and converted: edits are not what a long one tests


class Target(NamedTuple):
    """Something to fuzz: the function that makes its seeds, and the steps for one input."""

    seeds: Callable[[], Iterator[bytes]]
    steps: Steps


# --- readers -------------------------------------------------------------------------------------


def look(data: bytes, folder: Path) -> Iterator[Step]:
    """Check a file, list it, and read values of it."""
    path = str(folders.lay_out(data, folder, "x.bin"))
    yield partial(check, path)
    opened: list[Checkpoint] = []
    yield _opening(path, opened)
    for checkpoint in opened:
        yield partial(_describe, checkpoint)
        yield from (partial(read_values, checkpoint, param) for param in checkpoint.params[:FEW])


def _opening(path: str, opened: list[Checkpoint]) -> Step:
    """Return the step that opens a file, and puts what it holds into `opened`."""
    return lambda: opened.append(opening.open(path))


def _describe(checkpoint: Checkpoint) -> None:
    form = registry.named(checkpoint.format)
    for each in (checkpoint.labels, checkpoint.groups(), form.losses(checkpoint), form.unlisted_tensors(checkpoint)):
        list(each)


def look_into_pickle(data: bytes, folder: Path) -> Iterator[Step]:
    """Look at an archive of torch.save around a pickle."""
    return look(seeds.wrapped(data), folder)


def load_array(data: bytes, folder: Path) -> Iterator[Step]:
    """Read an array of NumPy."""
    yield lambda: npy.load(open_source(str(folders.lay_out(data, folder, "x.npy"))))


def roll_back(data: bytes, folder: Path) -> Iterator[Step]:
    """Undo a change that was cut short; the journal is made one of this very file, whose number is never the same."""
    place = folders.lay_out(data, folder, "x.bin")
    for path in sorted(place.glob(".*.paramctl-journal")) if place.is_dir() else ():
        name = path.name.removeprefix(".").removesuffix(".paramctl-journal")
        file = place / name
        if name and file.is_file():
            path.write_bytes(_journal_for(file, path.read_bytes()))
        yield partial(undo.roll_back, file)


def _journal_for(file: Path, data: bytes) -> bytes:
    """Return a journal whose description names that file; one that says nothing of a file stays as it is."""
    with contextlib.suppress(ValueError, RecursionError, struct.error):
        held, text = mutators.journal_parts(data)
        described = json.loads(text)
        if isinstance(described, dict) and described.get("inode") == 0:
            return mutators.sealed_journal(held, json.dumps({**described, "inode": file.stat().st_ino}).encode())
    return data


# --- verbs ---------------------------------------------------------------------------------------


def edit(data: bytes, folder: Path) -> Iterator[Step]:
    """Draw, set, tie and untie params of a file, and write what comes of it."""
    path = str(folders.lay_out(data, folder, "x.bin"))
    opened: list[Checkpoint] = []
    yield _opening(path, opened)
    for checkpoint in (found for found in opened if len(found.params) <= LISTED):
        for number, made in enumerate(_edits(checkpoint)):
            yield partial(_save, made, folder / f"out{number}")


def _edits(checkpoint: Checkpoint) -> Iterator[Callable[[], Checkpoint]]:
    """Yield functions of which each makes another checkpoint."""
    labels = checkpoint.labels
    shapes: dict[Any, str] = {}
    yield lambda: init(checkpoint, (), ["constant:1"], seed=0).checkpoint
    for label, param in itertools.islice(zip(labels, checkpoint.params, strict=True), FEW):
        index = f"[{','.join('0' * len(param.shape))}]" if param.shape else ""
        for text in (f"{label}{index} = 1", f"{label} *= 2"):
            yield lambda text=text: set_values(checkpoint, text).checkpoint  # type: ignore[misc]
        first = shapes.setdefault((param.shape, param.dtype), label)
        if first != label:
            yield lambda first=first, label=label: tie(checkpoint, first, label).checkpoint  # type: ignore[misc]
    for group in itertools.islice(checkpoint.groups(), FEW):
        yield lambda group=group: untie(checkpoint, labels[group[-1]]).checkpoint  # type: ignore[misc]


def _save(made: Callable[[], Checkpoint], out: Path, to: protocol.AnyFormat | None = None) -> None:
    checkpoint = made()
    form = to or registry.named(checkpoint.format)
    saving.save(
        checkpoint,
        NewFile(out if registry.as_set(form) else out.with_name(f"{out.name}{(*form.SUFFIXES, '')[0]}"), True),
        form,
    )


def convert_to_each(data: bytes, folder: Path) -> Iterator[Step]:
    """Write a file in every other format."""
    path = str(folders.lay_out(data, folder, "x.bin"))
    opened: list[Checkpoint] = []
    yield _opening(path, opened)
    for checkpoint in (found for found in opened if len(found.params) <= LISTED):
        for form in registry.BY_NAME.values():
            converted = partial(convert, checkpoint, form, lossy=True)
            yield partial(_save, lambda converted=converted: converted().checkpoint, folder / form.NAME, form)  # type: ignore[misc]


def play_verbs(data: bytes, folder: Path) -> Iterator[Step]:
    """Run each command on a file, as the command line does; what cannot be opened is only checked and listed."""
    _commands()
    path = str(folders.lay_out(data, folder, "x.bin"))
    yield partial(_run, "check", path)
    opened: list[Checkpoint] = []
    yield _opening(path, opened)
    for checkpoint in opened:
        yield from (partial(_run, *line) for line in _lines(checkpoint, path, folder))


def _lines(checkpoint: Checkpoint, path: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield command lines that apply to most files."""
    for verb in ("ls", "tree", "stats", "ties"):
        yield verb, path
        yield verb, path, "--json"
    out = str(folder / "out")
    for label, param in zip(checkpoint.labels[:2], checkpoint.params, strict=False):
        yield from (("show", path, *options, "--", label) for options in ((), ("--full",), ("--json",)))
        index = f"[{','.join('0' * len(param.shape))}]" if param.shape else ""
        yield from (("set", "-o", f"{out}.set", "-f", "--", path, f"{label}{each} = 1") for each in {"", index})
    yield "init", path, "--scheme", "constant:1", "--seed", "1", "-o", f"{out}.init", "-f"
    yield "convert", path, "--lossy", "-o", f"{out}.safetensors", "-f"


class SaysTooMuch(Exception):
    """What a command printed is not plain text."""


def _run(*line: str) -> None:
    """Run a command line; its errors come through. What it prints must be text that a terminal can be shown."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        output.prepare()
        with contextlib.suppress(SystemExit):
            _commands().main([*line], prog_name="paramctl", standalone_mode=False)
    for stream in (out, err):
        stream.flush()
        text = stream.buffer.getvalue().decode()
        if odd := {*text} & _CONTROLS:
            raise SaysTooMuch(f"{line[0]} prints {sorted(odd)}")


@cache
def _commands() -> Any:
    """Return the command line with each of its commands built: Typer evaluates their annotations for that."""
    commands: Any = typer.main.get_command(app.app)
    for name in ("check", "ls", "tree", "stats", "ties", "show", "set", "init", "convert"):
        commands.get_command(None, name)
    return commands


_CONTROLS = {
    *map(chr, range(32)),
    *map(chr, range(127, 160)),
    *"\u202a\u202b\u202d\u202e\u2066\u2067\u200b\u2028\u2029",
} - {"\n", "\t"}


def warm_up() -> None:
    """Do all of it once where nothing is watched: what libraries import and write when they are first used is no finding."""
    for steps in (look, edit, convert_to_each, play_verbs):
        with tempfile.TemporaryDirectory() as place, seeds.quiet():
            for step in steps(seeds.saved(seeds.plain()), Path(place)):
                with contextlib.suppress(ParamctlError):
                    step()


# --- all of them ---------------------------------------------------------------------------------

READERS: dict[str, Target] = {
    "torch-zip": Target(seeds.torch_zip, look),
    "torch-legacy": Target(seeds.torch_legacy, look),
    "torch-tar": Target(seeds.torch_tar, look),
    "torchscript": Target(seeds.torchscript, look),
    "torchscript-json": Target(seeds.torchscript_json, look),
    "torch-export": Target(seeds.torch_export, look),
    "safetensors": Target(seeds.safe, look),
    "sharded": Target(seeds.sharded, look),
    "dcp": Target(seeds.dcp, look),
    "dcp-safetensors": Target(seeds.dcp_shards, look),
}
TARGETS: dict[str, Target] = {
    **READERS,
    "pickle": Target(seeds.pickles, look_into_pickle),
    "npy": Target(seeds.npy, load_array),
    "journal": Target(seeds.journal, roll_back),
    "edit": Target(seeds.everything, edit),
    "convert": Target(seeds.everything, convert_to_each),
    "verbs": Target(seeds.everything, play_verbs),
}
