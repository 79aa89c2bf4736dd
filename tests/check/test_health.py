"""Health: what no trained model holds is found, and what healthy ones hold is not called sick."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import file_of, listing, record_of, records, rezipped
from safetensors.torch import save_file
from torch import nn

from paramctl.check.health import health
from paramctl.findings import Finding, Level

NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# torch makes no numbers of some small dtypes: their bits are given
NAN_BITS = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E, "float8_e4m3fnuz": 0x80, "float8_e5m2fnuz": 0x80}


@pytest.fixture
def found(tmp_path: Path) -> Callable[[object], list[Finding]]:
    """Return a function that checks an object that torch saves."""

    def call(obj: object) -> list[Finding]:
        torch.save(obj, tmp_path / "x.pt")
        return list(health(listing(tmp_path / "x.pt")))

    return call


Found = Callable[[object], list[Finding]]


def odd(rule: str, path: str, what: str, level: Level = "warning") -> Finding:
    return Finding(level, "health", rule, path, what)


def spread(*shape: int) -> torch.Tensor:
    """Return values of which none is zero."""
    return torch.linspace(1, 2, math.prod(shape)).reshape(shape)


def through_views(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Return the same values as they are, transposed in memory, and as a slice of a wider tensor."""
    wide = torch.ones(tensor.shape[0], tensor.shape[1] + 3, dtype=tensor.dtype)
    wide[:, 2:-1] = tensor
    yield from (tensor.clone(), tensor.t().clone(memory_format=torch.contiguous_format).t(), wide[:, 2:-1])


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64, torch.complex128], ids=str)
def test_nan(found: Found, dtype: torch.dtype) -> None:
    for value in through_views(spread(4, 3).to(dtype)):
        value[1, 2] = NAN
        assert found({"w": value}) == [odd("nan", "w", "1 of 12 values is NaN")]
        value[3] = NAN
        assert found({"w": value}) == [odd("nan", "w", "4 of 12 values are NaN")]


@pytest.mark.parametrize("name, bits", NAN_BITS.items())
def test_nan_in_eight_bits(found: Found, name: str, bits: int) -> None:
    value = torch.full((5,), 0x38, dtype=torch.uint8)
    value[2] = bits
    assert found({"w": value.view(getattr(torch, name))}) == [odd("nan", "w", "1 of 5 values is NaN")]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64, torch.complex128], ids=str)
def test_infinities(found: Found, dtype: torch.dtype) -> None:
    for value in through_views(spread(4, 3).to(dtype)):
        value[1, 2], value[0, 0] = INF, -INF
        assert found({"w": value}) == [odd("infinite", "w", "2 of 12 values are infinite")]


def test_both(found: Found) -> None:
    assert found({"w": torch.tensor([NAN, INF, 1, 2])}) == [
        odd("nan", "w", "1 of 4 values is NaN"),
        odd("infinite", "w", "1 of 4 values is infinite"),
    ]


def test_a_causal_mask_is_worth_a_note(found: Found) -> None:
    mask = torch.full((3, 3), -INF).triu(1)
    what = "3 of 9 values are infinite, and all others are zero: a mask?"
    assert found({"attn.mask": mask}) == [odd("infinite", "attn.mask", what, "note")]
    assert found({"attn.weight": mask}) == [odd("infinite", "attn.weight", "3 of 9 values are infinite")]
    assert found({"attn.weight": mask - INF}) == [
        odd("infinite", "attn.weight", "9 of 9 values are infinite"),
    ]


def test_a_best_score_before_the_first(found: Found) -> None:
    what = "is infinite, like a best score before training"
    assert found({"best": torch.tensor(INF)}) == [odd("infinite", "best", what, "note")]
    assert found({"best": torch.tensor(NAN)}) == [odd("nan", "best", "is NaN")]


def test_expanded_values_count_each_time(found: Found) -> None:
    value = torch.tensor([1.0, NAN]).expand(1000, 2)
    assert found({"w": value}) == [odd("nan", "w", "1,000 of 2,000 values are NaN")]


def test_nested_and_in_optimizer_state(found: Found) -> None:
    moments = {"exp_avg": torch.tensor([NAN, 1]), "exp_avg_sq": torch.tensor([1e-44, 1e-44])}
    state = {"a": [{"b": torch.tensor([INF, 1])}], "optimizer": {"state": {0: moments}, "param_groups": [{"params": [0]}]}}
    assert found(state) == [
        odd("infinite", "a.0.b", "1 of 2 values is infinite"),
        odd("nan", "optimizer.state.0.exp_avg", "1 of 2 values is NaN"),
    ]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_in_sparse_values(found: Found) -> None:
    dense = torch.tensor([[0, NAN], [1, 0]])
    assert found({"s": dense.to_sparse()}) == [odd("nan", "s.values", "1 of 2 values is NaN")]
    assert found({"s": dense.to_sparse_csr()}) == [odd("nan", "s.values", "1 of 2 values is NaN")]


def test_tied_it_is_told_once(found: Found) -> None:
    weight = torch.tensor([[NAN, 1.0], [2.0, 3.0]])
    assert found({"a.weight": weight, "b.weight": weight}) == [odd("nan", "a.weight", "1 of 4 values is NaN")]


def test_another_byte_order(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.0, 2.0])}, tmp_path / "x.pt")
    swapped = {**records(tmp_path / "x.pt"), "x/byteorder": b"big", "x/data/0": b"\x7f\xc0\0\0\x3f\x80\0\0"}
    path = rezipped(tmp_path / "y.pt", swapped)
    assert list(health(listing(path))) == [odd("nan", "w", "1 of 2 values is NaN")]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_denormals(found: Found, dtype: torch.dtype) -> None:
    small = torch.finfo(dtype).tiny / 2
    what = f"3 of 20 values are denormal: too small for the full precision of {str(dtype)[6:]}"
    for value in through_views(spread(5, 4).to(dtype)):
        value[0, :2] = small
        assert found({"weight": value}) == []
        value[1, 1] = -small
        assert found({"weight": value}) == [odd("denormal", "weight", what)]


def test_a_bias_in_float16_may_be_that_small(found: Found) -> None:
    assert found({"bias": torch.full((9,), 1e-6).half()}) == []
    what = "9 of 9 values are denormal: too small for the full precision of bfloat16"
    assert found({"bias": torch.full((9,), 1e-39).bfloat16()}) == [odd("denormal", "bias", what)]


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_statistics_of_dead_channels_fade(found: Found, name: str) -> None:
    what = (
        "1 of 4 values is denormal: too small for the full precision of float32, "
        "as is usual for statistics of channels that are always zero"
    )
    value = torch.tensor([1e-41, 1, 2, 3])
    assert found({f"bn.{name}": value}) == [odd("denormal", f"bn.{name}", what, "note")]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_all_zero(found: Found, dtype: torch.dtype) -> None:
    for value in through_views(torch.zeros(4, 3).to(dtype)):
        assert found({"a.weight": value}) == [odd("all-zero", "a.weight", "all 12 weights are zero")]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_constant(found: Found, dtype: torch.dtype) -> None:
    for value in through_views(torch.full((4, 3), 0.5).to(dtype)):
        assert found({"a.weight": value}) == [odd("constant", "a.weight", "all 12 weights are the same")]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64], ids=str)
def test_dead_rows(found: Found, dtype: torch.dtype) -> None:
    for value in through_views(spread(9, 3).to(dtype)):
        value[4] = -0.0
        assert found({"fc.weight": value}) == [odd("dead-rows", "fc.weight", "1 of 9 rows is all zero (4)")]
        value[[1, 2, 8]] = 0
        what = "4 of 9 rows are all zero (1, 2, 4, …)"
        assert found({"fc.weight": value}) == [odd("dead-rows", "fc.weight", what)]


def test_dead_rows_of_a_large_weight(found: Found) -> None:
    value = torch.ones(1000, 500)
    value[0, 0] = 2
    value[998] = 0
    assert found({"fc.weight": value}) == [odd("dead-rows", "fc.weight", "1 of 1,000 rows is all zero (998)")]
    assert found({"fc.weight": value.t()}) == []


def test_dead_filters(found: Found) -> None:
    kernel = spread(200, 2, 3)
    kernel[7] = 0
    what = "1 of 200 rows is all zero (7), as is usual in fixed transforms"
    assert found({"conv.weight": kernel}) == [odd("dead-rows", "conv.weight", what, "note")]
    kernel[:50] = 0
    what = "50 of 200 rows are all zero (0, 1, 2, …)"
    assert found({"conv.weight": kernel}) == [odd("dead-rows", "conv.weight", what)]


@pytest.mark.parametrize("dead", [[0], [3], [7, 8, 9]])
def test_padding_rows_of_an_embedding(found: Found, dead: list[int]) -> None:
    value = spread(10, 4)
    value[dead] = 0
    (finding,) = found({"embed.weight": value})
    assert finding[:4] == ("note", "health", "dead-rows", "embed.weight") and finding.what.endswith(": padding?")
    value[[4, 6]] = 0
    assert [finding.level for finding in found({"embed.weight": value})] == ["warning"]


def test_a_weight_tied_twice_is_told_once(found: Found) -> None:
    weight = torch.zeros(3, 3)
    assert found({"a.weight": weight, "b.weight": weight, "c.weight": weight}) == [
        odd("all-zero", "a.weight", "all 9 weights are zero")
    ]


def test_parameters_are_weights_whatever_they_are_called(found: Found) -> None:
    assert found({"table": nn.Parameter(torch.zeros(3, 3))}) == [odd("all-zero", "table", "all 9 weights are zero")]
    assert found({"table": torch.zeros(3, 3)}) == []


def test_in_safetensors(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 2), "a.kernel": torch.full((2, 2), 3.0)}, tmp_path / "x.safetensors")
    assert list(health(listing(tmp_path / "x.safetensors"))) == [
        odd("constant", "a.kernel", "all 4 weights are the same"),
        odd("all-zero", "a.weight", "all 4 weights are zero"),
    ]


def levels(findings: list[Finding]) -> set[str]:
    return {finding.level for finding in findings}


def sinusoids(n: int, d: int) -> torch.Tensor:
    angles = torch.arange(n)[:, None] / 10_000 ** (torch.arange(0, d, 2) / d)
    return torch.cat([angles.sin(), angles.cos()], 1)


HEALTHY: dict[str, object] = {
    "zero biases": {"a.bias": torch.zeros(5), "a.weight": spread(5, 2), "b_bias": nn.Parameter(torch.zeros(2, 2))},
    "norms": nn.BatchNorm2d(4).state_dict(),
    "sinusoids": {"pos.weight": sinusoids(8, 4), "pos": sinusoids(8, 4)},
    "integers": {"weight": torch.zeros(3, 3, dtype=torch.int64), "mask": torch.zeros(3, 3, dtype=torch.int8)},
    "flags": {"weight": torch.zeros(3, 3, dtype=torch.bool)},
    "empty": {"weight": torch.zeros(0, 3), "a.weight": torch.zeros(3, 0), "b": torch.zeros(0)},
    "scalars": {"scale": torch.tensor(1.0), "weight": torch.zeros(1, 1)},
    "a bit of zero": {"weight": torch.eye(4)},
    "columns of zeros": {"weight": torch.tensor([[0.0, 1], [0, 2]])},
    "a meta tensor": {"weight": torch.zeros(3, 3, device="meta")},
    "an expanded one": {"weight": torch.zeros(1).expand(3, 3)},
    "gradients": {"model": {"weight": spread(2, 2)}, "grad": {"weight": torch.zeros(2, 2)}},
}


@pytest.mark.parametrize("obj", HEALTHY.values(), ids=HEALTHY)
def test_healthy(found: Found, obj: object) -> None:
    assert found(obj) == []


def test_a_lora_that_was_never_trained(found: Found) -> None:
    state = {"q_proj.lora_A.weight": spread(2, 8), "q_proj.lora_B.weight": torch.zeros(8, 2)}
    what = "all 16 weights are zero, like those of an untrained LoRA"
    assert found(state) == [odd("all-zero", "q_proj.lora_B.weight", what, "note")]


def test_an_optimizer_that_has_just_begun(found: Found) -> None:
    net = nn.Linear(3, 3)
    adam = torch.optim.Adam(net.parameters())
    net(torch.zeros(1, 3)).sum().backward()
    adam.step()
    assert found({"model": net.state_dict(), "optimizer": adam.state_dict()}) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_quantised_model(found: Found) -> None:
    weight = torch.quantize_per_channel(spread(3, 4), torch.ones(3), torch.zeros(3), 0, torch.qint8)
    plain = torch.quantize_per_tensor(torch.zeros(3, 4), 1.0, 0, torch.qint8)
    assert found({"a.weight": weight, "b.weight": plain}) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_scales_that_are_no_numbers(found: Found) -> None:
    whole = torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)
    scales = torch.tensor([1.0, NAN, 1.0], dtype=torch.float64)
    channels = torch.quantize_per_channel(spread(3, 4), torch.ones(3), torch.zeros(3), 0, torch.qint8)
    odd_one = torch._make_per_tensor_quantized_tensor(whole.int_repr(), INF, 0)
    odd_ones = torch._make_per_channel_quantized_tensor(channels.int_repr(), scales, torch.zeros(3, dtype=torch.int64), 0)
    assert found({"a": odd_one, "b": odd_ones}) == [
        odd("nan", "a", "has the scale inf, so its values are not numbers"),
        odd("nan", "b.scales", "1 of 3 values is NaN"),
    ]


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "AdaptiveLogSoftmaxWithLoss": (8, 20, [5, 10]),
    "Bilinear": (3, 4, 5),
    "CrossMapLRN2d": (2,),
    "Embedding": (10, 4, 0),
    "EmbeddingBag": (10, 4),
    "GroupNorm": (2, 4),
    "LayerNorm": ((4, 4),),
    "LocalResponseNorm": (2,),
    "MultiheadAttention": (8, 2),
    "RMSNorm": ((4, 4),),
    "Transformer": (8, 2, 1, 1, 16),
    "TransformerDecoderLayer": (8, 2, 16),
    "TransformerEncoderLayer": (8, 2, 16),
}
SHAPES = ((), (4,), (4, 3), (2, 3, 3))


def zoo() -> Iterator[nn.Module]:
    """Return a module of every class of torch.nn that has parameters or buffers."""
    for name, cls in sorted(vars(nn).items()):
        if isinstance(cls, type) and issubclass(cls, nn.Module) and name not in ("Module", "Container"):
            made = next(_made(cls, ARGUMENTS.get(name)), None)
            if made is not None and made.state_dict():
                yield made


def _made(cls: type[nn.Module], arguments: tuple[Any, ...] | None) -> Iterator[nn.Module]:
    for args in SHAPES if arguments is None else (arguments,):
        try:
            yield cls(*args)
        except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError):
            continue


@pytest.mark.filterwarnings("ignore")
def test_every_fresh_layer_of_torch(found: Found) -> None:
    made = [module for module in zoo() if not any(nn.parameter.is_lazy(param) for param in module.parameters())]
    assert len(made) >= 30
    net = nn.ModuleDict({type(module).__name__: module for module in made})
    for obj in (net, net.state_dict(), *(nn.Sequential(module).state_dict() for module in made)):
        assert levels(found(obj)) <= {"note"}, found(obj)


def test_a_wrong_checksum_is_found_while_reading(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "v": torch.tensor([NAN])}, tmp_path / "x.pt")
    spot = record_of(tmp_path / "x.pt", "data/0")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[spot.payload] ^= 1
    path = file_of(tmp_path, bytes(data), "y.pt")
    what = "storage 0 is corrupt: its bytes do not match their CRC-32"
    nan = odd("nan", "v", "is NaN")
    assert list(health(listing(path))) == [Finding("error", "integrity", "checksum", "w", what), nan]
    assert list(health(listing(path), damaged={"0"})) == [nan]
    assert list(health(listing(path), trust=True)) == [nan]


def test_a_storage_that_is_read_too_often(found: Found) -> None:
    line = spread(1 << 17)
    findings = found({f"{i}.weight": line[i : i + (1 << 16)] for i in range(600)})
    what = "was not checked: {} lies in a storage that was read 64 times over for others"
    assert findings[0] == odd("unread", findings[0].path or "", what.format(findings[0].path))
    assert {finding.rule for finding in findings} == {"unread"}
