"""Make the sample models: python sample_models/make.py [DIRECTORY]

They are the networks of the chapter on parameter management in "Dive into Deep Learning", saved as torch
and safetensors save them. Seeded: the same torch makes the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file, save_model
from torch import nn

HERE = Path(__file__).resolve().parent


def mlp() -> nn.Sequential:
    """One hidden layer: what most of the chapter looks at."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def rgnet() -> nn.Sequential:
    """Blocks of blocks; their names hold a space."""
    block2 = nn.Sequential()
    for i in range(4):
        block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
        block2.add_module(f"block {i}", block)
    return nn.Sequential(block2, nn.Linear(4, 1))


def tied_mlp() -> nn.Sequential:
    """One layer used twice: the parameters of 2 and 4 are the same tensors."""
    shared = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 1)
    )


class FancyMLP(nn.Module):
    """A layer that is used twice in `forward`, and constant weights that are never learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.rand_weight = nn.Buffer(torch.rand((20, 20)))
        self.linear = nn.Linear(20, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        x = torch.relu(torch.mm(x, self.rand_weight) + 1)
        x = self.linear(x)
        while x.abs().sum() > 1:
            x = x / 2
        return x.sum()


def train(directory: Path) -> None:
    """Three steps of Adam on the tied MLP, each saved with its gradients and the optimizer's state."""
    net = tied_mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    for step in range(3):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        torch.save(
            {
                "step": step,
                "loss": loss.item(),
                "model": net.state_dict(),
                "grad": {name: p.grad for name, p in net.named_parameters(remove_duplicate=False)},
                "optimizer": optimizer.state_dict(),
            },
            directory / f"tied_mlp_step{step}.pt",
        )


def make(directory: Path) -> None:
    """Write every sample into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net, tied = mlp(), tied_mlp()
    torch.save(net.state_dict(), directory / "mlp.pt")
    torch.save(net, directory / "mlp_module.pt")
    save_file(net.state_dict(), directory / "mlp.safetensors", metadata={"format": "pt"})
    nested = rgnet()
    torch.save(nested.state_dict(), directory / "rgnet.pt")
    torch.save(nested, directory / "rgnet_module.pt")
    torch.save(tied.state_dict(), directory / "tied_mlp.pt")
    torch.save(tied, directory / "tied_mlp_module.pt")
    save_model(tied, str(directory / "tied_mlp.safetensors"))
    torch.save(FancyMLP().state_dict(), directory / "fancy_mlp.pt")
    train(directory)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
