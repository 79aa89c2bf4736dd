"""`paramctl schemes`: the list, and one explained."""

from __future__ import annotations

import json
from collections.abc import Callable

from paramctl.schemes.scheme import SCHEMES

Run = Callable[..., tuple[int, str, str]]


def test_every_scheme_has_a_line_with_its_summary(run: Run) -> None:
    code, out, err = run("schemes")
    assert (code, err) == (0, "")
    assert [tuple(line.split(maxsplit=1)) for line in out.splitlines()] == [
        (name, scheme.summary) for name, scheme in SCHEMES.items()
    ]


def test_one_explained_by_its_alias(run: Run) -> None:
    scheme = SCHEMES["xavier_uniform"]
    assert run("schemes", "glorot_uniform")[1] == (
        "xavier_uniform\n"
        f"  {scheme.summary}\n"
        "\n"
        f"  formula    {scheme.formula}\n"
        f"  arguments  gain (float, default 1.0): {scheme.arguments[0].doc}\n"
        f"  shapes     {scheme.shapes}\n"
        f"  aliases    {', '.join(scheme.aliases)}\n"
        f"  origin     {scheme.origin}\n"
        f"  paper      {scheme.paper}\n"
    )


def test_an_argument_that_must_be_given_says_so(run: Run) -> None:
    assert "arguments  val (float, required): the value\n" in run("schemes", "constant")[1]


def test_json(run: Run) -> None:
    document = json.loads(run("schemes", "constant", "--json")[1])
    assert document["schema"] == 1
    (scheme,) = document["schemes"]
    assert scheme["name"] == "constant"
    assert scheme["arguments"] == [{"name": "val", "type": "float", "default": None, "doc": "the value"}]


def test_an_unknown_one_names_the_nearest(run: Run) -> None:
    code, out, err = run("schemes", "xavir")
    assert (code, out) == (2, "")
    assert err.startswith("paramctl: no scheme 'xavir'; did you mean xavier_uniform")
