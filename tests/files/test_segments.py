"""Segments joined and summed are what bytes would be."""

from __future__ import annotations

import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from content_parts import DATA, lawful, part, patch, told
from helpers import source_of
from hypothesis import given
from hypothesis import strategies as st

from paramctl.files import content as content_module
from paramctl.files import segments
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Derived, Known, Segment, Summed
from paramctl.files.sources import Source


def made(content: list[Segment]) -> bytes:
    """Return what is written, with extents read as the kernel would."""
    return b"".join(told((p,)) if isinstance(p, Extent) else bytes(p) for p in segments.pieces(content))


@given(data=st.data())
@lawful
def test_a_sum_follows_from_what_changed_alone(source: Source, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 100))
    before = Extent(source, start, data.draw(st.integers(0, len(DATA) - 100)))
    was = DATA[start : start + before.nbytes]
    patches = []
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, before.nbytes))
        new = data.draw(st.binary(max_size=min(before.nbytes - at, 20)))
        patches.append(patch(at, new, data.draw(st.booleans())))
    parts = content_module.patched((before,), patches)
    crc = zlib.crc32(was) ^ data.draw(st.sampled_from([0, 5]))
    summed = Summed("x", parts, Known(before, crc))
    out = made([summed, Derived(4, lambda sums: sums["x"].to_bytes(4, "little"))])
    assert out[:-4] == told(parts)
    kept = any(isinstance(part, Extent) and part.nbytes for part in parts)
    wrong = zlib.crc32(was) ^ crc if kept else 0  # what was corrupt before still shows, unless nothing of it stays
    assert int.from_bytes(out[-4:], "little") == zlib.crc32(told(parts)) ^ wrong
    assert {p for p in segments.pieces([summed]) if isinstance(p, Extent)} <= {p for p in parts if isinstance(p, Extent)}


def test_what_stays_is_not_read(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Extent(source, 0, 400)
    parts = content_module.patched((before,), [patch(100, b"new", True)])
    summed = Summed("x", parts, Known(before, zlib.crc32(DATA[:400])))
    read: list[tuple[int, int]] = []
    plain = Source.read

    def watched(self: Source, offset: int, nbytes: int) -> bytes:
        read.append((offset, nbytes))
        return plain(self, offset, nbytes)

    monkeypatch.setattr(Source, "read", watched)
    list(segments.pieces([summed]))
    assert read == [(100, 3)]
    assert segments.bytes_read_for(summed) == 3
    assert segments.bytes_read_for(Summed("x", parts)) == 397


@given(data=st.data())
@lawful
def test_joining_keeps_the_bytes_and_leaves_no_neighbours(source: Source, data: st.DataObject) -> None:
    content = data.draw(st.lists(part(source)))
    joined = list(segments.merge_extents(content))
    assert told(joined) == told(content)
    assert all(segment.nbytes for segment in joined)
    for a, b in pairwise(joined):
        assert not (isinstance(a, Extent) and isinstance(b, Extent) and a.offset + a.nbytes == b.offset)


def test_neighbouring_extents_become_one(source: Source) -> None:
    given_: list[Segment] = [Extent(source, 0, 5), Extent(source, 5, 0), Extent(source, 5, 7), Literal(b""), Extent(source, 12, 1)]
    assert list(segments.merge_extents(given_)) == [Extent(source, 0, 13)]


def test_extents_of_other_files_stay_apart(source: Source, tmp_path: Path) -> None:
    other = source_of(tmp_path, DATA)
    given_: list[Segment] = [Extent(source, 0, 5), Extent(other, 5, 5), Literal(b"x"), Extent(other, 10, 5)]
    assert list(segments.merge_extents(given_)) == given_


def test_an_empty_sum_is_kept_for_those_that_need_it() -> None:
    empty = Summed("a", ())
    assert list(segments.merge_extents([empty, Derived(0, lambda _: b"")])) == [empty]
