"""Every format's module meets its protocol: the type checker holds these lines to it."""

from __future__ import annotations

from paramctl.formats import registry, safetensors
from paramctl.formats.programs import torch_export, torchscript, torchscript_json
from paramctl.formats.protocol import Format, Readable, SetFormat
from paramctl.formats.pytorch import legacy_file, tar_file, zip_file
from paramctl.formats.sets import dcp, dcp_safetensors, sharded

FILES: tuple[Format, ...] = (
    zip_file, torchscript, torchscript_json, torch_export, legacy_file, tar_file, safetensors
)  # fmt: skip
READ_ONLY: tuple[Readable, ...] = ()
SETS: tuple[SetFormat, ...] = (sharded, dcp, dcp_safetensors)


def test_every_format_of_the_registry_stands_above() -> None:
    assert {form.NAME for form in (*FILES, *READ_ONLY)} == {form.NAME for form in registry.FORMATS}
    assert {form.NAME for form in READ_ONLY} == {form.NAME for form in registry.FORMATS if form.WRITES == "nothing"}
    assert [form.NAME for form in SETS] == [form.NAME for form in registry.SETS]
