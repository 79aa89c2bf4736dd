"""Contents clipped, patched, filled and read are what bytes would be."""

from __future__ import annotations

import zlib
from pathlib import Path

from content_parts import lawful, part, patch, told
from helpers import refused, source_of
from hypothesis import given
from hypothesis import strategies as st

from paramctl.errors import FormatError
from paramctl.files import content as content_module
from paramctl.files.content import CHUNK, Computed, Content, Extent, Literal
from paramctl.files.sources import Source


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
