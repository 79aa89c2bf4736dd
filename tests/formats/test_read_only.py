"""What a format that is only read answers, through the table that stands for its module."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers import refused

from paramctl.cli.commands.ties import can_tie
from paramctl.errors import UsageError
from paramctl.files.content import Extent
from paramctl.files.sources import Source, open_source
from paramctl.formats import registry
from paramctl.formats.lazy import Later, begins
from paramctl.formats.protocol import Format
from paramctl.formats.read_only import ReadOnly
from paramctl.model.checkpoint import Checkpoint, Param, Storage
from paramctl.model.dtypes import BY_NAME

ONE = b"\x00\x00\x80\x3f"  # 1.0 in float32


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> Iterator[Later]:
    """A format whose module provides the four names that it must, and nothing else."""
    module = ModuleType("paramctl.formats.four_bytes")
    vars(module).update(NAME="four-bytes", SUFFIXES=(".four",), recognises=lambda head, source: True, read=read)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = Later("four_bytes", "four-bytes", (".four",), begins(b"FOUR"))
    monkeypatch.setitem(registry.BY_NAME, found.NAME, found)
    yield found


def read(source: Source) -> Checkpoint:
    """List a float32 that follows `FOUR`; its checksum is that of the bytes of 1.0."""
    param = Param("x", "tensor", BY_NAME["float32"], (), (), "0")
    extent = Extent(source, 4, 4)
    saved = {"0": Storage((extent,), 4, crc32=zlib.crc32(ONE))}
    return Checkpoint("four-bytes", source.name, (param,), saved, sources=(source,))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "x.four"
    path.write_bytes(b"FOUR" + ONE)
    return open_source(str(path))


def test_it_writes_nothing(form: Later, source: Source) -> None:
    checkpoint = form.read(source)
    assert form.WRITES == "nothing"
    expected = (
        "paramctl reads four-bytes and does not write it; convert it to another format with "
        "'paramctl convert FILE -o NEW.safetensors'"
    )
    assert refused(UsageError, form.losses, checkpoint) == expected
    assert refused(UsageError, form.layout, checkpoint) == expected
    assert form.unlisted_tensors(checkpoint) == []
    assert form.verify(Path("x.four"), checkpoint) is None
    assert list(form.code(source)) == []


def test_no_command_advises_to_tie_it(form: Later, source: Source) -> None:
    assert not can_tie(form.read(source))


def test_its_checksums_are_checked(form: Later, source: Source, tmp_path: Path) -> None:
    checkpoint = form.read(source)
    assert list(form.audit(checkpoint)) == []
    (tmp_path / "x.four").write_bytes(b"FOUR\x00\x00\x80\xbf")
    (finding,) = form.audit(form.read(open_source(str(tmp_path / "x.four"))))
    assert (finding.level, finding.rule) == ("error", "checksum")


def test_a_module_answers_before_it(form: Later, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["paramctl.formats.four_bytes"], "WRITES", "own", raising=False)
    assert form.WRITES == "own"


def test_a_name_that_no_format_has_is_an_error(form: Later) -> None:
    with pytest.raises(AttributeError):
        _ = form.nonsense


def test_it_has_all_that_a_readable_format_lacks() -> None:
    """The names of `Format` but for those that every module provides itself."""
    own = {"NAME", "SUFFIXES", "recognises", "read"}
    names = {name for base in Format.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", ()))}
    assert {name for name in names if not name.startswith("_")} - own == {n for n in vars(ReadOnly) if n[0] != "_"}
