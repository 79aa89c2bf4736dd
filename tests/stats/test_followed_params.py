"""What is followed of one checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import listing

from paramctl.stats.followed_params import Followed


def test_what_is_whole_is_followed_alone_or_where_it_was_named_in_full(tmp_path: Path) -> None:
    mask = torch.tensor([True, False])
    held = {"weight": torch.ones(4), "batches": torch.tensor(7), "mask": mask, "index": torch.arange(3)}
    torch.save(held, tmp_path / "x.pt")
    checkpoint = listing(tmp_path / "x.pt")
    found = [Followed(checkpoint, selections) for selections in ([], ["**"], ["**", "mask"], ["index", "batches"])]
    assert [(list(one.at), list(one.skipped)) for one in found] == [
        (["weight"], ["batches", "mask", "index"]),
        (["weight"], ["batches", "mask", "index"]),
        (["weight", "mask"], ["batches", "index"]),
        (["batches", "index"], []),
    ]
    assert list(Followed(checkpoint, ["**", "!weight"]).at) == ["batches", "mask", "index"]
