"""What other files beside a checkpoint say of it."""

from __future__ import annotations

import json
from pathlib import Path

from paramctl.sources import Source

MAX_CONFIG = 1 << 20  # bytes
CONFIG = "config.json"  # as transformers writes it
TIED = "tie_word_embeddings"
# Classes of transformers whose output layer is the embedding unless their configuration says otherwise.
TIED_BY_DEFAULT = ("bart", "bert", "bloom", "distilbert", "gpt2", "gpt_neo", "opt", "roberta", "t5")


def ties_embeddings(source: Source) -> bool:
    """Whether a configuration beside the file says that input and output embeddings are one tensor."""
    return source.path is not None and says_tied(Path(source.name).absolute().parent)


def says_tied(folder: Path) -> bool:
    """Whether the configuration in a folder says that input and output embeddings are one tensor."""
    config = _read(folder / CONFIG)
    if TIED not in config and isinstance(text := config.get("text_config"), dict):
        config = text
    return config.get(TIED, config.get("model_type") in TIED_BY_DEFAULT) is True


def _read(path: Path) -> dict[str, object]:
    """The JSON object in a small regular file; nothing where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
