"""The command help: the list of topics, a page, the help of a command, and what it says to a topic it does not know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from terminals import shown

from paramctl.cli import help_pages
from paramctl.cli.app import CHANGE, LOOK
from paramctl.formats.protocol import AnyFormat
from paramctl.formats.registry import FORMATS, SETS

Run = Callable[..., tuple[int, str, str]]
TOPICS = [*help_pages.topics()]


def test_it_lists_the_topics_with_a_line_each(run: Run) -> None:
    code, out, err = run("help")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == TOPICS
    assert "selections   How to name parameters and layers: paths, globs, positions, regular expressions\n" in out


@pytest.mark.parametrize("topic", TOPICS)
def test_off_a_terminal_a_page_is_markdown(run: Run, topic: str) -> None:
    code, out, err = run("help", topic)
    assert (code, out, err) == (0, help_pages.page(topic), "")
    assert out.startswith(f"# {help_pages.topics()[topic]}\n\n")


@pytest.mark.parametrize("topic", TOPICS)
def test_on_a_terminal_a_page_is_wrapped(topic: str) -> None:
    out = shown(80, "help", topic, NO_COLOR="1")
    code = {line for block in help_pages.page(topic).split("```")[1::2] for line in block.splitlines()}
    long = [line for line in out.splitlines() if len(line) > 80 and line.strip() not in {row.strip() for row in code}]
    assert long == []
    assert "```" not in out and "\x1b" not in out
    assert not [line for line in out.splitlines() if line.startswith(("#", "|"))]
    for word in help_pages.page(topic).split():
        assert word in out or word[0] in "#|`" or set(word) <= set("|-"), word


@pytest.mark.parametrize("name", [name for name in (*LOOK, *CHANGE) if name not in TOPICS])
def test_of_a_command_it_is_that_commands_help(run: Run, name: str) -> None:
    assert run("help", name) == run(name, "--help")


@pytest.mark.parametrize("topic", [name for name in TOPICS if name in (*LOOK, *CHANGE)])
def test_a_topic_with_a_commands_name_refers_to_its_help(topic: str) -> None:
    assert f"`paramctl {topic} --help`" in help_pages.page(topic)


@pytest.mark.parametrize(
    ("topic", "hint"),
    [("formts", "nearest: formats"), ("conver", "nearest: convert, recover"), ("nonsense", "'paramctl help' lists the topics")],
)
def test_a_topic_it_does_not_know(run: Run, topic: str, hint: str) -> None:
    assert run("help", topic) == (2, "", f"paramctl: no help topic or command '{topic}'; {hint}\n")


@pytest.mark.parametrize("form", [*FORMATS, *SETS], ids=lambda form: form.NAME)
def test_the_topic_formats_says_what_each_format_can_do(form: AnyFormat) -> None:
    name, writes = form.NAME, form.WRITES
    (row,) = [line for line in help_pages.page("formats").splitlines() if line.startswith(f"| `{name}` |")]
    edit, to = row.strip("| ").split(" | ")[1:3]
    assert (edit == "no") == (writes == "nothing")
    assert to == ("yes" if writes == "any" else "no")
