"""`paramctl schemes`: list the initialisations, and explain one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import output, tables
from paramctl.cli.completion import complete_scheme
from paramctl.cli.options import Color, Json
from paramctl.cli.output import Line

if TYPE_CHECKING:
    from paramctl.schemes.scheme import Argument, Scheme


def schemes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            show_default=False,
            autocompletion=complete_scheme,
            help="A scheme, or one of its aliases.",
        ),
    ] = None,
    as_json: Json = False,
    color: Color = "auto",
) -> None:
    """List the schemes that init knows, or explain one.

    With NAME: its formula, arguments with their defaults, aliases and paper.

    \b
    Examples:
      paramctl schemes
      paramctl schemes xavier
      paramctl schemes --json | jq -r '.schemes[].name'
    """
    from paramctl.schemes.scheme import SCHEMES
    from paramctl.schemes.spec import find

    listed = list(SCHEMES.values()) if name is None else [find(name)]
    if as_json:
        output.json({"schema": 1, "schemes": [_object(scheme) for scheme in listed]})
    elif name is None:
        output.listing(_summaries(listed), color)
    else:
        output.listing(_explained(listed[0]), color)


def _object(scheme: Scheme) -> dict[str, object]:
    """Return the JSON object of a scheme."""
    return {
        "name": scheme.name,
        "aliases": list(scheme.aliases),
        "summary": scheme.summary,
        "formula": scheme.formula,
        "arguments": [
            {"name": each.name, "type": each.type.__name__, "default": each.default, "doc": each.doc}
            for each in scheme.arguments
        ],
        "shapes": scheme.shapes,
        "origin": scheme.origin,
        "paper": scheme.paper,
    }


def _summaries(listed: list[Scheme]) -> Iterator[Line]:
    """Yield a line for each scheme."""
    width = max(len(scheme.name) for scheme in listed)
    for scheme in listed:
        for i, part in enumerate(tables.wrapped(scheme.summary, width + 2)):
            yield Line((f"{'' if i else scheme.name:<{width}}  ", part), ("bold", ""))


def _explained(scheme: Scheme) -> Iterator[Line]:
    """Yield the lines that explain a scheme."""
    yield Line((scheme.name,), ("bold",))
    for part in tables.wrapped(scheme.summary, 2):
        yield Line(("  ", part), ("", ""))
    yield Line(("",), ("",))
    facts = [
        ("formula", scheme.formula),
        *(("arguments" if i == 0 else "", _argument(each)) for i, each in enumerate(scheme.arguments)),
        ("shapes", scheme.shapes),
        ("aliases", ", ".join(scheme.aliases)),
        ("origin", scheme.origin),
        ("paper", scheme.paper),
    ]
    for title, text in facts:
        for i, part in enumerate(tables.wrapped(text, 13)):
            yield Line((f"  {'' if i else title:<11}", part), ("cyan", ""))


def _argument(argument: Argument) -> str:
    """Return an argument with its type, default and meaning."""
    default = "required" if argument.required else f"default {argument.default}"
    return f"{argument.name} ({argument.type.__name__}, {default}): {argument.doc}"
