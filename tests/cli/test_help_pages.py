"""How a page of Markdown is laid out on a terminal."""

from __future__ import annotations

from textwrap import dedent

import pytest

from paramctl.cli import help_pages, tables

PAGE = """\
# A title

A paragraph with `code` that
is longer than the terminal is.

- one item that takes two lines
- two

1. first
2. second

| word | what it means here |
|---|---|
| `a` | nothing |
| `bcd` | more than fits into one line |

```console
$ a command whose line is never wrapped
  [out]
```
The end.

```python paramctl/x.py, more of it
x = 1
```
"""


def shown(markdown: str) -> str:
    return "".join("".join(line.cells).rstrip() + "\n" for line in help_pages.laid_out(markdown))


def test_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tables, help_pages):
        monkeypatch.setattr(module, "terminal_width", lambda: 30)
    monkeypatch.setattr(tables, "NARROW", 10)
    assert shown(PAGE) == dedent("""\
        A title

        A paragraph with `code` that
        is longer than the terminal
        is.

        - one item that takes two
          lines
        - two

        1. first
        2. second

        word   what it means here
        `a`    nothing
        `bcd`  more than fits into one
               line

            $ a command whose line is never wrapped
              [out]

        The end.

        In paramctl/x.py, more of it:
            x = 1
        """)


def test_styles_are_few() -> None:
    styles = {"".join(line.cells).strip(): line.styles for line in help_pages.laid_out(PAGE)}
    assert styles["A title"] == ("bold",)
    assert styles["[out]"] == ("cyan",)
    assert styles["- two"] == ("", "")
