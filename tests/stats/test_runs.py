"""The order of the checkpoints of a run, files and folders, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused
from set_files import make
from set_files import saved as saved_by_processes

from paramctl.errors import NoMatch, UsageError
from paramctl.formats import opening
from paramctl.stats.runs import Order, survey


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to an empty working directory, so that names of files are short."""
    monkeypatch.chdir(tmp_path)


def saved(**runs: object) -> list[str]:
    """Save each object in a file `<name>.pt`."""
    for name, held in runs.items():
        torch.save(held, f"{name}.pt")
    return [f"{name}.pt" for name in runs]


def ordered(files: Sequence[str], order: Order = "auto") -> tuple[list[str], str]:
    run = survey(files, [], opening.open, order)
    return [run_file.file for run_file in run.run_files], run.order


def at(**held: Any) -> dict[str, Any]:
    return {"model": {"w": torch.ones(1)}, **held}


def test_steps_in_the_checkpoints_decide() -> None:
    files = saved(a=at(step=30), b=at(step=4), c=at(step=11.5))
    assert ordered(files) == (["b.pt", "c.pt", "a.pt"], "step")
    assert ordered(files, "name") == (["a.pt", "b.pt", "c.pt"], "name")
    assert ordered(files[::-1], "given") == (["c.pt", "b.pt", "a.pt"], "given")
    assert [run_file.step for run_file in survey(files, [], opening.open, "name").run_files] == [30, 4, 11.5]


def test_names_decide_where_steps_do_not_as_people_count() -> None:
    files = saved(step10=at(step=1), step2=at(step=1), step1=at())
    assert ordered(files) == (["step1.pt", "step2.pt", "step10.pt"], "name")
    assert refused(UsageError, ordered, files, "step") == (
        "the checkpoints hold no step that tells them apart; order them by 'name', or as 'given'"
    )


def test_the_first_word_that_tells_all_apart_is_the_step() -> None:
    files = saved(a=at(epoch=1, global_step=20), b=at(epoch=1, global_step=10))
    assert ordered(files) == (["b.pt", "a.pt"], "global_step")
    assert [run_file.step for run_file in survey(files, [], opening.open).run_files] == [10, 20]


@pytest.mark.parametrize("odd", [True, "7", None, float("nan"), [1]])
def test_only_numbers_are_steps(odd: object) -> None:
    assert ordered(saved(b=at(step=odd), a=at(step=2))) == (["a.pt", "b.pt"], "name")


def test_a_selection_that_matches_nowhere_is_an_error() -> None:
    files = saved(a={"first": torch.ones(4)}, b={"first": torch.ones(4)})
    assert refused(NoMatch, survey, files, ["frst"], opening.open) == (
        "a.pt: no parameter or layer matches 'frst'; nearest: first"
    )


def test_a_checkpoint_of_nothing_but_numbers_is_no_match() -> None:
    assert refused(NoMatch, survey, saved(a={"epoch": 1}), [], opening.open) == (
        "a.pt: there are no parameters in this checkpoint"
    )


def test_folders_are_ordered_by_their_names_as_people_count() -> None:
    Path("run").mkdir()
    folders = [f"run/step{n}/" for n in (10, 2, 1)]
    for folder in folders:
        make(Path(folder), [{"a": torch.ones(2)}, {"b": torch.ones(3)}])
    assert ordered(folders) == (["run/step1/", "run/step2/", "run/step10/"], "name")
    indexes = [f"{folder}model.safetensors.index.json" for folder in folders]
    assert ordered(indexes) == (indexes[::-1], "name")


def test_folders_of_torch_distributed_hold_their_steps() -> None:
    folders = [str(saved_by_processes(Path(name), at(step=step))) for name, step in (("b", 3), ("a", 20))]
    assert ordered(folders) == (["b", "a"], "step")
