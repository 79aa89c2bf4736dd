"""Segments: what is clipped, spliced, read and joined is what bytes would be."""

from __future__ import annotations

import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import refused, source_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramctl.errors import FormatError
from paramctl.files import content as content_module
from paramctl.files import segments
from paramctl.files.content import CHUNK, Computed, Content, Extent, Literal, Patch
from paramctl.files.segments import Derived, Known, Segment, Summed
from paramctl.files.sources import Source

DATA = bytes(range(256)) * 2


def computed(data: bytes, step: int) -> Computed:
    """Bytes that come a few at a time."""
    return Computed(len(data), lambda: [data[i : i + step] for i in range(0, len(data), step)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(tmp_path_factory.mktemp("segments"), DATA)


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


@given(data=st.data())
@lawful
def test_clips_are_slices(source: Source, data: st.DataObject) -> None:
    content = data.draw(st.lists(part(source)))
    whole = told(content)
    start, nbytes = data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))))
    clipped = content_module.clip(content, start, nbytes)
    assert told(clipped) == whole[start : start + nbytes]
    assert sum(piece.nbytes for piece in clipped) == len(whole[start : start + nbytes])
    nbytes = min(nbytes, len(whole) - start)
    assert content_module.read(content, start, nbytes) == whole[start : start + nbytes]


@given(data=st.data(), size=st.integers(1, 20))
@lawful
def test_a_buffer_is_filled_again_and_again(source: Source, data: st.DataObject, size: int) -> None:
    content = data.draw(st.lists(part(source)))
    filled = [bytes(piece) for piece in content_module.fill_buffer(content, memoryview(bytearray(size)))]
    assert b"".join(filled) == told(content)
    assert [len(piece) for piece in filled[:-1]] == [size] * (len(filled) - 1)
    assert all(filled)


def patch(start: int, data: bytes, solid: bool) -> Patch:
    """Puts `data` at `start`; one that is not solid leaves every second byte as it is."""

    def put(span: memoryview) -> None:
        for i in range(0, len(data), 1 if solid else 2):
            span[i] = data[i]

    return Patch(start, len(data), put, (lambda: data) if solid else None)


@given(data=st.data())
@lawful
def test_patches_are_put_one_after_the_other(source: Source, data: st.DataObject) -> None:
    content = data.draw(st.lists(part(source)))
    expected = bytearray(told(content))
    patches = []
    for _ in range(data.draw(st.integers(0, 6))):
        start = data.draw(st.integers(0, len(expected)))
        new = data.draw(st.binary(max_size=min(len(expected) - start, 9)))
        patches.append(patch(start, new, data.draw(st.booleans())))
        patches[-1].put(memoryview(expected)[start : start + len(new)])
    written = content_module.patched(content, patches)
    assert told(written) == expected
    assert sum(piece.nbytes for piece in written) == len(expected)


def test_a_patch_alone_is_made_without_a_look_at_what_was_there() -> None:
    def unread() -> list[bytes]:
        raise AssertionError("was read")

    content: list[Content] = [Computed(4, unread), Literal(b"efgh")]
    assert told(content_module.patched(content, [patch(0, b"ABCD", True), patch(5, b"F", True)])) == b"ABCDeFgh"


def test_patches_by_the_ten_thousand_are_no_burden() -> None:
    apart = content_module.patched([Literal(bytes(40_000))], [patch(4 * i, b"abc", True) for i in range(10_000)])
    assert told(apart) == b"abc\0" * 10_000
    assert all(told(content_module.clip(apart, 4 * i, 3)) == b"abc" for i in range(10_000))
    assert told(content_module.patched(apart, [patch(4 * i + 1, b"B", True) for i in range(10_000)])) == b"aBc\0" * 10_000
    chained = content_module.patched([Literal(bytes(20_002))], [patch(2 * i, b"abc", True) for i in range(10_000)])
    assert told(chained) == b"ab" * 10_000 + b"c\0"


def made(content: list[Segment]) -> bytes:
    """What is written, extents read as the kernel would."""
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
def test_clips_of_clips_are_clips(source: Source, data: st.DataObject) -> None:
    content = data.draw(st.lists(part(source)))
    a, b, c, d = (data.draw(st.integers(0, 40)) for _ in range(4))
    assert told(content_module.clip(content_module.clip(content, a, b), c, d)) == told(content)[a : a + b][c : c + d]


@given(data=st.data())
@lawful
def test_checksums_are_zlibs(source: Source, data: st.DataObject) -> None:
    content = data.draw(st.lists(part(source)))
    assert content_module.crc32(content) == zlib.crc32(told(content))


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


def test_an_unchanged_clip_is_the_same_segment(source: Source) -> None:
    extent = Extent(source, 3, 9)
    (found,) = content_module.clip([extent], 0, 9)
    assert found is extent


def test_long_extents_come_in_chunks(tmp_path: Path) -> None:
    long = source_of(tmp_path, bytes(2 * CHUNK + 5))
    assert [len(chunk) for chunk in content_module.chunks([Extent(long, 0, 2 * CHUNK + 5)])] == [CHUNK, CHUNK, 5]


def test_a_file_that_ends_early(source: Source) -> None:
    message = "file ends at byte 512, 8 bytes early"
    assert refused(FormatError, content_module.read, [Extent(source, 500, 20)], 0, 20) == message
    assert refused(FormatError, told, [Extent(source, 500, 20)]) == message


def test_computed_bytes_that_end_early() -> None:
    short = Computed(9, lambda: [b"abc"])
    assert refused(FormatError, told, content_module.clip([short], 1, 5)) == "computed bytes ended early"
