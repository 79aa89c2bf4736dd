"""The file of which the tests of contents and segments take extents."""

from __future__ import annotations

import pytest
from content_parts import DATA
from helpers import source_of

from paramctl.files.sources import Source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(tmp_path_factory.mktemp("segments"), DATA)
