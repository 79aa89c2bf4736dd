"""Histograms, compared with numpy, and curves of what `track` finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused

from paramctl.errors import UsageError
from paramctl.formats import opening
from paramctl.stats import charts
from paramctl.stats.charts import Bars, Curve, curves, histograms
from paramctl.stats.runs import Run, RunFile
from paramctl.stats.track import Step, Tracked


def bars(tmp_path: Path, together: bool = False, **tensors: torch.Tensor) -> tuple[Bars, ...]:
    torch.save(tensors, tmp_path / "x.pt")
    checkpoint = opening.open(str(tmp_path / "x.pt"))
    return histograms(checkpoint, range(len(tensors)), list(tensors), together=together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 30, 10_000])
def test_counts_are_exact(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(count).to(dtype)
    (one,) = bars(tmp_path, w=values)
    expected, _ = np.histogram(values.double().numpy(), np.append(one.edges[:-1], np.nextafter(one.edges[-1], -np.inf)))
    assert list(one.counts) == expected.tolist()
    assert sum(one.counts) == count
    assert 2 <= len(one.counts) <= 64


def test_integers_and_flags_have_histograms_too(tmp_path: Path) -> None:
    numbers, flags = bars(tmp_path, numbers=torch.arange(10), flags=torch.tensor([True, False, True]))
    assert numbers == Bars("numbers", (2, 2, 2, 2, 2), (0.0, 2.0, 4.0, 6.0, 8.0, 10.0))
    assert (flags.counts[0], flags.counts[-1], sum(flags.counts)) == (1, 2, 3)


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    assert bars(
        tmp_path,
        nothing=torch.zeros(0),
        odd=torch.tensor([nan, inf, inf]),
        some=torch.tensor([1.0, nan]),
        same=torch.full((3,), -2.0),
        close=torch.tensor([1 - 1e-15, 1 + 1e-15], dtype=torch.float64),
        huge=torch.tensor([1e301, 1.0], dtype=torch.float64),
        tiny=torch.tensor([1e-310, 2e-310], dtype=torch.float64),
        meta=torch.empty(2, device="meta"),
    ) == (
        Bars("nothing", (), (), "no values"),
        Bars("odd", (), (), "only 1 NaN and 2 infinite"),
        Bars("some", (0, 1, 0), (0.953125, 0.984375, 1.015625, 1.046875), "all are 1, without 1 NaN"),
        Bars("same", (0, 3, 0), (-2.09375, -2.03125, -1.96875, -1.90625), "all are -2"),
        Bars("close", (0, 2, 0), (0.953125, 0.984375, 1.015625, 1.046875), "all are about 1"),
        Bars("huge", (), (), "values up to 1e+301, too large to draw"),
        Bars("tiny", (0, 2, 0), (-1.5, -0.5, 0.5, 1.5), "all are about 1.5e-310"),
        Bars("meta", (), (), "meta is a meta tensor: no values are saved for it"),
    )


def test_together_all_have_the_same_bins(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide, narrow, same = bars(
        tmp_path, together=True, wide=torch.randn(1000), narrow=torch.rand(50) / 10, same=torch.ones(2)
    )
    assert wide.edges == narrow.edges == same.edges
    assert (sum(wide.counts), sum(narrow.counts), sum(same.counts)) == (1000, 50, 2)
    assert same.counts[same.edges.index(1.0)] == 2


def test_together_without_anything_to_compare_is_as_alone(tmp_path: Path) -> None:
    same, nothing = torch.ones(2), torch.zeros(0)
    alone = bars(tmp_path, same=same, nothing=nothing)
    assert bars(tmp_path, together=True, same=same, nothing=nothing) == alone


def test_together_bins_stay_few_however_far_apart_params_lie(tmp_path: Path) -> None:
    one, other = bars(tmp_path, together=True, a=torch.linspace(0, 1, 99), b=torch.linspace(1e6, 1e6 + 1, 99))
    assert one.edges == other.edges
    assert len(one.counts) <= 2 * charts.MAX_BINS
    assert sum(one.counts) == sum(other.counts) == 99


def run_of(*steps: tuple[Step, ...], order: str = "step") -> tuple[Run, list[Tracked]]:
    run_files = tuple(RunFile(row[0].file, row[0].step) for row in steps)
    return Run(run_files, order, ("exp_avg",), 2), [Tracked(row) for row in steps]


def called(path: str | None) -> str:
    return path or "all"


def test_a_curve_for_each_path_has_a_gap_where_nothing_is_known() -> None:
    run, tracked = run_of(
        (Step("a", 0, "x", norm=1.0), Step("a", 0, "y", norm=2.0)),
        (Step("b", 10),),
        (Step("c", 20, "y", norm=3.0, moments={"exp_avg": 4.0}),),
    )
    assert curves(run, tracked, "norm", called) == (
        Curve("x", (0.0, 10.0, 20.0), (1.0, None, None)), Curve("y", (0.0, 10.0, 20.0), (2.0, None, 3.0))
    )  # fmt: skip
    assert curves(run, tracked, "exp_avg", called)[1].values == (None, None, 4.0)


def test_without_steps_places_are_counted() -> None:
    run, tracked = run_of((Step("a", None, norm=1.0),), (Step("b", None, norm=2.0),), order="name")
    (curve,) = curves(run, tracked, "norm", called)
    assert curve == Curve("all", (1.0, 2.0), (1.0, 2.0))
    assert all(isinstance(place, float) for place in curve.places)


def test_a_figure_that_is_nowhere_known() -> None:
    run, tracked = run_of((Step("a", 0, norm=1.0),))
    assert refused(UsageError, curves, run, tracked, "grad", called) == (
        "no checkpoint holds a grad of the selected params; draw another figure with --of"
    )
    assert refused(UsageError, charts.check_figure, run, "momentum") == (
        "there is no 'momentum' to draw; name one of norm, update, ratio, grad, mean, std, exp_avg"
    )
