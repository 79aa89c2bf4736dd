"""See, re-initialise, tie and rewrite the parameters of saved networks.

    >>> import paramctl
    >>> net = paramctl.open("sample_models/mlp.pt")
    >>> net["0.weight"].numpy()
    >>> net.init("0", "xavier", seed=1).save("new.pt")

Names are imported when they are used: a command that only looks never pays for one that draws.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paramctl.api import Layer, Model, Parameter, open
    from paramctl.errors import FileError, FormatError, NoMatch, ParamctlError, Unsupported, UsageError
    from paramctl.schemes.generators import seed_for

__version__ = "0.1.0"

__all__ = [
    "FileError",
    "FormatError",
    "Layer",
    "Model",
    "NoMatch",
    "ParamctlError",
    "Parameter",
    "Unsupported",
    "UsageError",
    "open",
    "seed_for",
]

_HOMES = {"Layer": "api", "Model": "api", "Parameter": "api", "open": "api", "seed_for": "schemes.generators"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'paramctl' has no attribute '{name}'")
    return getattr(import_module(f"paramctl.{_HOMES.get(name, 'errors')}"), name)
