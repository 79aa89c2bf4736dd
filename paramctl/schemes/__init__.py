"""Register every scheme, in the order in which they are listed: the plain ones, then the defaults of frameworks."""

from paramctl.schemes import functions  # isort: skip
from paramctl.schemes import defaults  # isort: skip

__all__ = ["defaults", "functions"]
