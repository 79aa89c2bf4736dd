"""What a file that is no checkpoint probably is, told from its first bytes."""

from __future__ import annotations

_HINTS = (
    (b"version https://git-lfs", "it is a Git LFS pointer: run 'git lfs pull' to get the file itself"),
    (b"\x1f\x8b", "it is gzip-compressed: unpack it with 'gunzip' first"),
    (b"BZh", "it is bzip2-compressed: unpack it with 'bunzip2' first"),
    (b"\xfd7zXZ\x00", "it is xz-compressed: unpack it with 'unxz' first"),
    (b"\x28\xb5\x2f\xfd", "it is zstd-compressed: unpack it with 'unzstd' first"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive: unpack it first"),
    (b"GGUF", "it is a GGUF file, which this version does not read"),
    (b"\x89HDF\r\n\x1a\n", "it is an HDF5 (Keras) file, which this version does not read"),
    (b"\x93NUMPY", "it is a NumPy .npy file, which this version does not read"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "it is a torch file from before 1.6, which this version does not read"),
    (b"\x12\x01\x00\x00\x00\x00\x00\x00", "it is an MXNet .params file, which this version does not read"),
    (b"\x80", "it looks like a bare pickle, not a file that torch.save wrote"),
)


def hint_for(head: bytes) -> str:
    """One clause on what these first bytes are and what to do, or nothing."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page: the download saved an error page in place of the file"
    return next((hint for magic, hint in _HINTS if head.startswith(magic)), "")
