"""The index of a sharded set: what is read of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import file_of, refused, source_in_memory

from paramctl.errors import FormatError, UsageError
from paramctl.files.sources import open_source
from paramctl.formats import opening, set_index
from paramctl.formats.set_index import SetIndex
from paramctl.formats.sets import shard_index

NAME = "model.safetensors.index.json"


def read(folder: Path, document: object, name: str = NAME) -> SetIndex:
    return shard_index.read(open_source(str(file_of(folder, json.dumps(document).encode(), name))))


def test_an_index_as_transformers_writes_it(tmp_path: Path) -> None:
    weight_map = {"a": "model-2.safetensors", "b": "model-10.safetensors", "c": "model-2.safetensors"}
    index = read(tmp_path, {"metadata": {"total_size": 12, "total_parameters": 3}, "weight_map": weight_map})
    document = {"metadata": {"total_size": 12, "total_parameters": 3}, "weight_map": weight_map}
    assert index == SetIndex(tmp_path, weight_map, 12, {}, document)
    assert index.shards == ("model-2.safetensors", "model-10.safetensors")


@pytest.mark.parametrize(
    "metadata, total_size", [({}, None), ("text", None), ({"total_size": "12"}, None), ({"total_size": True}, None), ({"total_size": 12.0}, 12), ({"total_size": 0.5}, None)]
)
def test_total_size_where_it_is_a_number(tmp_path: Path, metadata: object, total_size: int | None) -> None:
    assert read(tmp_path, {"metadata": metadata, "weight_map": {}}).total_size == total_size


def test_recognised_by_its_name(tmp_path: Path) -> None:
    for name, is_index in ((NAME, True), ("pytorch_model.bin.index.json", True), ("index.json", False), ("x.bin", False)):
        source = open_source(str(file_of(tmp_path, b"{}", name)))
        assert shard_index.recognises(b"{}", source) is is_index
        assert shard_index.recognises(b' {"weight_map": {}}', source)
        assert not shard_index.recognises(b'{"weight_map": {}}', source_in_memory(b""))


def test_the_one_in_a_folder(tmp_path: Path) -> None:
    assert opening.locate(str(tmp_path)) == str(tmp_path)
    file_of(tmp_path, b"{}", NAME)
    assert opening.locate(str(tmp_path)) == str(tmp_path / NAME)
    file_of(tmp_path, b"{}", "pytorch_model.bin.index.json")
    what = f"{tmp_path}: is a directory with several indexes ({NAME}, pytorch_model.bin.index.json); name one of them"
    assert refused(UsageError, opening.locate, str(tmp_path)) == what


def test_ties_across_shards(tmp_path: Path) -> None:
    weight_map = {"a": "1.safetensors", "b": "2.safetensors"}
    metadata = {"head": "a", "b": "a", "x": "y", "n": 1}
    assert read(tmp_path, {"metadata": metadata, "weight_map": weight_map}).aliases == {"head": "a"}


def test_a_link_to_an_index_leads_to_the_shards_beside_the_link(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    file_of(tmp_path / "blobs", b'{"weight_map": {}}', "abc")
    (tmp_path / NAME).symlink_to("blobs/abc")
    assert shard_index.read(open_source(str(tmp_path / NAME))).folder == tmp_path


def test_an_index_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "MAX_INDEX", 10)
    source = open_source(str(file_of(tmp_path, b'{"weight_map": {}}', NAME)))
    assert refused(FormatError, shard_index.read, source) == "is an index of 18 bytes, over the limit of 10"


@pytest.mark.parametrize("data", [b"\xff", b'{"weight_map": {"a": "b"', b"NaN", b"\xef\xbb\xbf{}"])
def test_what_is_no_index(tmp_path: Path, data: bytes) -> None:
    assert refused(FormatError, shard_index.read, open_source(str(file_of(tmp_path, data, NAME)))).startswith("index ")


@pytest.mark.parametrize(
    "name, why",
    [("model-1.safetensors", ""), ("a b.bin", ""), ("...", ""), (".", "is no file name"), ("C:\\x", "leads out of the folder of the index")],
)
def test_names_of_shards(name: str, why: str) -> None:
    assert set_index.why_unsafe(name) == why
