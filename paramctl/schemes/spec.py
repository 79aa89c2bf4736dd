"""Parse the text of a scheme into a `Spec`: the scheme with its arguments.

`drawing` makes the bytes of a `DrawnParam` from a spec. The schemes are defined in `functions`; the frameworks'
defaults, which choose among them by role, in `defaults`.

A draw can be repeated without paramctl:

    seed = int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "little")
    torch.nn.init.xavier_uniform_(tensor, generator=torch.Generator().manual_seed(seed))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

from paramctl.errors import UsageError
from paramctl.schemes.scheme import ALIASES, SCHEMES, Argument, Scheme, Value
from paramctl.schemes.user_function import UserFunction, find_function

EXTREME = 1000  # larger arguments may not fit a dtype: half precision ends at 65,504


@dataclass(frozen=True)
class Spec:
    """A scheme with all its arguments; `zero_row` is set to zero after the draw."""

    scheme: Scheme | UserFunction
    arguments: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    zero_row: int | None = None

    @property
    def is_default(self) -> bool:
        """Whether it is a framework's default, which also chooses for biases and scales."""
        return isinstance(self.scheme, Scheme) and self.scheme.role_aware

    @property
    def is_extreme(self) -> bool:
        """Whether a number may be too large for a dtype, which torch reports only when it draws."""
        return any(isinstance(a, float | int) and abs(a) > EXTREME for a in self.arguments.values())

    @property
    def text(self) -> str:
        """The text of the spec: `normal:std=0.01`, `constant:42`."""
        if isinstance(self.scheme, UserFunction):
            return self.scheme.text
        given = [a for a in self.scheme.arguments if self.arguments[a.name] != a.default]
        words = [f"{a.name}={_value_text(self.arguments[a.name])}" for a in given]
        if len(given) == 1 and given[0].required:
            words = [_value_text(self.arguments[given[0].name])]
        zero = "" if self.zero_row is None else f" (padding row {self.zero_row} zero)"
        return self.scheme.name + (":" if words else "") + ",".join(words) + zero


def _value_text(value: Value) -> str:
    """Return the text of an argument's value."""
    return str(value).removesuffix(".0")


def _normalised(name: str) -> str:
    """Return the form that equivalent names share: `GlorotUniform`, `glorot_uniform_`."""
    return name.lower().replace("_", "").replace("-", "")


def find(name: str) -> Scheme:
    """Return the scheme of that name or alias. Raises UsageError with the nearest names."""
    known = {_normalised(each): each for each in (*ALIASES, *SCHEMES)}
    plain = _normalised(name)
    if plain in known:
        return SCHEMES[ALIASES.get(known[plain], known[plain])]
    near = (known[key] for key in get_close_matches(plain, known, n=4, cutoff=0.5))
    names = ", ".join(dict.fromkeys(ALIASES.get(each, each) for each in near))
    hint = f"did you mean {names}? (paramctl schemes lists all)" if names else "'paramctl schemes' lists all"
    raise UsageError(f"no scheme '{name}'", hint=hint)


_OWN_FUNCTION = re.compile(r"(?P<file>.*\.py):(?P<name>[^:]*)(?::(?P<words>.*))?", re.DOTALL).fullmatch


def parse(text: str) -> Spec:
    """Return the spec for `name`, `name:key=value,key=value`, `constant:42` or `file.py:function:key=value`.

    A single value without a name is the only argument, or the one that must be given. A user's file is not run yet.
    Raises UsageError if the scheme does not exist or the arguments do not fit.
    """
    if own := _OWN_FUNCTION(text):
        return Spec(find_function(own["file"], own["name"], own["words"] or ""))
    name, colon, rest = text.partition(":")
    if name.endswith(".py"):
        raise UsageError(f"{name} needs the name of a function in it", hint=f"write {name}:FUNCTION")
    found = find(name.strip())
    return _spec(found, _arguments_by_name(found, rest.split(",")) if colon else {})


def _arguments_by_name(scheme: Scheme, words: list[str]) -> dict[str, str]:
    """Return the texts of the arguments by name."""
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            name, value = _first_argument(scheme, name, len(words)), name
        if name in given:
            raise UsageError(f"{scheme.name}: {name} is given twice")
        given[name] = value
    return given


def _first_argument(scheme: Scheme, value: str, count: int) -> str:
    """Return the name of the argument for a value without a name. Raises UsageError if there is none."""
    if not scheme.arguments:
        raise UsageError(f"{scheme.name} takes no arguments, but '{value}' was given")
    first = scheme.arguments[0].name
    if count > 1:
        raise UsageError(f"{scheme.name}: '{value}' has no name", hint=f"write {first}={value}, say")
    if value and len(scheme.arguments) > 1 and not scheme.arguments[0].required:
        names = [argument.name for argument in scheme.arguments]
        ways = " or ".join(f"{scheme.name}:{name}={value}" for name in names[:2])
        raise UsageError(f"{scheme.name} takes {', '.join(names)}: '{value}' may be any of them", hint=f"write {ways}")
    return first


def _spec(scheme: Scheme, texts: Mapping[str, str]) -> Spec:
    """Return the spec of a scheme with arguments as texts. Raises UsageError for an unknown argument."""
    known = [argument.name for argument in scheme.arguments]
    for name in texts:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no arguments"
            raise UsageError(f"{scheme.name} has no argument '{name}'", hint=takes)
    return _checked_spec(scheme, {a.name: _value(scheme, a, texts.get(a.name)) for a in scheme.arguments})


def _value(scheme: Scheme, argument: Argument, text: str | None) -> Value:
    """Return the value of an argument. Raises UsageError if it is missing or wrong."""
    if text is None:
        if argument.default is None:
            hint = f"write {scheme.name}:{argument.name}=VALUE"
            raise UsageError(f"{scheme.name} needs {argument.name}", hint=hint)
        return argument.default
    try:
        return argument.read(text)
    except ValueError as error:
        raise UsageError(f"{scheme.name}: {argument.name} must be {error}, not '{text}'") from None


def _checked_spec(scheme: Scheme, arguments: dict[str, Value]) -> Spec:
    """Return the spec. Raises UsageError if the arguments contradict one another."""
    if wrong := scheme.valid(arguments):
        raise UsageError(f"{scheme.name}: {wrong}")
    return Spec(scheme, MappingProxyType(arguments))


def call(name: str, **arguments: Value) -> Spec:
    """Return a spec from Python values: `call("uniform", a=-0.5, b=0.5)`."""
    scheme = SCHEMES[name]
    return _checked_spec(scheme, {a.name: arguments.get(a.name, a.default or 0.0) for a in scheme.arguments})
