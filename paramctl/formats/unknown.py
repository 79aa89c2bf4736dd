"""What a file that is of no format that is read probably is, told from its first bytes."""

from __future__ import annotations

from paramctl.errors import FileError, FormatError, Unsupported

_LATER = "this version does not read it"
_KINDS = (
    (b"\x1f\x8b", "is compressed with gzip", "unpack it with 'gunzip' first"),
    (b"BZh", "is compressed with bzip2", "unpack it with 'bunzip2' first"),
    (b"\xfd7zXZ\x00", "is compressed with xz", "unpack it with 'unxz' first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it with 'unzstd' first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack it first"),
    (b"GGUF", "is a GGUF file", _LATER),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 (Keras) file", _LATER),
    (b"\x93NUMPY", "is a NumPy .npy file", _LATER),
    (b"PYTORCH1", "is TorchScript as torch 1.0.0 wrote it", _LATER),
    (b"\x12\x01\x00\x00\x00\x00\x00\x00", "is an MXNet .params file", _LATER),
    (b"\x80", "looks like a bare pickle, not like a file that torch.save wrote", _LATER),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def of_a_set(name: str) -> str:
    """Return what to do about a file that cannot be read, if its name says that it is one of several; else ""."""
    return "it is one file of a set of torch.distributed: name the folder it is in" if name.endswith(".distcp") else ""


def why_not(head: bytes, known: str) -> FileError:
    """Return the error to raise for a file with these first bytes, which is of no format that is `known`.

    FormatError where something else was fetched in the file's stead, Unsupported where it is of another kind.
    """
    if head.startswith(b"version https://git-lfs"):
        return FormatError("is a Git LFS pointer, not the file itself", hint="run 'git lfs pull'")
    if head.lstrip().lower().startswith(_PAGES):
        return FormatError("is a web page, not a checkpoint", hint="the download saved an error page: fetch it again")
    for magic, what, hint in _KINDS:
        if head.startswith(magic):
            return Unsupported(what, hint=hint)
    return Unsupported("is no checkpoint that paramctl knows", hint=f"it reads {known}")
