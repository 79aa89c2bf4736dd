"""Load a user's own initialisation, `FILE.py:FUNCTION`, run it once for a param, and check its result."""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from paramctl.errors import Stopped, UsageError
from paramctl.schemes.generators import seed_for, seeded_generators
from paramctl.schemes.scheme import shape_text
from paramctl.values.torch_import import import_torch

if TYPE_CHECKING:
    import torch

    from paramctl.schemes.drawn_param import DrawnParam


@dataclass(frozen=True)
class UserFunction:
    """A function in a user's file, run because the command line names it."""

    file: str
    name: str
    code: CodeType = field(repr=False, compare=False)
    arguments: tuple[tuple[str, float | str], ...] = ()  # given as keywords

    @property
    def text(self) -> str:
        """The text of the scheme: `my_init.py:my_init`, `my_init.py:my_init:std=0.5`."""
        words = ",".join(f"{name}={value}" for name, value in self.arguments)
        return f"{self.file}:{self.name}" + (f":{words}" if words else "")

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function; its file is executed once, and no bytecode is left beside it."""
        module = ModuleType(f"paramctl.user.{Path(self.file).stem}")
        module.__file__ = self.file
        sys.modules[module.__name__] = module  # dataclasses look their module up
        exec(self.code, module.__dict__)
        function = getattr(module, self.name, None)
        if not callable(function):
            raise UsageError(f"{self.file} has no function '{self.name}'")
        return function  # type: ignore[no-any-return]


def find_function(file: str, name: str, words: str = "") -> UserFunction:
    """Return the function `name` of a Python file, compiled but not run, with the arguments in `words`.

    Raises UsageError if there is no such function, or if the words are no `key=value,key=value`.
    """
    arguments = tuple(_keyword(file, name, word) for word in words.split(",")) if words else ()
    path = Path(file)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{file} is not a regular file")
        code = compile(path.read_bytes(), file, "exec", dont_inherit=True)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except SyntaxError as error:
        raise UsageError(f"{file} is not Python: {error.msg} (line {error.lineno})") from None
    except ValueError as error:
        raise UsageError(f"{file} is not Python: {error}") from None
    if name not in code.co_names and ("*",) not in code.co_consts:
        near = ", ".join(get_close_matches(name, code.co_names, n=3, cutoff=0.5))
        raise UsageError(f"{file} has no function '{name}'", hint=f"did you mean {near}?" if near else "")
    return UserFunction(file, name, code, arguments)


def _keyword(file: str, name: str, word: str) -> tuple[str, float | str]:
    """Return the name and the value of one argument: a whole number, a number, true or false, or a text."""
    key, equals, text = (part.strip() for part in word.partition("="))
    if not equals or not key.isidentifier():
        raise UsageError(f"{file}:{name}: '{word.strip()}' has no name", hint=f"write {file}:{name}:KEY=VALUE")
    if text.lower() in ("true", "false"):
        return key, text.lower() == "true"
    for kind in (int, float):
        try:
            return key, kind(text)
        except ValueError:
            continue
    return key, text


def fill_with(user: UserFunction, param: DrawnParam, current: bytes | None) -> torch.Tensor:
    """Return the tensor that the function makes for a param. Raises UsageError if it does not fit."""
    torch = import_torch()
    dtype = getattr(torch, param.dtype.name)
    tensor = torch.zeros(param.shape, dtype=dtype)
    if current is not None:
        tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(current), dtype=torch.uint8))
    returned = _run(user, tensor, param)
    result = tensor if returned is None else returned
    if not isinstance(result, torch.Tensor):
        raise _wrong_return(user, param, f"returned a {type(result).__name__}")
    if result.layout is not torch.strided or result.is_quantized or result.is_meta or result.is_nested:
        kinds = {"quantized": result.is_quantized, "meta": result.is_meta, "nested": result.is_nested}
        kind = next((kind for kind, found in kinds.items() if found), str(result.layout)[6:])
        raise _wrong_return(user, param, f"returned a {kind} tensor")
    if tuple(result.shape) != param.shape:
        raise _wrong_return(user, param, f"made a tensor of shape {shape_text(tuple(result.shape))}")
    if result.is_complex() and not dtype.is_complex:
        raise _wrong_return(user, param, "returned complex numbers")
    found = result.detach().cpu().resolve_conj().resolve_neg()
    plain = found.to(dtype)
    if found.dtype != dtype and not _same_values(plain, found):
        kind = str(found.dtype)[6:]
        raise _wrong_return(user, param, f"returned {kind} values that {param.dtype.name} cannot hold")
    return plain.contiguous()  # type: ignore[no-any-return]


def _same_values(converted: torch.Tensor, given: torch.Tensor) -> bool:
    """Return whether a conversion only rounded: nothing became infinite or NaN, and integers are unchanged."""
    torch = import_torch()
    if converted.is_floating_point() or converted.is_complex():
        wide = torch.complex128 if converted.is_complex() else torch.float64
        return torch.equal(converted.to(wide).isfinite(), given.to(wide).isfinite())  # type: ignore[no-any-return]
    return torch.equal(converted.to(given.dtype), given)  # type: ignore[no-any-return]


def _wrong_return(user: UserFunction, param: DrawnParam, what: str) -> UsageError:
    """Return the error for a result that does not fit."""
    return UsageError(
        f"{user.text} {what} for {param.path or '.'}; "
        f"it must change the tensor in place or return one of shape {shape_text(param.shape)}"
    )


def _run(user: UserFunction, tensor: torch.Tensor, param: DrawnParam) -> object:
    """Return the function's result. A second parameter without a default gets the path."""
    torch = import_torch()
    try:
        # What it prints must not end up in a checkpoint on standard output.
        with redirect_stdout(_ToStandardError()), _keep_directory(), torch.no_grad():
            with seeded_generators(seed_for(param.seed, "")):
                function = user.function
            with seeded_generators(seed_for(param.seed, param.path)):
                given = dict(user.arguments)
                return function(tensor, *([param.path] if _takes_path(function, given) else []), **given)
    except (UsageError, Stopped):
        raise
    except BaseException as error:
        if type(error) is KeyboardInterrupt:  # Ctrl-C, where paramctl is a library
            raise
        what = f"{user.text} failed for {param.path or '.'}: {_error_text(error)}{_line_number(error, user.file)}"
        raise UsageError(what) from error


class _ToStandardError(io.TextIOBase):
    """The standard output of a user's function: standard error, which it cannot close."""

    def write(self, text: str) -> int:
        """Write the text to standard error."""
        return sys.stderr.write(text) if sys.stderr else len(text)

    def flush(self) -> None:
        """Flush standard error."""
        if sys.stderr:
            sys.stderr.flush()


@contextmanager
def _keep_directory() -> Iterator[None]:
    """Restore the working directory at the end: paths on the command line are relative to it."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.fchdir(directory)
        os.close(directory)


def _error_text(error: BaseException) -> str:
    """Return `ValueError: message`, even if the message of a user's exception fails."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - whatever its __str__ raises, the first failure is the one to tell
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _takes_path(function: Callable[..., Any], given: Mapping[str, object]) -> bool:
    """Return whether a function has a second parameter without a default, and which is not `given`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # a built-in function says nothing
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = positional[1] if len(positional) > 1 else None
    return second is not None and second.default is inspect.Parameter.empty and second.name not in given


def _line_number(error: BaseException, file: str) -> str:
    """Return the line of the user's file in which an error occurred, in words, or ""."""
    import traceback

    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" (line {lines[-1]})" if lines else ""
