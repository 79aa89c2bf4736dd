"""Figures over the checkpoints of a run, compared with what torch computes."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import record_of, refused
from safetensors.torch import save_file
from torch import nn

from paramctl.errors import FormatError
from paramctl.formats.opening import open
from paramctl.model.checkpoint import Checkpoint
from paramctl.stats.runs import Order, Run, survey
from paramctl.stats.track import Step, Tracked, track

SAMPLES = [str(Path(__file__).parents[2] / "sample_models" / f"tied_mlp_step{i}.pt") for i in range(3)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty working directory, so that names of files are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(**runs: object) -> list[str]:
    """Save each object in a file `<name>.pt`."""
    for name, held in runs.items():
        torch.save(held, f"{name}.pt")
    return [f"{name}.pt" for name in runs]


def tracked(
    files: Sequence[str], *selections: str, each: bool = False, order: Order = "given"
) -> tuple[Run, list[Tracked]]:
    run = survey(files, selections, open, order)
    return run, list(track(run, selections, open, each=each))


def steps(files: Sequence[str], *selections: str, each: bool = False) -> list[Step]:
    return [step for one in tracked(files, *selections, each=each)[1] for step in one.steps]


def remarks(files: Sequence[str], *selections: str) -> list[tuple[str, ...]]:
    return [one.remarks for one in tracked(files, *selections)[1]]


def norm(*tensors: torch.Tensor) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in tensors]).norm())


def test_a_training_run_is_what_torch_says_of_it() -> None:
    held = [torch.load(file) for file in SAMPLES]
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"]  # 4 is 2
    found = steps(SAMPLES)
    for i, (step, one) in enumerate(zip(found, held, strict=True)):
        now = [one["model"][name] for name in names]
        every = torch.cat([value.double().flatten() for value in now])
        assert (step.file, step.step, step.path, step.nan, step.inf) == (SAMPLES[i], i, None, 0, 0)
        assert step.norm == pytest.approx(norm(*now), rel=1e-12)
        assert step.mean == pytest.approx(float(every.mean()), rel=1e-12)
        assert step.std == pytest.approx(float(every.std()), rel=1e-12)
        assert step.grad == pytest.approx(norm(*(one["grad"][name] for name in names)), rel=1e-12)
        for moment in ("exp_avg", "exp_avg_sq"):
            stored = [state[moment] for state in one["optimizer"]["state"].values()]
            assert step.moments[moment] == pytest.approx(norm(*stored), rel=1e-12)
        if i == 0:
            assert (step.update, step.ratio) == (None, None)
            continue
        before = [held[i - 1]["model"][name] for name in names]
        update = norm(*(a.double() - b.double() for a, b in zip(now, before, strict=True)))
        assert step.update == pytest.approx(update, rel=1e-12)
        assert step.ratio == pytest.approx(update / norm(*before), rel=1e-12)


def test_the_gradient_of_a_tied_layer_is_stored_once_and_is_that_of_each_of_its_names() -> None:
    one, other = (steps(SAMPLES, f"{layer}.weight") for layer in (2, 4))
    assert [step.grad for step in one] == [step.grad for step in other]
    assert [step.norm for step in steps(SAMPLES, "2", "4")] == [step.norm for step in steps(SAMPLES, "2")]
    gradients = [torch.load(file)["grad"]["4.weight"] for file in SAMPLES]
    assert [step.grad for step in other] == pytest.approx([norm(gradient) for gradient in gradients], rel=1e-12)


def test_each_param_has_figures_of_its_own_by_its_path_in_the_model() -> None:
    found = steps(SAMPLES, "2", "6.bias", each=True)
    assert [(step.step, step.path) for step in found] == [
        (i, path) for i in range(3) for path in ("2.weight", "2.bias", "6.bias")
    ]
    together = steps(SAMPLES, "2", "6.bias")
    for i in range(3):
        parts = [step.norm or 0 for step in found if step.step == i]
        assert together[i].norm == pytest.approx(sum(part**2 for part in parts) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_many_values_in_any_dtypes_and_orders(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(700, 300), torch.randn(300, 700).to(dtype).T
    found = steps(saved(a={"w": a}, b={"w": b}))
    update = norm(b.double() - a.double())
    assert found[1].norm == pytest.approx(norm(b), rel=1e-12)
    assert (found[1].update, found[1].ratio) == pytest.approx((update, update / norm(a)), rel=1e-12)
    assert found[1].std == pytest.approx(float(b.double().std()), rel=1e-12)


def test_the_same_checkpoint_twice_has_not_moved() -> None:
    found = steps([SAMPLES[0], SAMPLES[0]])
    assert (found[1].update, found[1].ratio) == (0.0, 0.0)
    assert found[0].norm == found[1].norm


def test_from_nothing_there_is_an_update_but_no_ratio() -> None:
    found = steps(saved(a={"w": torch.zeros(4)}, b={"w": torch.ones(4)}))
    assert (found[0].norm, found[1].norm, found[1].update, found[1].ratio) == (0.0, 2.0, 2.0, None)


def test_complex_values_count_by_their_magnitude() -> None:
    a, b = torch.tensor([3 + 4j, 1j]), torch.tensor([3 + 4j, 2 + 1j])
    found = steps(saved(a={"w": a}, b={"w": b}))
    assert (found[0].norm, found[1].update) == pytest.approx((26**0.5, 2.0))


def test_expanded_values_count_as_often_as_they_stand_there() -> None:
    a, b = (torch.full((1, 3), value).expand(1000, 3) for value in (1.0, 3.0))
    found = steps(saved(a={"w": a}, b={"w": b}))
    assert (found[1].norm, found[1].update, found[1].ratio) == pytest.approx((27000**0.5, 12000**0.5, 2.0))


def test_very_large_values_keep_their_norms() -> None:
    a, b = (torch.full((4,), value, dtype=torch.float64) for value in (1e200, 3e200))
    found = steps(saved(a={"w": a}, b={"w": b}))
    assert (found[1].norm, found[1].update, found[1].ratio) == pytest.approx((6e200, 4e200, 2.0))


def test_values_that_are_not_finite_are_counted_and_in_no_norm() -> None:
    nan, inf = float("nan"), float("inf")
    a, b = torch.tensor([3.0, 4.0, nan, 1.0, inf]), torch.tensor([3.0, 8.0, 1.0, inf, inf])
    found = steps(saved(a={"w": a}, b={"w": b}))
    assert [(step.nan, step.inf) for step in found] == [(1, 1), (0, 2)]
    assert found[0].norm == pytest.approx(26**0.5)
    assert (found[1].norm, found[1].update) == pytest.approx((74**0.5, 4.0))


def test_nan_in_gradients_is_said() -> None:
    files = saved(a={"model": {"w": torch.ones(2)}, "grad": {"w": torch.tensor([3.0, float("nan")])}})
    assert steps(files)[0].grad == 3.0
    assert remarks(files) == [("NaN or infinite in grad: 1",)]


def test_integers_are_left_out_beside_other_numbers_and_followed_alone() -> None:
    files = saved(a={**nn.BatchNorm1d(4).state_dict(), "num_batches_tracked": torch.tensor(1000)})
    assert steps(files)[0].norm == 2.0  # of four weights of 1; the running variances are no weights
    assert steps(files, "running_var")[0].norm == 2.0
    assert [step.path for step in steps(files, "*", each=True)] == ["weight", "bias"]
    assert steps(files, "num_batches_tracked")[0].norm == 1000


def test_integers_that_are_named_in_full_are_followed_beside_other_numbers() -> None:
    files = saved(a={"w": torch.tensor([3.0]), "n": torch.tensor(4), "m": torch.tensor(5)})
    assert [(step.path, step.norm) for step in steps(files, "*", "n", each=True)] == [("w", 3.0), ("n", 4.0)]
    assert steps(files, "w", "n")[0].norm == 5.0
    assert [survey(files, named, open).skipped for named in ([], ["*"], ["*", "n"], ["n", "m"])] == [
        (), ("n", "m"), ("m",), ()
    ]  # fmt: skip


def test_momentum_is_a_moment_and_the_optimizers_count_of_steps_is_none() -> None:
    net = nn.Linear(2, 1)
    files: list[str] = []
    for kind in (torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), torch.optim.Adam(net.parameters())):
        net(torch.ones(1, 2)).sum().backward()
        kind.step()
        files += saved(**{f"x{len(files)}": {"model": net.state_dict(), "optimizer": kind.state_dict()}})
    run, found = tracked(files)
    assert run.moments == ("exp_avg", "exp_avg_sq", "momentum_buffer")
    assert [sorted(k for k, v in one.steps[0].moments.items() if v is not None) for one in found] == [
        ["momentum_buffer"], ["exp_avg", "exp_avg_sq"],
    ]  # fmt: skip


def test_formats_mix_and_paths_are_those_in_the_model() -> None:
    weights = {"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2)}
    save_file({name: value + 1 for name, value in weights.items()}, "b.safetensors")
    found = steps([*saved(a={"model": weights, "lr": 0.1}), "b.safetensors"], "0.weight", each=True)
    assert [(step.path, step.norm, step.update, step.ratio) for step in found] == [
        ("0.weight", 2.0, None, None), ("0.weight", 4.0, 2.0, 1.0),
    ]  # fmt: skip


def test_a_tie_that_is_cut_is_no_new_param() -> None:
    w = torch.ones(4)
    files = saved(a={"x": w, "y": w}, b={"x": torch.ones(4), "y": torch.zeros(4)})
    found = steps(files)
    assert (found[0].norm, found[1].norm, found[1].update) == (2.0, 2.0, 2.0)
    assert remarks(files) == [(), ()]


def test_what_is_not_in_both_is_said_and_the_rest_compared() -> None:
    files = saved(
        a={"x": torch.ones(4), "old": torch.ones(2), "y": torch.ones(2)},
        b={"x": torch.full((4,), 2.0), "y": torch.ones(3), "new": torch.ones(1)},
    )
    found = steps(files)
    assert (found[1].update, found[1].ratio) == (2.0, 1.0)
    assert found[1].norm == pytest.approx(20**0.5)
    assert remarks(files) == [
        (),
        (
            "new: new; the update covers the others",
            "missing: old; the update covers the others",
            "of another shape: y; the update covers the others",
        ),
    ]


def test_what_has_no_values_is_left_out_with_the_reason() -> None:
    files = saved(a={"x": torch.ones(4), "m": torch.empty(2, device="meta")})
    assert steps(files)[0].norm == 2.0
    assert remarks(files) == [("left out: m (m is a meta tensor: no values are saved for it)",)]


def test_a_checkpoint_without_the_selection_has_an_empty_line() -> None:
    files = saved(a={"x": torch.ones(4)}, b={"y": torch.ones(4)}, c={"x": torch.full((4,), 3.0)})
    assert [(step.norm, step.update) for step in steps(files, "x")] == [(2.0, None), (None, None), (6.0, 4.0)]
    assert remarks(files, "x")[1] == ("no parameter or layer matches 'x': nothing to follow here",)


def test_damage_names_its_file() -> None:
    files = saved(a={"x": torch.ones(4)}, b={"x": torch.ones(4)})
    spot = record_of(Path("a.pt"), "data/0")
    data = bytearray(Path("a.pt").read_bytes())
    data[spot.payload] ^= 1
    Path("a.pt").write_bytes(data)
    assert refused(FormatError, lambda: steps(files)) == (
        "a.pt: storage 0 is corrupt: its bytes do not match their CRC-32"
    )


def test_two_checkpoints_are_open_at_a_time() -> None:
    files = saved(**{f"x{i}": {"x": torch.ones(4)} for i in range(8)})
    gc.collect()  # or files of earlier tests are closed meanwhile
    seen: list[int] = []

    def opening(file: str) -> Checkpoint:
        seen.append(len(list(Path("/proc/self/fd").iterdir())))
        return open(file)

    run = survey(files, [], opening)
    list(track(run, [], opening))
    assert max(seen) - min(seen) <= 2


def test_sparse_tensors_have_norms_but_are_not_compared() -> None:
    files = saved(a={"s": torch.eye(3).to_sparse(), "x": torch.ones(4)}, b={"s": torch.eye(3).to_sparse(), "x": torch.ones(4)})
    found = steps(files)
    assert [step.norm for step in found] == pytest.approx([7**0.5] * 2)
    assert found[1].update == 0.0
    assert found[1].mean == pytest.approx(7 / 13)
    assert remarks(files)[1] == ("left out: the update of s (a sparse_coo tensor of float32 is not compared)",)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_values_are_what_their_integers_stand_for() -> None:
    a, b = (torch.quantize_per_tensor(torch.tensor([3.0, value]), 0.5, 0, torch.qint8) for value in (4.0, 0.0))
    found = steps(saved(a={"q": a}, b={"q": b}))
    assert (found[0].norm, found[1].norm, found[1].update, found[1].ratio) == (5.0, 3.0, 4.0, 0.8)


def test_only_some_are_named_of_many_that_are_left_out() -> None:
    files = saved(a={"x": torch.ones(4), **{f"m{i}": torch.empty(2, device="meta") for i in range(7)}})
    assert [remark.partition(" (")[0] for remark in remarks(files)[0]] == [
        *(f"left out: m{i}" for i in range(5)), "left out: 2 more",
    ]  # fmt: skip


def test_norms_that_float64_cannot_hold_are_infinite_and_said_to_be() -> None:
    a, b = (torch.tensor([value, -value, 0.0, 1.0], dtype=torch.float64) for value in (1.7e308, -1.7e308))
    files = saved(a={"w": a, "b": torch.ones(2)}, b={"w": b, "b": torch.ones(2)})
    found = steps(files)
    assert (found[0].norm, found[1].norm, found[1].update, found[1].inf) == (math.inf, math.inf, math.inf, 0)
    assert found[1].ratio == pytest.approx(2.0)
    assert remarks(files) == [
        ("larger than float64 can hold, hence infinite: norm",),
        ("larger than float64 can hold, hence infinite: norm, update",),
    ]
    files = saved(a={"w": a[:1], "b": torch.ones(2)}, b={"w": b[:1], "b": torch.zeros(2)})
    step = steps(files, each=True)[2]
    assert (step.path, step.norm, step.update) == ("w", 1.7e308, math.inf)
    assert step.ratio == pytest.approx(2.0)
    assert remarks(files, "w")[1] == ("larger than float64 can hold, hence infinite: update",)


def test_complex_values_that_are_far_apart_have_a_ratio() -> None:
    a, b = (torch.tensor([complex(value, 0)], dtype=torch.complex128) for value in (1.7e308, -1.7e308))
    step = steps(saved(a={"w": a}, b={"w": b}))[1]
    assert (step.norm, step.update) == (1.7e308, math.inf)
    assert step.ratio == pytest.approx(2.0)


def test_infinite_values_are_not_taken_for_a_large_update() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([4.0, math.inf])
    files = saved(a={"w": a}, b={"w": b})
    step = steps(files)[1]
    assert (step.norm, step.update, step.inf) == (4.0, 3.0, 1)
    assert remarks(files)[1] == ()
