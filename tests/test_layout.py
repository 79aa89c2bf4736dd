"""The rooms of the package, and who may import whom: imports inside functions and for types count too."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import paramctl

ROOT = Path(str(paramctl.__file__)).parent
GROUND = ("errors", "findings", "progress")
# From the ground up: a room may import those before it, and itself. The rooms of one line never import one another.
FLOORS = (
    GROUND, ("files",), ("model",), ("values",), ("formats", "schemes"), ("stats", "compare", "check", "edit"),
    ("api",), ("__init__",), ("cli",), ("__main__",),
)  # fmt: skip
MAX_MODULES = 15


@cache
def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}


@cache
def imports(path: Path) -> list[str]:
    """Return the modules of the package that a file imports, by their names inside the package."""
    return [*_imports(path)]


def _imports(path: Path) -> Iterator[str]:
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "paramctl":
            inside = node.module.partition(".")[2]
            for alias in node.names:
                whole = f"{inside}.{alias.name}".lstrip(".")
                yield whole if whole in known else inside if inside in known else "__init__"


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_lies_below_its_room(module: str) -> None:
    wrong = [
        target for target in imports(modules()[module])
        if room(target) != room(module) and room(module) not in GROUND and floor(target) >= floor(module)
    ]  # fmt: skip
    assert wrong == []


def test_no_circle_of_imports() -> None:
    arrows = {module: set(imports(path)) - {module} for module, path in modules().items()}
    while free := {module for module, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {module: targets for module, targets in arrows.items() if module not in free}
    assert arrows == {}


def test_packages_say_nothing_themselves() -> None:
    speaking = {module for module, path in modules().items() if path.name == "__init__.py" and path.read_text().strip()}
    assert speaking == {"__init__", "schemes.__init__"}


def test_no_folder_is_full() -> None:
    counts = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    full = {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > MAX_MODULES}
    assert set(full) <= {"cli/commands"}, full  # one file a command
