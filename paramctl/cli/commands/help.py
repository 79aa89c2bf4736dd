"""`paramctl help`: pages about topics that concern several commands, and the help of each command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from paramctl.cli import help_pages, output, tables
from paramctl.cli.output import Line
from paramctl.errors import UsageError


def help(
    ctx: typer.Context,
    topic: Annotated[
        str | None, typer.Argument(metavar="[TOPIC]", show_default=False, help="A topic, or a command.")
    ] = None,
) -> None:
    """Explain a topic, such as formats or selections, or a command.

    Without TOPIC: the list of topics. On a terminal a page is wrapped to its width; in a pipe it is Markdown.

    \b
    Examples:
      paramctl help
      paramctl help selections
      paramctl help tree
    """
    topics, commands = help_pages.topics(), _commands(ctx)
    if topic is None:
        output.listing(_listed(topics))
    elif topic in topics:
        _print_page(help_pages.page(topic))
    elif command := commands.get_command(ctx.parent, topic):
        command.make_context(topic, ["--help"], parent=ctx.parent)
    else:
        raise UsageError(f"no help topic or command '{topic}'", hint=_nearest(topic, [*topics, *commands.commands]))


def _commands(ctx: Any) -> Any:
    return ctx.parent.command


def _print_page(markdown: str) -> None:
    if output.stdout_is_terminal():
        output.listing(help_pages.laid_out(markdown))
    else:
        output.write(markdown)


def _listed(topics: dict[str, str]) -> Iterator[Line]:
    width = max(map(len, topics)) + 2
    for name, title in topics.items():
        for i, part in enumerate(tables.wrapped(title, width)):
            yield Line((f"{'' if i else name:<{width}}", part), ("bold", ""))


def _nearest(topic: str, known: list[str]) -> str:
    from difflib import get_close_matches

    names = get_close_matches(topic, known)
    return f"nearest: {', '.join(names)}" if names else "'paramctl help' lists the topics"
