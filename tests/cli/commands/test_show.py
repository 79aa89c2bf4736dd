"""`paramctl show`: one or a few params in full."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Save a whole module, so that the file says everything there is to say."""
    monkeypatch.chdir(tmp_path)
    first = torch.nn.Linear(4, 2)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(2, 1))
    with torch.no_grad():
        first.weight.copy_(torch.arange(8.0).reshape(2, 4) / 4)
        first.bias.copy_(torch.tensor([float("nan"), -1.5]))
    torch.save(net, "net.pt")
    return "net.pt"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shared = torch.ones(3)
    state = {
        "epoch": 3,
        "model": {"0.w": shared, "1.w": shared, "0.part": shared[1:]},
        "grads": {"0.w": torch.zeros(3)},
        "optimizer": {
            "state": {0: {"exp_avg": torch.zeros(3)}, 1: {"exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
        },
    }
    torch.save(state, "trained.pt")
    return "trained.pt"


WEIGHT = """\
0.weight
  kind           parameter
  dtype          float32
  shape          2 × 4  (8 values, 32 B)
  stride         4, 1
  device         cpu
  requires_grad  yes
  layer          Linear(4 → 2)
  gradient       no gradient stored
  values
  [[0.  , 0.25, 0.5 , 0.75],
   [1.  , 1.25, 1.5 , 1.75]]
"""


def test_everything_about_a_parameter(run: Run, net: str) -> None:
    assert run("show", net, "0.weight") == (0, WEIGHT, "")
    assert run("show", net, "[0][0]") == (0, WEIGHT, "")


def test_an_index_shows_a_part_unchecked(run: Run, net: str) -> None:
    code, out, err = run("show", net, "0.weight[1, ::2]", "0.bias[1]")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if not line.startswith("  ") or "not verified" in line] == [
        "0.weight[1, ::2]",
        "  values         partial read: checksum not verified",
        "",
        "0.bias[1]",
        "  values         partial read: checksum not verified",
    ]
    assert "  [1. , 1.5]\n" in out and out.endswith("  -1.5\n")


def test_precision(run: Run, net: str) -> None:
    assert "  [[0.  , 0.2 , 0.5 , 0.8 ],\n" not in run("show", net, "0.weight", "-p", 1)[1]
    assert "  [[0. , 0.2, 0.5, 0.8],\n" in run("show", net, "0.weight", "-p", 1)[1]


TIED = """\
model.1.w
  kind           tensor
  dtype          float32
  shape          3  (3 values, 12 B)
  stride         1
  device         cpu
  requires_grad  no
  gradient       grads.0.w
  optimizer      exp_avg (optimizer.state.0.exp_avg)
  tied to        model.0.w
  overlaps       model.0.part
  values
  [1., 1., 1.]
"""


def test_gradients_moments_ties_and_overlaps(run: Run, trained: str) -> None:
    assert run("show", trained, "1.w") == (0, TIED, "")


def test_scalars(run: Run, trained: str) -> None:
    assert run("show", trained, "epoch") == (0, "epoch\n  kind           int\n  value          3\n", "")
    out = run("show", trained, "optimizer.param_groups")[1]
    assert out.startswith("optimizer.param_groups.0.lr\n  kind           float\n  value          0.1\n")
    assert json.loads(run("show", trained, "epoch", "--json")[1])["scalars"] == [{"path": "epoch", "value": 3}]


def test_a_layer_shows_every_param(run: Run, net: str) -> None:
    titles = [line for line in run("show", net, "0", "2")[1].splitlines() if line and not line.startswith(" ")]
    assert titles == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("0.wieght", 1, "no parameter or layer matches '0.wieght'; nearest: 0.weight, 2.weight"),
        ("0.wieght[0]", 1, "no parameter or layer matches '0.wieght'; nearest: 0.weight, 2.weight"),
        ("1", 1, "the layer '1' (ReLU) has no parameters"),
        ("0.weight[9]", 2, "index 9 is out of range for axis 0 of 0.weight (2 × 4)"),
        ("0.weight[0,0,0]", 2, "0.weight (2 × 4) has 2 axes, and the index [0, 0, 0] has 3"),
        (
            "0.weight[x]",
            2,
            "'x' in the index [x] is no index; use whole numbers, slices such as 0:5 or ::2, and '...'",
        ),
    ],
)
def test_errors(run: Run, net: str, path: str, code: int, message: str) -> None:
    assert run("show", net, path) == (code, "", f"paramctl: net.pt: {message}\n")


def test_nothing_is_printed_if_one_index_is_wrong(run: Run, net: str) -> None:
    assert run("show", net, "0.weight", "0.bias[7]")[:2] == (2, "")


def test_json(run: Run, net: str) -> None:
    code, out, err = run("show", net, "0.bias", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "schema": 1,
        "file": "net.pt",
        "tensors": [
            {
                "path": "0.bias",
                "kind": "parameter",
                "dtype": "float32",
                "shape": [2],
                "numel": 2,
                "nbytes": 8,
                "tied_to": None,
                "global_shape": None,
                "requires_grad": True,
                "stride": [1],
                "device": "cpu",
                "grad": None,
                "moments": {},
                "index": None,
                "values": ["NaN", -1.5],
                "preview": None,
            }
        ],
    }


def test_json_of_a_large_tensor_holds_its_edges(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"w": np.arange(1001, dtype=np.int64)}, file)
    tensor = json.loads(run("show", file, "w", "--json")[1])["tensors"][0]
    assert (tensor["values"], tensor["preview"]) == (None, [0, 1, 2, "...", 998, 999, 1000])
    tensor = json.loads(run("show", file, "w", "--json", "--full")[1])["tensors"][0]
    assert (tensor["values"], tensor["preview"]) == (list(range(1001)), None)
    tensor = json.loads(run("show", file, "w[1:3]", "--json")[1])["tensors"][0]
    assert (tensor["values"], tensor["index"], tensor["shape"]) == ([1, 2], "1:3", [1001])


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_every_kind(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {
        "bf16": torch.tensor([1.5, 2.25]).bfloat16(),
        "f8": torch.tensor([1.5, -0.25]).to(torch.float8_e4m3fn),
        "complex": torch.tensor([1 + 2j, -1j]),
        "half complex": torch.tensor([1 + 2j, -1j]).to(torch.complex32),
        "conj": torch.tensor([1 + 2j, -1j]).conj(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(1).expand(2000),
        "quantized": torch.quantize_per_channel(
            torch.ones(2, 2), torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.qint8
        ),
        "two in a byte": torch.tensor([1, 254], dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "bits": torch.tensor([1, 254], dtype=torch.uint8).view(torch.bits8),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(3, device="meta"),
    }
    torch.save(kinds, "kinds.pt")
    shown = {name: run("show", "kinds.pt", name)[1].split("  values")[1:] for name in kinds}
    assert shown == {
        "bf16": ["\n  [1.5 , 2.25]\n"],
        "f8": ["\n  [ 1.5 , -0.25]\n"],
        "complex": ["\n  [ 1.+2.j, -0.-1.j]\n"],
        "half complex": ["\n  [ 1.+2.j, -0.-1.j]\n"],
        "conj": ["\n  [ 1.-2.j, -0.+1.j]\n"],
        "bool": ["\n  [ True, False]\n"],
        "scalar": ["\n  7\n"],
        "empty": ["\n  []\n"],
        "expanded": ["         edges only, partial read: checksum not verified, --full for all\n  [1., 1., 1., ..., 1., 1., 1.]\n"],
        "quantized": [
            "\n  [[1., 1.],\n   [1., 1.]]\n  quantized.scales  float64  2\n",
            "\n  [0.5 , 0.25]\n  quantized.zero_points  int64  2\n",
            "\n  [0, 1]\n",
        ],
        "two in a byte": ["         raw bits\n  [  1, 254]\n"],
        "bits": ["         raw bits\n  [  1, 254]\n"],
        "sparse": [
            "         in its components:\n  sparse.indices  int64  2 × 2\n",
            "\n  [[0, 1],\n   [0, 1]]\n  sparse.values  float32  2\n",
            "\n  [1., 1.]\n",
        ],
        "meta": ["         none are saved in this file\n"],
    }
    assert "stride 0): edges only" in run("show", "kinds.pt", "expanded", "--full")[1]


QUANTIZED = """\
w
  kind           tensor
  dtype          quint8
  shape          2 × 3  (6 values, 6 B)
  layout         quantized
  quantizer      per_tensor_affine, scale 0.1, zero point 10
  stride         3, 1
  device         cpu
  requires_grad  no
  gradient       no gradient stored
  values
  [[ 0. ,  0.1,  0.2],
   [-0.3,  1.4, 24.5]]
"""

PER_CHANNEL = """\
  layout         quantized
  quantizer      per_channel_affine, axis 1
  stride         3, 1
  device         cpu
  requires_grad  no
  gradient       no gradient stored
  values
  [[0.5, 0.5, 0.5],
   [1. , 1. , 1. ]]
  c.scales  float64  3
  values
  [0.5  , 0.25 , 0.125]
  c.zero_points  int64  3
  values
  [0, 1, 2]
"""


@pytest.fixture
def quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once a process that these are deprecated
        whole = torch.tensor([[0.0, 0.1, 0.2], [-0.3, 1.4, 99.0]])
        scales, zero_points = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0, 1, 2])
        halves = torch.tensor([[0.5] * 3, [1.0] * 3])
        tensors = {
            "w": torch.quantize_per_tensor(whole, 0.1, 10, torch.quint8),
            "c": torch.quantize_per_channel(halves, scales, zero_points, 1, torch.qint8),
        }
        torch.save(tensors, "q.pt")
    return "q.pt"


def test_a_quantized_tensor_shows_what_it_stands_for(run: Run, quantized: str) -> None:
    assert run("show", quantized, "w") == (0, QUANTIZED, "")
    assert run("show", quantized, "c")[1].endswith(PER_CHANNEL)
    assert run("show", quantized, "c[1, -1]")[1].split("  values")[1].split("\n")[1] == "  1."


def test_json_of_a_quantized_tensor(run: Run, quantized: str) -> None:
    both = json.loads(run("show", quantized, "w[1, 1:]", "c", "--json")[1])["tensors"]
    assert [tensor["quantizer"] for tensor in both] == [
        {"scheme": "per_tensor_affine", "scale": 0.1, "zero_point": 10, "axis": None},
        {"scheme": "per_channel_affine", "scale": None, "zero_point": None, "axis": 1},
    ]
    np.testing.assert_array_equal(np.array(both[0]["values"], np.float32), np.array([1.4, 24.5], np.float32))
    assert [tensor["values"] for tensor in [both[1], *both[1]["components"]]] == [
        [[0.5] * 3, [1.0] * 3],
        [0.5, 0.25, 0.125],
        [0, 1, 2],
    ]


def test_npy_of_a_quantized_tensor(run: Run, quantized: str) -> None:
    note = "numpy has no quint8: written dequantized, as float32, which is what torch makes of it\n"
    assert run("show", quantized, "w", "--npy", "-o", "w.npy") == (0, "", note)
    expected = np.array([[0, 0.1, 0.2], [-0.3, 1.4, 24.5]], np.float32)
    written = np.load("w.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected, rtol=1e-6)
    unchecked = note + "partial read: checksum not verified\n"
    assert run("show", quantized, "w[1, ::-1]", "--npy", "-fo", "w.npy") == (0, "", unchecked)
    np.testing.assert_allclose(np.load("w.npy"), expected[1, ::-1], rtol=1e-6)


def test_npy_of_a_corrupt_quantized_tensor(run: Run, quantized: str) -> None:
    data = Path(quantized).read_bytes()
    at = data.index(bytes([10, 11, 12, 7, 24, 255]))
    Path(quantized).write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    code, out, err = run("show", quantized, "w", "--npy", "-o", "w.npy")
    assert (code, out) == (3, "") and "is corrupt: its bytes do not match their CRC-32" in err
    assert not Path("w.npy").exists()


def on_terminal(columns: int, *args: str) -> str:
    """Return what a command prints on a terminal of that width, without colours."""
    reader, terminal = pty.openpty()
    settings = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "paramctl", *args]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env={**settings, "PYTHONPATH": str(ROOT)}
    ) as process:
        os.close(terminal)
        out = b""
        with suppress(OSError):
            while data := os.read(reader, 65536):
                out += data
        os.close(reader)
        assert process.wait() == 0
    return out.decode().replace("\r\n", "\n")


ROWS_AT_80 = """\
  [[ 0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,
     0.25, -1.  ,  0.5 ,  0.25, -1.  ],
   [ 0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,
     0.25, -1.  ,  0.5 ,  0.25, -1.  ]]
"""
ROWS_AT_140 = """\
  [[ 0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ],
   [ 0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ,  0.5 ,  0.25, -1.  ]]
"""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "rows.safetensors"
    save_file({"w": np.tile(np.array([0.5, 0.25, -1], np.float32), (2, 5))}, file)
    return str(file)


def test_rows_fill_the_terminal(rows: str) -> None:
    assert on_terminal(80, "show", rows, "w").endswith(f"  values\n{ROWS_AT_80}")
    assert on_terminal(140, "show", rows, "w").endswith(f"  values\n{ROWS_AT_140}")


def test_a_pipe_has_one_width(spawn: Spawn, rows: str) -> None:
    for columns in ("80", "140", "20"):
        out = spawn("show", rows, "w", env={"COLUMNS": columns}).stdout.decode()
        assert out.endswith(f"  values\n{ROWS_AT_80}")


def test_precision_0_and_scientific(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": np.array([0.5, 1.5, 20.25]), "b": np.array([1e30, 1.234567, -2.5])}, file)
    shown = {
        (name, n): run("show", file, name, "--precision", n)[1].splitlines()[-1]
        for name in ("a", "b")
        for n in (0, 2, 12)
    }
    assert shown == {
        ("a", 0): "  [ 0.,  2., 20.]",
        ("a", 2): "  [ 0.5 ,  1.5 , 20.25]",
        ("a", 12): "  [ 0.5 ,  1.5 , 20.25]",
        ("b", 0): "  [ 1.e+30,  1.e+00, -2.e+00]",
        ("b", 2): "  [ 1.00e+30,  1.23e+00, -2.50e+00]",
        ("b", 12): "  [ 1.000000e+30,  1.234567e+00, -2.500000e+00]",
    }


@pytest.fixture
def long(tmp_path: Path) -> str:
    """Save more than a pipe holds."""
    values = np.arange(300_000, dtype=np.float32).reshape(-1, 3) / 8
    values[-1, -1] = -1
    file = tmp_path / "long.safetensors"
    save_file({"w": values}, file)
    return str(file)


def test_all_of_a_long_one_is_as_wide_as_its_last(run: Run, long: str) -> None:
    lines = run("show", long, "w", "--full")[1].splitlines()
    assert len(lines) == 100_009
    assert lines[9] == "  [[ 0.0000e+00,  1.2500e-01,  2.5000e-01],"
    assert lines[-1] == "   [ 3.7500e+04,  3.7500e+04, -1.0000e+00]]"


def test_whoever_has_read_enough_is_told_nothing(long: str) -> None:
    with started("show", long, "w", "--full") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"w\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_an_interrupt_ends_it(long: str) -> None:
    with started("show", long, "w", "--full") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"w\n"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b"paramctl: interrupted\n"
    assert process.returncode == 130


def started(*args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "paramctl", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_hostile_names_are_escaped(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a\x1b[31m\n[red]": np.zeros(1, np.float32)}, file)
    code, out, _ = run("show", file, "a\x1b[31m\n[red]")
    assert code == 0 and out.splitlines()[0] == r"a\x1b[31m\n[red]"


def test_npy_to_a_file(run: Run, net: str) -> None:
    assert run("show", net, "0.weight", "--npy", "-o", "w.npy") == (0, "", "")
    np.testing.assert_array_equal(np.load("w.npy"), np.arange(8, dtype=np.float32).reshape(2, 4) / 4)
    exists = "paramctl: w.npy: exists already; add -f to replace it\n"
    assert run("show", net, "0.bias", "--npy", "-o", "w.npy") == (2, "", exists)
    assert run("show", net, "0.weight[:, 1]", "--npy", "-f", "-o", "w.npy")[0] == 0
    np.testing.assert_array_equal(np.load("w.npy"), np.array([0.25, 1.25], np.float32))


def test_npy_down_a_pipe(spawn: Spawn, net: str) -> None:
    for out in ([], ["-o", "-"]):
        done = spawn("show", net, "0.bias", "--npy", *out)
        assert (done.returncode, done.stderr) == (0, b"")
        np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout)), np.array([np.nan, -1.5], np.float32))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_npy_of_what_numpy_has_no_dtype_for(run: Run, tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).normal(size=(500, 700)).astype(getattr(ml_dtypes, name))
    file, out = tmp_path / "x.pt", tmp_path / "w.npy"
    torch.save({"w": torch.from_numpy(values.astype(np.float32)).to(getattr(torch, name))}, file)
    note = f"numpy has no {name}: written as float32, which holds every value of it\n"
    assert run("show", file, "w", "--npy", "-o", out) == (0, "", note)
    np.testing.assert_array_equal(np.load(out), values.astype(np.float32))


@pytest.mark.filterwarnings("ignore:ComplexHalf")  # torch says once a process that it is experimental
def test_npy_of_views(run: Run, tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    file, out = tmp_path / "x.pt", tmp_path / "w.npy"
    views = {"t": base.t(), "half": base[1:, ::2].bfloat16(), "c": torch.tensor([1 + 2j]).to(torch.complex32)}
    torch.save({**views, "e": torch.ones(1).expand(1 << 30)}, file)
    for name, dtype in (("t", torch.float32), ("half", torch.float32), ("c", torch.complex64)):
        assert run("show", file, name, "--npy", "-fo", out)[0] == 0
        np.testing.assert_array_equal(np.load(out), views[name].to(dtype).numpy())
    code, _, err = run("show", file, "e", "--npy", "-fo", out)
    what = "e repeats 4 bytes over 1,073,741,824 values (stride 0); name a part of it"
    assert (code, err) == (2, f"paramctl: {file}: {what}\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["0", "--npy"], "net.pt: a .npy file holds one tensor, and 2 entries were named; name one tensor"),
        (["0.bias", "-o", "w.npy"], "-o and -f go with --npy; add --npy, or use '>' for text"),
        (["0.bias", "--npy", "--json"], "--json and --npy exclude one another; give one of them"),
    ],
)
def test_usage(run: Run, net: str, args: list[str], message: str) -> None:
    assert run("show", net, *args) == (2, "", f"paramctl: {message}\n")


def test_a_corrupt_storage_is_not_shown(run: Run, net: str) -> None:
    data = Path(net).read_bytes()
    at = data.index(np.float32(1.75).tobytes())
    Path(net).write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    code, out, err = run("show", net, "0.weight")
    assert (code, out) == (3, "") and "is corrupt: its bytes do not match their CRC-32" in err
    assert run("show", net, "0.weight[0]")[0] == 0


NAMES = {"@at": 0, "!no": 1, "re:x": 2}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_looks_like_a_selection(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({key: torch.full((2, 2), float(n)) for key, n in NAMES.items()}, path)
    for text, index in ((name, None), (f"{name}[0,0]", "0, 0"), (f"{name}[0]", "0")):
        code, out, err = run("show", path, text, "--json")
        assert (code, err) == (0, "")
        (found,) = json.loads(out)["tensors"]
        assert (found["path"], found["index"]) == (name, index)
    assert run("show", path, f"{name}[5,0]") == (
        2,
        "",
        f"paramctl: {path}: index 5 is out of range for axis 0 of {name} (2 × 2)\n",
    )


def test_the_empty_path(run: Run, tmp_path: Path) -> None:
    bare, named = tmp_path / "bare.pt", tmp_path / "named.pt"
    torch.save(torch.zeros(2, 3), bare)
    torch.save({"a": torch.zeros(2)}, named)
    assert run("show", bare, "") == run("show", bare, ".")
    assert run("show", bare, "")[1].startswith(".\n  kind ")
    assert run("show", named, "") == (
        1,
        "",
        f"paramctl: {named}: the empty path names a tensor that has no name, and this file has none; "
        "'paramctl ls' lists what it has\n",
    )
