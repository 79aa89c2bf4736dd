"""What a file that is no checkpoint probably is, told from its first bytes."""

from __future__ import annotations

_LATER = "this version does not read it"
_KINDS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "run 'git lfs pull'"),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it with 'gunzip' first"),
    (b"BZh", "is compressed with bzip2", "unpack it with 'bunzip2' first"),
    (b"\xfd7zXZ\x00", "is compressed with xz", "unpack it with 'unxz' first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it with 'unzstd' first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack it first"),
    (b"GGUF", "is a GGUF file", _LATER),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 (Keras) file", _LATER),
    (b"\x93NUMPY", "is a NumPy .npy file", _LATER),
    (b"\x12\x01\x00\x00\x00\x00\x00\x00", "is an MXNet .params file", _LATER),
    (b"\x80", "looks like a bare pickle, not like a file that torch.save wrote", _LATER),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def kind_of(head: bytes) -> tuple[str, str] | None:
    """What these first bytes are, and what to do about it; None where they tell nothing."""
    if head[257:262] == b"ustar":
        return "is a tar archive, and none that torch wrote", "unpack it, and name a file in it"
    if head.lstrip().lower().startswith(_PAGES):
        return "is a web page, not a checkpoint", "the download saved an error page: fetch it again"
    return next(((what, hint) for magic, what, hint in _KINDS if head.startswith(magic)), None)
