"""Find tensors that should be tied according to a file's metadata or the configuration beside it.

No format declares ties in a way of its own: only safetensors has metadata, and any file may have a configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from paramctl.files.sources import Source
from paramctl.formats.safetensors import FORMAT_KEY
from paramctl.model.checkpoint import Checkpoint

MAX_CONFIG = 1 << 20  # bytes
CONFIG = "config.json"  # as transformers writes it
TIED = "tie_word_embeddings"
# Classes of transformers whose output layer is the embedding unless their configuration says otherwise.
TIED_BY_DEFAULT = ("bart", "bert", "bloom", "distilbert", "gpt2", "gpt_neo", "opt", "roberta", "t5")

SHARED = "shared.weight"  # the one embedding of a model that has an encoder and a decoder
EMBEDDINGS = (SHARED, "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "predictions.decoder.weight", "lm_head.decoder.weight")


def declared_ties(checkpoint: Checkpoint, *, is_shard: bool) -> list[tuple[int, int, str]]:
    """Return pairs of params, by position, that are declared to be one tensor, and what declares it.

    For a shard only the file itself counts: a configuration is about the whole set.
    """
    at = {param.path: i for i, param in enumerate(checkpoint.params) if param.kind != "optimizer"}
    pairs = [
        (key, text, "the file's metadata")
        for key, text in checkpoint.metadata.items()
        if key in at and text in at and key not in (text, FORMAT_KEY)
    ]
    if not is_shard and any(map(ties_embeddings, checkpoint.sources)):
        pairs += ((*pair, CONFIG) for pair in embeddings(at))
    return [(at[one], at[other], who) for one, other, who in pairs]


def embeddings(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of paths that are one tensor if a model's output layer is its embedding; none if unclear."""
    paths = tuple(paths)
    heads, inputs = ([path for path in paths if _ends(path, ends)] for ends in (HEADS, EMBEDDINGS))
    shared = [path for path in inputs if _ends(path, (SHARED,))]
    if len(heads) > 1 or len(shared) > 1 or (len(inputs) > 1 and not shared):
        return []
    return [(path, other) for other in (shared or inputs) for path in (*heads, *inputs) if path != other]


def _ends(path: str, ends: Iterable[str]) -> bool:
    """Return whether a path ends with one of the names."""
    return any(f".{path}".endswith(f".{end}") for end in ends)


def ties_embeddings(source: Source) -> bool:
    """Return whether a configuration beside the file ties input and output embeddings."""
    return source.path is not None and says_tied(Path(source.name).absolute().parent)


def says_tied(folder: Path) -> bool:
    """Return whether the configuration in a folder ties input and output embeddings."""
    config = _read(folder / CONFIG)
    if TIED not in config and isinstance(text := config.get("text_config"), dict):
        config = text
    return config.get(TIED, config.get("model_type") in TIED_BY_DEFAULT) is True


def _read(path: Path) -> dict[str, object]:
    """Return the JSON object of a small regular file; an empty one if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
