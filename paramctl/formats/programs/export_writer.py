"""Lay a torch.export archive out again: changed records, configs whose tensors lie elsewhere now, inner archives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

from paramctl.errors import Unsupported
from paramctl.files.content import Buffer, Computed, Content, Extent, chunks
from paramctl.files.content import Literal as LiteralSegment
from paramctl.files.segments import Segment, pieces
from paramctl.formats.containers import zip_layout
from paramctl.formats.containers.sections import spliced
from paramctl.formats.containers.zip_layout import ZipPiece
from paramctl.formats.programs.export_tables import INSIDE, ExportDocument, ExportPlace, InnerSpot, Table
from paramctl.formats.pytorch import zip_file
from paramctl.formats.pytorch.archives import changed_piece
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Param


class Writer:
    """Lays an archive out again: changed records, configs where tensors lie elsewhere now, archives inside."""

    def __init__(self, checkpoint: Checkpoint, document: ExportDocument) -> None:
        self.checkpoint = checkpoint
        self.document = document
        self.names = {key: key for key in checkpoint.saved}
        self.new: dict[str, list[str]] = {}  # new keys, by the folder of their records
        self.moved = [
            (param, param.place)
            for param in checkpoint.params
            if isinstance(param.place, ExportPlace) and param.view != param.place.saved
        ]

    def run(self) -> Iterator[Segment]:
        for param, spot in self.moved:
            self.check(param, spot.table)
        made: dict[str, Content] = {**dict(self.inner()), **dict(self.configs())}
        gone = self.gone()
        prefix = self.document.prefix
        pieces: list[ZipPiece] = []
        for record in sorted(self.document.archive.records.values(), key=lambda record: record.header):
            key = record.name.removeprefix(prefix)
            if key in gone:
                continue
            if key in made:
                pieces.append(ZipPiece(record.name, record, (made[key],)))
            elif key in self.checkpoint.edited:
                pieces.append(changed_piece(record.name, record, self.checkpoint.edited[key]))
            else:
                pieces.append(ZipPiece(record.name, record))
        for folder, keys in self.new.items():
            last = max(i for i, piece in enumerate(pieces) if piece.name.startswith(prefix + folder))
            added = (changed_piece(prefix + self.names[key], None, self.checkpoint.edited[key]) for key in keys)
            pieces[last + 1 : last + 1] = added
        return zip_layout.layout(self.document.archive, pieces, self.document.alignment)

    def check(self, param: Param, table: Table) -> None:
        """Raise Unsupported unless a param's bytes can lie where its table looks; a new storage gets a name there."""
        key = str(param.storage)
        if key not in self.names:
            self.names[key] = self.fresh(table)
            self.new.setdefault(table.folder, []).append(key)
        elif INSIDE in key or not key.startswith(table.folder):
            what = f"{param.path} cannot lie in record {key.partition(INSIDE)[0]}"
            raise Unsupported(what, hint=f"the program looks for it in {table.folder} only: tie others")

    def fresh(self, table: Table) -> str:
        """Return a name that no record has yet, in the folder of a table."""
        start = f"{self.document.prefix}{table.folder}{table.stem}"
        taken = {*self.document.archive.records, *(self.document.prefix + name for name in self.names.values())}
        return f"{start}{next(n for n in count() if f'{start}{n}' not in taken)}".removeprefix(self.document.prefix)

    def gone(self) -> set[str]:
        """Return the records that some tensor lay in, and none does any more."""
        before = {str(spot.saved[0]) for _, spot in self.moved}
        return before - {str(param.storage) for param in self.checkpoint.params}

    def configs(self) -> Iterator[tuple[str, LiteralSegment]]:
        """Yield the configs with tensors that lie elsewhere now."""
        changed: dict[Table, dict[str, Any]] = {}
        for param, spot in self.moved:
            held = changed.setdefault(spot.table, dict(self.document.configs[spot.table]["config"]))
            meta = held[spot.name]
            sizes = {
                "strides": [{"as_int": step} for step in param.strides],
                "storage_offset": {"as_int": param.offset},
            }
            name = self.names[str(param.storage)].removeprefix(spot.table.folder)
            held[spot.name] = {**meta, "path_name": name, "tensor_meta": {**meta["tensor_meta"], **sizes}}
        for table, held in changed.items():
            text = json.dumps({**self.document.configs[table], "config": held})
            yield table.config, LiteralSegment(text.encode())

    def inner(self) -> Iterator[tuple[str, Computed]]:
        """Yield the inner archives that changed, each as the bytes of a record."""
        for name, saved in self.document.inner.items():
            now = self.inside(name, saved)
            if now.edited or now.entries != saved.entries:
                yield name, _whole(zip_file.layout(now), name)

    def inside(self, name: str, saved: Checkpoint) -> Checkpoint:
        """Return an inner archive as it is now, its storages by their own keys."""
        start = f"{name}{INSIDE}"
        keys = {f"{start}{key}": key for key in saved.storages}
        number = max((n for key in saved.storages if (n := shapes.number(key)) is not None), default=-1) + 1
        params: dict[int, Param] = {}
        at = {id(param): i for i, param in enumerate(saved.params)}
        for param in self.checkpoint.params:
            if not isinstance(param.place, InnerSpot) or param.place.record != name:
                continue
            key = param.storage
            if key is not None and key not in keys:
                if key in self.names:
                    raise Unsupported(f"{param.path} lies in record {name}, and cannot be tied to what is not in it")
                keys[key] = str(number)
                number += 1
            own = None if key is None else keys[key]
            params[at[id(param.place.param)]] = param.place.param._replace(
                storage=own, offset=param.offset, strides=param.strides, flags=param.flags
            )
        edited = {keys[key]: storage for key, storage in self.checkpoint.edited.items() if key in keys}
        return replace(saved.with_params(params), edited=edited)


def _whole(segments: Iterable[Segment], name: str) -> Computed:
    """Return the segments of an inner archive as one computed piece, whose sum the outer archive needs."""
    held = tuple(spliced(segments, name))

    def make() -> Iterator[Buffer]:
        for piece in pieces(held):
            yield from chunks((piece,)) if isinstance(piece, Extent) else (piece,)

    nbytes = sum(segment.nbytes for segment in held)
    return Computed(nbytes, make, nbytes)
