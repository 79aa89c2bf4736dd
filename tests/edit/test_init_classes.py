"""What a layer becomes depends on its class, by its qualified name: torch's own layers, and those of others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paramctl.check.check import check
from paramctl.edit.init import init
from paramctl.errors import NoMatch, Unsupported
from paramctl.files.targets import NewFile
from paramctl.formats import opening, saving

FRESH = 12  # instances of a module whose own values are the reference
MODULES: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(96, 64),
    "Bilinear": lambda: nn.Bilinear(24, 16, 12),
    "Conv1d": lambda: nn.Conv1d(16, 24, 5),
    "Conv2d": lambda: nn.Conv2d(16, 24, 3, groups=4),
    "Conv3d": lambda: nn.Conv3d(8, 12, 2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(16, 24, 5),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(16, 24, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(8, 12, 2),
    "Embedding": lambda: nn.Embedding(64, 32, padding_idx=3),
    "EmbeddingBag": lambda: nn.EmbeddingBag(64, 32),
    "LSTM": lambda: nn.LSTM(24, 32, 2, bidirectional=True),
    "LSTM with projections": lambda: nn.LSTM(24, 32, proj_size=12),
    "GRU": lambda: nn.GRU(24, 32),
    "RNN": lambda: nn.RNN(24, 32),
    "LSTMCell": lambda: nn.LSTMCell(24, 32),
    "GRUCell": lambda: nn.GRUCell(24, 32),
    "RNNCell": lambda: nn.RNNCell(24, 32),
    "MultiheadAttention": lambda: nn.MultiheadAttention(48, 4, add_bias_kv=True),
    "MultiheadAttention of other sizes": lambda: nn.MultiheadAttention(48, 4, kdim=24, vdim=32),
    "PReLU": lambda: nn.PReLU(5),
    "BatchNorm2d": lambda: nn.BatchNorm2d(9),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(9),
    "GroupNorm": lambda: nn.GroupNorm(3, 9),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(9, affine=True, track_running_stats=True),
    "LayerNorm": lambda: nn.LayerNorm(9),
    "LayerNorm of 2 dimensions": lambda: nn.LayerNorm([8, 9]),
    "LayerNorm of 3 dimensions": lambda: nn.LayerNorm([2, 8, 9]),
    "RMSNorm": lambda: nn.RMSNorm([8, 9]),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(48, 4, 64),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(48, 4, 64),
    "Transformer": lambda: nn.Transformer(48, 4, 1, 1, 64),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(32, 100, [20, 60]),
}


def reset(
    module: nn.Module, folder: Path, *, whole: bool = True, scheme: str = "torch-default", seed: int = 1
) -> nn.Module:
    """Fill a module with a number, let init draw it anew, and return it."""
    for tensor in module.state_dict().values():
        tensor.fill_(7)
    torch.save(module if whole else module.state_dict(), folder / "x.pt")
    edited = init(opening.open(str(folder / "x.pt")), (), [scheme], seed=seed).checkpoint
    saving.save(edited, NewFile(folder / "y.pt", True))
    if whole:
        made: nn.Module = torch.load(folder / "y.pt", weights_only=False)
        return made
    module.load_state_dict(torch.load(folder / "y.pt"))
    return module


def moments(tensors: list[torch.Tensor]) -> tuple[float, float, float]:
    """Return mean, standard deviation and largest magnitude."""
    values = torch.cat([tensor.double().reshape(-1) for tensor in tensors])
    return values.mean().item(), values.std().item() if len(values) > 1 else 0.0, values.abs().max().item()


def assert_alike(made: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Hold the values of each param to those that torch gives it."""
    fresh = [make().state_dict() for _ in range(FRESH)]
    for name, tensor in made.state_dict().items():
        mean, std, largest = moments([state[name] for state in fresh])
        ours = moments([tensor])
        if std < 1e-12:
            assert tensor.double().eq(mean).all(), name
            continue
        spread = 6 * std / tensor.numel() ** 0.5
        assert abs(ours[0] - mean) <= spread + 6 * std / (FRESH * tensor.numel()) ** 0.5, name
        assert abs(ours[1] - std) <= spread + 1e-9, name
        assert ours[2] <= largest * 1.5, name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_becomes_as_torch_makes_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_alike(reset(MODULES[name](), tmp_path), MODULES[name])


@pytest.mark.parametrize("name", ["MultiheadAttention", "MultiheadAttention of other sizes"])
def test_attention_without_classes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_alike(reset(MODULES[name](), tmp_path, whole=False), MODULES[name])


class NormedLinear(nn.Linear):
    """A class of somebody else whose name contains `Norm`."""


class ConvNormAct(nn.Conv2d):
    """Another."""


class LayerNorm(nn.Module):
    """A class under a name of torch's, with a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32, 48))
        self.bias = nn.Parameter(torch.zeros(32))


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "NormedLinear": lambda: NormedLinear(48, 32),
    "ConvNormAct": lambda: ConvNormAct(8, 16, 3),
    "LayerNorm": LayerNorm,
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("scheme", ["torch-default", "xavier_normal"])
def test_roles_decide_for_a_class_of_somebody_else(name: str, scheme: str, tmp_path: Path) -> None:
    made = reset(FOREIGN[name](), tmp_path, scheme=scheme)
    weight, fans = made.weight, (48, 80) if name != "ConvNormAct" else (72, 216)
    assert isinstance(weight, torch.Tensor)
    expected = (1 / (3 * fans[0])) ** 0.5 if scheme == "torch-default" else (2 / fans[1]) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("shape", [(9,), (8, 9), (2, 3, 4)])
def test_a_scheme_for_matrices_on_a_normalisation_alone(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(shape)), tmp_path / "x.pt")
    edit = init(opening.open(str(tmp_path / "x.pt")), ["1"], ["xavier"], seed=1)
    assert [(change.path, change.how) for change in edit.changed] == [("1.weight", "ones"), ("1.bias", "zeros")]
    edit = init(opening.open(str(tmp_path / "x.pt")), ["1"], ["constant:3"], seed=1)
    assert [change.how for change in edit.changed] == ["constant:3", "constant:3"]


# --- weight normalisation


def normed(make: Callable[[], nn.Module], old: bool, dim: int | None) -> nn.Module:
    """Return a module under weight normalisation, of either kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrap: Any = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
        made: nn.Module = wrap(make(), dim=dim)
        return made


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 48), lambda: nn.Conv1d(16, 24, 3)], ids=["Linear", "Conv1d"])
def test_under_weight_norm_the_effective_weight_is_what_the_scheme_says(
    make: Callable[[], nn.Module], dtype: torch.dtype, dim: int | None, old: bool, tmp_path: Path
) -> None:
    module = normed(make, old, dim).to(dtype)
    made = reset(module, tmp_path, whole=False, scheme="normal:std=0.02")
    state = made.state_dict()
    direction = next(tensor for name, tensor in state.items() if name.endswith(("_v", "original1")))
    magnitude = next(tensor for name, tensor in state.items() if name.endswith(("_g", "original0")))
    axes = [i for i, n in enumerate(magnitude.shape) if n == 1] or list(range(direction.dim()))
    norm = direction.double().pow(2).sum(axes, keepdim=True).sqrt().reshape(magnitude.shape)
    assert torch.allclose(magnitude.double(), norm, rtol=1e-6 if dtype is torch.float32 else 4e-3)
    weight = direction.double() * (magnitude.double() / norm)
    assert weight.std().item() == pytest.approx(0.02, rel=0.06)
    zero = reset(module, tmp_path, whole=False, scheme="zeros").state_dict()
    assert next(tensor for name, tensor in zero.items() if name.endswith(("_g", "original0"))).eq(0).all()
    assert next(tensor for name, tensor in zero.items() if name.endswith(("_v", "original1"))).ne(0).all()


def test_a_magnitude_named_by_its_path_gets_the_scheme(tmp_path: Path) -> None:
    torch.save({"0.weight_g": torch.ones(4, 1), "0.weight_v": torch.ones(4, 3)}, tmp_path / "x.pt")
    checkpoint = opening.open(str(tmp_path / "x.pt"))
    edit = init(checkpoint, ["0.weight_g"], ["constant:2"], seed=1)
    assert [(change.path, change.how) for change in edit.changed] == [("0.weight_g", "constant:2")]
    edit = init(checkpoint, ["0.weight_v"], ["constant:2"], seed=1)
    assert [change.path for change in edit.changed] == ["0.weight_v"]


# --- causal masks


@pytest.mark.parametrize("name", ["h.0.attn.bias", "gpt_neox.layers.0.attention.bias", "h.0.attn.masked_bias"])
@pytest.mark.parametrize("scheme", ["torch-default", "normal:std=0.02"])
def test_a_causal_mask_is_kept(name: str, scheme: str, tmp_path: Path) -> None:
    mask = torch.ones(1, 1, 6, 6).tril()
    torch.save({name: mask, f"{name.rpartition('.')[0]}.c_attn.weight": torch.zeros(12, 4)}, tmp_path / "x.pt")
    edit = init(opening.open(str(tmp_path / "x.pt")), (), [scheme], seed=1)
    assert [(kept.path, kept.why) for kept in edit.kept] == [(name, "a causal mask is not learnt")]
    assert len(edit.changed) == 1


# --- what cannot be listed or drawn


@pytest.mark.filterwarnings("ignore")
def test_a_dynamically_quantized_module_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    quantize: Any = torch.ao.quantization.quantize_dynamic
    quantized = quantize(plain, {nn.Linear}, dtype=torch.qint8)
    for old in (False, True):
        torch.save(quantized, tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
        with pytest.raises(Unsupported, match="_packed_params"):
            opening.open(str(tmp_path / "x.pt"))
        assert [finding.rule for finding in check(str(tmp_path / "x.pt")).findings if finding.level == "warning"] == ["not-read"]
    torch.save(quantized.state_dict(), tmp_path / "x.pt")
    assert len(opening.open(str(tmp_path / "x.pt")).params) == 4


def test_nothing_that_can_be_drawn_is_a_negative_answer(tmp_path: Path) -> None:
    torch.save({"steps": torch.tensor([1, 2]), "table": torch.tensor([[3]])}, tmp_path / "x.pt")
    with pytest.raises(NoMatch, match=r"nothing can be drawn: steps: int64 values are not weights, table: "):
        init(opening.open(str(tmp_path / "x.pt")), (), ["torch-default"], seed=1)
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(NoMatch, match="nothing can be drawn: there are no parameters"):
        init(opening.open(str(tmp_path / "x.pt")), (), ["xavier"], seed=1)
