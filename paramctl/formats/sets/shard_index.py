"""The index of a sharded set, as transformers writes it: which tensor is in which file beside it."""

from __future__ import annotations

from pathlib import Path

from paramctl.errors import FormatError
from paramctl.files.sources import Source
from paramctl.formats.containers import strict_json
from paramctl.formats.set_index import ENDINGS, SetIndex

NAME = "sharded"  # of the format whose sets such an index opens
MAX_INDEX = 64 << 20  # bytes; of a model with 140,000 tensors it takes 13 million


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a file says that it is an index, or has the name of one; a pipe has no files beside it."""
    says = head.lstrip().startswith(b"{") and b'"weight_map"' in head
    return source.path is not None and (says or source.name.endswith(ENDINGS))


def read(source: Source) -> SetIndex:
    """Read an index. Raises FormatError where it is none."""
    if source.size > MAX_INDEX:
        raise FormatError(f"is an index of {source.size:,} bytes, over the limit of {MAX_INDEX:,}")
    found = strict_json.parse(source.read(0, source.size), "index")
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not {*map(type, weight_map.values())} <= {str}:
        raise FormatError("index has no weight_map of names to files")
    metadata = found.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    total = metadata.get("total_size")
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    aliases = {
        key: text
        for key, text in metadata.items()
        if isinstance(text, str) and text in weight_map and key not in weight_map
    }
    folder = Path(source.name).absolute().parent
    return SetIndex(folder, weight_map, total if type(total) is int else None, aliases, found)
