"""Makes real sets of torch.distributed.checkpoint, by processes that talk over loopback.

python tests/make_distributed.py DIRECTORY: `sharded`, saved by two processes, with tensors split over rows, over
columns, unevenly and not at all; `whole.pt`, the same values by torch.save; `hf`, shards as safetensors files.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

RANKS = 2


def state() -> dict[str, Any]:
    """What is saved: every tensor has other values at every place."""
    import torch

    torch.manual_seed(0)
    return {
        "model": {
            "rows.weight": torch.randn(8, 6),
            "columns.weight": torch.randn(8, 6),
            "columns.half": torch.randn(3, 4, 6).to(torch.bfloat16),
            "uneven": torch.randn(3, 5),
            "one_row": torch.arange(6).reshape(1, 6),
            "everywhere": torch.randn(5, dtype=torch.float64),
            "plain": torch.randn(2, 3),
            "turned": torch.randn(4, 3).t(),
            "count": torch.tensor(7),
            "empty": torch.zeros(0, 4),
        },
        "optim": {
            "state": {"rows.weight": {"step": torch.tensor(3.0), "exp_avg": torch.randn(8, 6)}},
            "param_groups": [{"lr": 0.1, "betas": [0.9, 0.999], "params": ["rows.weight"]}],
        },
        "step": 12,
        "name": "run",
        "nothing": None,
    }


def _save(rank: int, folder: str, port: int) -> None:
    """What each process does. Rows and columns are split as FSDP and tensor parallelism split them."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    saved = state()
    model, moments = saved["model"], saved["optim"]["state"]["rows.weight"]
    placements = {
        "rows.weight": Shard(0), "columns.weight": Shard(1), "columns.half": Shard(2), "uneven": Shard(0),
        "one_row": Shard(0), "everywhere": Replicate(),
    }  # fmt: skip
    for name, placement in placements.items():
        model[name] = distribute_tensor(model[name], mesh, [placement])
    moments["exp_avg"] = distribute_tensor(moments["exp_avg"], mesh, [Shard(0)])
    save(saved, storage_writer=FileSystemWriter(f"{folder}/sharded"))
    shards = {name: model[name] for name in ("rows.weight", "columns.weight")}
    save(shards, storage_writer=HuggingFaceStorageWriter(f"{folder}/hf", save_distributed=True))
    dist.destroy_process_group()


def make(folder: Path) -> None:
    """Make all of it in a folder."""
    import socket

    import torch
    from torch.multiprocessing.spawn import spawn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_save, (str(folder), port), nprocs=RANKS)  # type: ignore[no-untyped-call]
    torch.save(state(), folder / "whole.pt")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
