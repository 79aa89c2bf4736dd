"""What a pickle holds, as plain data: values stand for themselves, what would be called or looked up is a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

How = Literal["reduce", "newobj", "newobj_ex", "obj"]

ARGS, KWARGS, FUNC = -1, -2, -3  # positions in a Call, whose mutations count from 0


class Global:
    """The name of a class or function: `module.name`, in `full`. It stands for nothing but its name."""

    __slots__ = ("full", "module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.full = f"{module}.{name}"


class PyString:
    """A Python 2 `str`: bytes that were text, in a coding nobody recorded."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @property
    def text(self) -> str:
        try:
            return self.raw.decode("utf-8")
        except UnicodeDecodeError:
            return self.raw.decode("latin-1")


class Dict:
    """A dict as the pairs that were set, in order; keys are never hashed, so no key can cost anything.

    An empty one has no list of its own: a hostile pickle of a few bytes may hold millions of them.
    """

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: Sequence[tuple[Any, Any]] = ()

    def add(self, pairs: list[tuple[Any, Any]]) -> None:
        """Set more pairs; the list is taken over if it is the first."""
        if isinstance(self.pairs, list):
            self.pairs.extend(pairs)
        elif pairs:
            self.pairs = [*self.pairs, *pairs] if self.pairs else pairs

    def get(self, name: str, default: object = None) -> Any:
        """Return the value under a text key, as Python would: of several the last."""
        for key, value in reversed(self.pairs):
            if key == name if isinstance(key, str) else isinstance(key, PyString) and key.text == name:
                return value
        return default


class Set:
    """A set as the items that were added, in order; an empty one has no list of its own."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: Sequence[Any] = ()

    def add(self, items: list[Any]) -> None:
        """Add more items; the list is taken over if it is the first."""
        if isinstance(self.items, list):
            self.items.extend(items)
        elif items:
            self.items = [*self.items, *items] if self.items else items


class FrozenSet:
    """A frozenset as its items, in order."""

    __slots__ = ("items",)

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items


class Call:
    """An object that a real unpickler would make by calling `func(*args)`, and the changes it would then make to it.

    `mutations` are, in order, ("build", state), ("items", (key, value)), ("append", x), ("add", x).
    """

    __slots__ = ("args", "func", "how", "kwargs", "mutations")

    def __init__(self, func: Any, args: Any, kwargs: Any = None, how: How = "reduce") -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.how = how
        self.mutations: list[tuple[str, Any]] | None = None

    def _all(self, verb: str) -> list[Any]:
        return [value for name, value in self.mutations or () if name == verb]

    @property
    def state(self) -> Any:
        """The last state it was built from, or None."""
        states = self._all("build")
        return states[-1] if states else None

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """The items set on it, as on a dict."""
        return self._all("items")

    @property
    def elements(self) -> list[Any]:
        """The elements appended to it, as to a list."""
        return self._all("append")


class Persistent:
    """An object kept outside of the pickle, by the id it is known under."""

    __slots__ = ("pid",)

    def __init__(self, pid: Any) -> None:
        self.pid = pid


def class_of(node: object) -> Global | None:
    """Return the class that a node names; before 1.6 torch kept those of modules outside of its pickles, with source.

    Their ids are `("module", class, file, source)`, in tar files without the first word.
    """
    if isinstance(node, Global):
        return node
    pid = node.pid if isinstance(node, Persistent) else None
    if not isinstance(pid, tuple) or len(pid) not in (3, 4):
        return None
    word, found = pid[0], pid[-3]
    named = len(pid) == 3 or (word.text if isinstance(word, PyString) else word) == "module"
    return found if named and isinstance(found, Global) else None


def key_position(i: int) -> int:
    """Return the position of the key of pair `i`, whose value is at `i`."""
    return -4 - i


def is_key(position: int) -> bool:
    """Return whether a position is that of a key."""
    return position <= -4


def slots(node: Any) -> Iterator[tuple[int, Any]]:
    """Everything a node is made of, each with its position."""
    if isinstance(node, tuple | list):
        yield from enumerate(node)
    elif isinstance(node, Dict):
        for i, (key, value) in enumerate(node.pairs):
            yield key_position(i), key
            yield i, value
    elif isinstance(node, Set | FrozenSet):
        yield from enumerate(node.items)
    elif isinstance(node, Persistent):
        yield 0, node.pid
    elif isinstance(node, Call):
        yield from ((FUNC, node.func), (ARGS, node.args))
        if node.kwargs is not None:
            yield KWARGS, node.kwargs
        for i, (verb, value) in enumerate(node.mutations or ()):
            if verb == "items":
                yield key_position(i), value[0]
                value = value[1]
            yield i, value


def describe(node: object) -> str:
    """Return a short text for a foreign object: the name of its class or function."""
    if isinstance(node, Global):
        return node.full[:80]
    if isinstance(node, Call):
        cls = class_of(node.func)
        if cls is not None and cls.name in ("__newobj__", "_reconstructor", "_reconstruct") and node.args:
            cls = class_of(node.args[0])
        return f"{cls.full[:70]}(…)" if cls is not None else "an object made by a call of a call"
    return f"a {type(node).__name__.lower()}"
