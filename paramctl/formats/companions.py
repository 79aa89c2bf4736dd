"""What other files beside a checkpoint say of it."""

from __future__ import annotations

import json
from pathlib import Path

from paramctl.sources import Source

MAX_CONFIG = 1 << 20  # bytes
CONFIG = "config.json"  # as transformers writes it


def ties_embeddings(source: Source) -> bool:
    """Whether a configuration beside the file says that input and output embeddings are one tensor."""
    if source.path is None:
        return False
    config = _read(source.path.parent / CONFIG)
    text = config.get("text_config")
    return config.get("tie_word_embeddings") is True or (
        isinstance(text, dict) and text.get("tie_word_embeddings") is True
    )


def _read(path: Path) -> dict[str, object]:
    """The JSON object in a small regular file; nothing where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
