"""The chapter's own initialiser: U(5, 10) with probability ¼, 0 with ½, U(−10, −5) with ¼."""

import torch


def my_init(weight: torch.Tensor) -> None:
    """Change `weight` in place; paramctl has seeded the generator that is used here."""
    weight.uniform_(-10, 10)
    weight *= weight.abs() >= 5
