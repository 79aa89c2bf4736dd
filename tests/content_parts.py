"""Random parts of a content, and the bytes that they stand for."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from paramctl.files import content as content_module
from paramctl.files.content import Computed, Content, Extent, Literal, Patch
from paramctl.files.sources import Source

DATA = bytes(range(256)) * 2


def computed(data: bytes, step: int) -> Computed:
    """Return bytes that come a few at a time."""
    return Computed(len(data), lambda: [data[i : i + step] for i in range(0, len(data), step)])


def told(content: Any) -> bytes:
    return b"".join(bytes(chunk) for chunk in content_module.chunks(content))


def part(source: Source) -> st.SearchStrategy[Content]:
    spans = st.tuples(st.integers(0, 500), st.integers(0, 12))
    return (
        st.binary(max_size=12).map(Literal)
        | spans.map(lambda span: Extent(source, *span))
        | st.builds(computed, st.binary(max_size=12), st.integers(1, 5))
    )


lawful = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def patch(start: int, data: bytes, solid: bool) -> Patch:
    """Return a patch that puts `data` at `start`; if not solid, it leaves every second byte as it is."""

    def put(span: memoryview) -> None:
        for i in range(0, len(data), 1 if solid else 2):
            span[i] = data[i]

    return Patch(start, len(data), put, (lambda: data) if solid else None)
