"""TorchScript archives: listed as state_dict() of the loaded module is, edited so that torch.jit.load agrees."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers import changed_bytes, listing, raw, record_of, records, refused, rezipped, save, streamed, sums_hold, ties
from torch import nn

from paramctl.check.check import check
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files import targets
from paramctl.formats import registry, saving
from paramctl.formats.programs.script_source import ScriptClass, classes
from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.values.arrays import read_values
from paramctl.values.quantized import dequantized

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Lite Interpreter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*will be removed:DeprecationWarning"),
]

jit: Any = torch.jit  # which has no types


class Inner(nn.Module):
    """A layer with buffers of both sorts."""

    if TYPE_CHECKING:  # TorchScript would read them too
        scale: torch.Tensor
        passing: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("passing", torch.full((2,), 2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lin(x) * self.scale + self.passing.sum()
        return out


class Net(nn.Module):
    """Sub-modules, a tie, and attributes of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.a = Inner()
        first = nn.Linear(3, 3)
        self.b = nn.Sequential(first, nn.BatchNorm1d(3))
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = first.weight
        self.attribute = torch.full((2,), 7.0)
        self.several = [torch.ones(2), torch.zeros(1)]
        self.depth = 5
        self.names = ["a", "b"]
        self._hidden = 2.5
        self.register_parameter("none", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.tied(self.b(self.a(x))) + self.attribute.sum() + self.depth + self._hidden
        return out + len(self.names)


class Recurrent(nn.Module):
    """Layers that hold their parameters a second time, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.LSTM(3, 3)
        self.two = nn.LSTM(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(self.one(x)[0])[0]
        return out


def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


def script(path: Path) -> Path:
    jit.save(jit.script(net()), path, _extra_files={"notes.txt": b"hello"})
    return path


def trace(path: Path) -> Path:
    jit.save(jit.trace(net(), torch.ones(2, 3)), path)
    return path


def mobile(path: Path) -> Path:
    jit.script(net())._save_for_lite_interpreter(str(path))
    return path


def repacked(path: Path) -> Path:
    return rezipped(path, records(script(path)))


def deflated(path: Path) -> Path:
    return rezipped(path, records(script(path)), zipfile.ZIP_DEFLATED)


KINDS: dict[str, Callable[[Path], Path]] = {
    "script": script, "trace": trace, "mobile": mobile, "repacked": repacked,
}  # fmt: skip


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = request.param(tmp_path / "x.pt")
    return made


def state(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = jit.load(path).state_dict()
    return found


def changed(before: Path, after: Path) -> set[str]:
    """The names that torch finds other values for; all else must be as it was."""
    old, new = state(before), state(after)
    assert [(name, t.shape, t.dtype) for name, t in old.items()] == [(name, t.shape, t.dtype) for name, t in new.items()]
    return {name for name in old if raw(old[name]) != raw(new[name])}


def other_records(before: Path, after: Path) -> set[str]:
    """The records that differ, or that only one has, by the last two parts of their names."""
    old, new = records(before), records(after)
    assert sums_hold(after)
    found = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    return {"/".join(name.split("/")[1:]) for name in found}


def one_tensor(path: Path, *names: str) -> bool:
    found = state(path)
    return len({found[name].data_ptr() for name in names}) == 1


def module_of(*buffers: torch.Tensor) -> Any:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, buffer in enumerate(buffers):
                self.register_buffer(f"b{i}", buffer)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    return jit.script(Holder())


def saved(path: Path, module: Any) -> Path:
    jit.save(module, path)
    return path


# --- listing -------------------------------------------------------------------------------------


def test_it_lists_the_state_dict(path: Path) -> None:
    checkpoint = listing(path)
    assert (checkpoint.format, checkpoint.file) == ("torchscript", str(path))
    expected = state(path)
    assert [param.path for param in checkpoint.params] == list(expected)
    for param in checkpoint.params:
        tensor = expected[param.path]
        assert (param.shape, f"torch.{param.dtype.name}") == (tuple(tensor.shape), str(tensor.dtype))
        assert (param.strides, param.requires_grad) == (tensor.stride(), param.kind == "parameter")
        assert read_values(checkpoint, param).tobytes() == raw(tensor)
    assert ties(checkpoint) == [["b.0.weight", "tied.weight"]]


def test_kinds_scalars_and_classes(tmp_path: Path) -> None:
    checkpoint = listing(script(tmp_path / "x.pt"))
    assert [(param.path, param.kind) for param in checkpoint.params] == [
        ("a.scale", "buffer"),
        ("a.passing", "buffer"),
        ("a.lin.weight", "parameter"),
        ("a.lin.bias", "parameter"),
        ("b.0.weight", "parameter"),
        ("b.0.bias", "parameter"),
        ("b.1.weight", "parameter"),
        ("b.1.bias", "parameter"),
        ("b.1.running_mean", "buffer"),
        ("b.1.running_var", "buffer"),
        ("b.1.num_batches_tracked", "buffer"),
        ("tied.weight", "parameter"),
    ]
    assert [entry for entry in checkpoint.entries if isinstance(entry, Leaf)] == [
        Leaf("depth", 5), Leaf("names", ["a", "b"])
    ]  # fmt: skip
    assert {name: module.text for name, module in checkpoint.modules.items()} == {
        "": "Net",
        "a": "Inner",
        "a.lin": "Linear(3 → 3)",
        "b": "Sequential",
        "b.0": "Linear(3 → 3)",
        "b.1": "BatchNorm1d(3)",
        "tied": "Linear(3 → 3, no bias)",
    }


def test_deflated_values(tmp_path: Path) -> None:
    checkpoint = listing(deflated(tmp_path / "x.pt"))
    expected = {name: raw(tensor) for name, tensor in net().state_dict().items()}
    found = {param.path: read_values(checkpoint, param).tobytes() for param in checkpoint.params}
    assert expected.items() <= found.items()
    out = save(set_values(checkpoint, "a.lin.bias = 4").checkpoint, tmp_path / "y.pt")
    assert other_records(Path(checkpoint.file), out) == {f"data/{checkpoint.params[3].storage}"}
    assert read_values(listing(out), listing(out).params[3]).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    "name",
    [
        "float64", "float16", "bfloat16", "complex32", "complex64", "complex128", "int8", "int16", "int32", "uint8",
        "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
        "float8_e8m0fnu", "float4_e2m1fn_x2", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
    ],
)  # fmt: skip
def test_dtypes_that_only_torchs_other_reader_has_storages_for(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    given = torch.arange(16, dtype=torch.uint8).reshape(16 // dtype.itemsize, dtype.itemsize).view(dtype).reshape(-1)
    path = saved(tmp_path / "x.pt", module_of(given, given.clone()))
    checkpoint = listing(path)
    assert [(p.dtype.name, p.shape) for p in checkpoint.params] == [(name, tuple(given.shape))] * 2
    assert checkpoint.storages["0"].content[0].nbytes == 16
    tied = save(tie(checkpoint, "b0", "b1").checkpoint, tmp_path / "tied.pt")
    assert one_tensor(tied, "b0", "b1") and state(tied)["b1"].dtype is dtype
    untied = save(untie(listing(tied), "b1").checkpoint, tmp_path / "untied.pt")
    assert not one_tensor(untied, "b0", "b1")
    assert [t.view(torch.uint8).tolist() for t in state(untied).values()] == [list(range(16))] * 2


def test_odd_tensors(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "x.pt",
        module_of(
            torch.eye(3).to_sparse(),
            torch.eye(3).to_sparse_csr(),
            torch.quantize_per_tensor(torch.tensor([0.5, 1.0]), 0.5, 1, torch.qint8),
            torch.tensor([1 + 2j, 3j]).conj(),
            torch.ones(2).expand(3, 2),
            torch.empty(0, 3),
            torch.tensor(5),
            torch.arange(6.0).reshape(2, 3).T,
        ),
    )
    checkpoint = listing(path)
    assert [(p.path, p.layout, p.shape) for p in checkpoint.params] == [
        ("b0", "sparse_coo", (3, 3)), ("b1", "sparse_csr", (3, 3)), ("b2", "quantized", (2,)), ("b3", "strided", (2,)),
        ("b4", "strided", (3, 2)), ("b5", "strided", (0, 3)), ("b6", "strided", ()), ("b7", "strided", (3, 2)),
    ]  # fmt: skip
    assert [part.path for part in checkpoint.params[0].components] == ["b0.indices", "b0.values"]
    assert [part.path for part in checkpoint.params[1].components] == ["b1.crow_indices", "b1.col_indices", "b1.values"]
    quantized = checkpoint.params[2]
    assert dequantized(checkpoint, quantized, read_values(checkpoint, quantized), ()).tolist() == [0.5, 1.0]
    assert checkpoint.params[3].flags == {"conj"}
    assert read_values(checkpoint, checkpoint.params[3]).tolist() == [1 - 2j, -3j]
    assert [read_values(checkpoint, p).tolist() for p in checkpoint.params[4:]] == [
        [[1, 1], [1, 1], [1, 1]], [], 5, [[0, 3], [1, 4], [2, 5]]
    ]  # fmt: skip
    out = save(set_values(checkpoint, "b7[0] = 9").checkpoint, tmp_path / "y.pt")
    assert state(out)["b7"].tolist() == [[9, 9], [1, 4], [2, 5]]


def test_a_frozen_module_has_constants_only(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", jit.freeze(jit.script(net())))
    checkpoint = listing(path)
    assert {param.kind for param in checkpoint.params} == {"tensor"}
    numbers = [int(param.path.removeprefix("CONSTANTS.c")) for param in checkpoint.params]
    assert numbers == list(range(len(numbers)))
    shapes = [param.shape for param in checkpoint.params]
    first, second = [f"CONSTANTS.c{i}" for i, shape in enumerate(shapes) if shape == (3, 3)][:2]
    out = save(set_values(checkpoint, f"{first} = 0").checkpoint, tmp_path / "y.pt")
    assert other_records(path, out) == {f"constants/{first.removeprefix('CONSTANTS.c')}"}
    given = torch.ones(1, 3)
    assert not torch.equal(jit.load(path)(given), jit.load(out)(given))
    tied = listing(save(tie(checkpoint, first, second).checkpoint, tmp_path / "tied.pt"))
    assert ties(tied) == [[first, second]]
    jit.load(tmp_path / "tied.pt")(given)


def test_a_traced_modules_own_constants_are_kept(tmp_path: Path) -> None:
    path = trace(tmp_path / "x.pt")
    assert any(name.startswith("x/constants/") for name in records(path))
    assert [param.path for param in listing(path).params] == list(state(path))


def test_one_module_in_two_places(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.other = nn.Linear(2, 2)
            self.again = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.again(self.other(self.one(x)))
            return out

    path = saved(tmp_path / "x.pt", jit.script(Twice()))
    checkpoint = listing(path)
    assert [param.path for param in checkpoint.params] == list(state(path))
    assert ties(checkpoint) == [["one.weight", "again.weight"], ["one.bias", "again.bias"]]
    out = save(tie(checkpoint, "other", "again").checkpoint, tmp_path / "y.pt")
    assert one_tensor(out, "other.weight", "again.weight") and not one_tensor(out, "one.weight", "again.weight")
    assert changed(path, out) == {"again.weight", "again.bias"}


def test_code_of_torch_before_1_5_knows_no_buffers(tmp_path: Path) -> None:
    path = script(tmp_path / "x.pt")
    held = {
        name: b"\n".join(line for line in data.split(b"\n") if b"__buffers__" not in line) if name.endswith(".py") else data
        for name, data in records(path).items()
    }
    old = listing(rezipped(tmp_path / "old.pt", held))
    kinds = {param.path: param.kind for param in old.params}
    assert kinds["a.scale"] == kinds["attribute"] == "buffer" and kinds["a.lin.weight"] == "parameter"


def test_without_its_code_every_tensor_is_listed(tmp_path: Path) -> None:
    held = {name: data for name, data in records(script(tmp_path / "x.pt")).items() if "/code/" not in name}
    checkpoint = listing(rezipped(tmp_path / "bare.pt", held))
    assert {param.kind for param in checkpoint.params} == {"tensor"}
    assert {"attribute", "a.lin.weight", "tied.weight"} <= {param.path for param in checkpoint.params}
    assert checkpoint.modules["b.1"].text == "BatchNorm1d"


# --- editing -------------------------------------------------------------------------------------


def test_a_save_without_a_change_is_a_copy(path: Path, tmp_path: Path) -> None:
    assert save(listing(path), tmp_path / "y.pt").read_bytes() == path.read_bytes() == streamed(listing(path))


def test_init_changes_the_named_records_only(path: Path, tmp_path: Path) -> None:
    edit = init(listing(path), ["a"], ["normal"], seed=1)
    out = save(edit.checkpoint, tmp_path / "y.pt")
    assert changed(path, out) == {"a.lin.weight", "a.lin.bias"}
    found = {param.path: f"data/{param.storage}" for param in listing(path).params}
    assert other_records(path, out) == {found["a.lin.weight"], found["a.lin.bias"]}
    assert jit.load(out)(torch.ones(2, 3)).shape == (2, 3)


def test_a_value_is_a_few_bytes(tmp_path: Path) -> None:
    path = script(tmp_path / "x.pt")
    out = save(set_values(listing(path), "b.0.weight[0, 0] = 42").checkpoint, tmp_path / "y.pt")
    (storage,) = {param.storage for param in listing(path).params if param.path == "b.0.weight"}
    spot = record_of(path, f"/data/{storage}")
    payload = set(range(spot.payload, spot.payload + 4))
    crc = {*range(spot.payload + 36 + 4, spot.payload + 36 + 8), *range(spot.central + 16, spot.central + 20)}
    assert changed_bytes(path, out) <= payload | crc
    assert changed(path, out) == {"b.0.weight", "tied.weight"}
    extra = {"notes.txt": b""}
    jit.load(out, _extra_files=extra)
    assert extra == {"notes.txt": b"hello"}


def test_the_default_of_torch_knows_the_classes(tmp_path: Path) -> None:
    changes = init(listing(script(tmp_path / "x.pt")), ["b"], ["torch-default"], seed=1).changed
    assert {change.path: change.how for change in changes}["b.1.weight"] == "ones"


def test_tie_and_untie(path: Path, tmp_path: Path) -> None:
    checkpoint = listing(path)
    tied = save(tie(checkpoint, "a.lin", "b.0").checkpoint, tmp_path / "tied.pt")
    assert changed(path, tied) == {"b.0.weight", "b.0.bias"}
    assert one_tensor(tied, "a.lin.weight", "b.0.weight") and not one_tensor(tied, "b.0.weight", "tied.weight")
    untied = save(untie(listing(tied), "b.0").checkpoint, tmp_path / "untied.pt")
    assert changed(tied, untied) == set()
    assert not one_tensor(untied, "a.lin.weight", "b.0.weight")
    jit.load(untied)(torch.ones(2, 3))


def test_tie_a_parameter_to_a_buffer(tmp_path: Path) -> None:
    path = script(tmp_path / "x.pt")
    tied = save(tie(listing(path), "a.lin.bias", "a.scale").checkpoint, tmp_path / "tied.pt")
    assert one_tensor(tied, "a.lin.bias", "a.scale")


def test_the_lists_of_recurrent_layers_follow(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", jit.script(Recurrent()))
    edit = tie(listing(path), "one", "two")
    assert edit.notes == ()
    out = save(edit.checkpoint, tmp_path / "tied.pt")
    module = jit.load(out)
    assert [t.data_ptr() for t in module.two._flat_weights] == [t.data_ptr() for t in module.one._flat_weights]
    assert one_tensor(out, "one.weight_ih_l0", "two.weight_ih_l0")
    parted = jit.load(save(untie(listing(out), "two").checkpoint, tmp_path / "untied.pt"))
    held = {name: tensor.data_ptr() for name, tensor in parted.two.state_dict().items()}
    assert [tensor.data_ptr() for tensor in parted.two._flat_weights] == list(held.values())
    assert not {tensor.data_ptr() for tensor in parted.one._flat_weights} & {*held.values()}


def test_a_tensor_that_an_object_goes_on_to_hold_is_told(tmp_path: Path) -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.two = nn.Linear(2, 2)
            self.keeps = [self.two.weight.data]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.two(self.one(x)) + self.keeps[0]
            return out

    module = jit.script(Shares())
    edit = tie(listing(saved(tmp_path / "x.pt", module)), "one", "two")
    assert jit.load(save(edit.checkpoint, tmp_path / "y.pt")).keeps[0].shape == (2, 2)


# --- other formats, and what is refused -----------------------------------------------------------


@pytest.mark.parametrize("to", ["safetensors", "torch-zip"])
def test_conversion_to(tmp_path: Path, to: str) -> None:
    path = trace(tmp_path / "x.pt")
    form = registry.named(to)
    out = tmp_path / f"y{form.SUFFIXES[0]}"
    saving.save(convert(listing(path), form).checkpoint, targets.NewFile(out), form)
    made, expected = listing(out), state(path)
    assert {p.path: read_values(made, p).tobytes() for p in made.params} == {n: raw(t) for n, t in expected.items()}
    assert ties(made) == [["b.0.weight", "tied.weight"]]


def test_conversion_from_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    message = (
        "a TorchScript archive holds code too, and cannot be made of tensors alone; convert to .pt, "
        "load_state_dict() that into a scripted module, and save it"
    )
    form = registry.named("torchscript")
    assert refused(UsageError, lambda: convert(listing(tmp_path / "x.pt"), form)) == message
    script(tmp_path / "s.pt")
    assert refused(UsageError, lambda: convert(listing(tmp_path / "s.pt"), form, layer="a")) == message


def test_an_archive_without_its_modules(tmp_path: Path) -> None:
    path = rezipped(tmp_path / "x.pt", {"x/constants.pkl": b"", "x/data/0": b"1234"})
    assert refused(FormatError, listing, path) == f"{path}: has constants and no modules (no record data.pkl)"


def test_check(tmp_path: Path) -> None:
    report = check(str(script(tmp_path / "x.pt")))
    assert (report.tensors, {finding.level for finding in report.findings}) == (12, {"note"})
    assert [name for name, _ in report.safety] == ["x/data.pkl", "x/constants.pkl"]
    data = bytearray((tmp_path / "x.pt").read_bytes())
    (storage,) = {param.storage for param in listing(tmp_path / "x.pt").params if param.path == "a.lin.bias"}
    data[record_of(tmp_path / "x.pt", f"/data/{storage}").payload] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    (finding,) = (f for f in check(str(tmp_path / "x.pt"), ["integrity"]).findings if f.level == "error")
    assert (finding.path, finding.rule) == ("a.lin.bias", "checksum")


def test_a_module_that_contains_itself_is_not_written(tmp_path: Path) -> None:
    """A pickle that no torch wrote: the module is its own sub-module."""
    path = script(tmp_path / "x.pt")
    held = records(path)
    pickle = held["x/data.pkl"]
    held["x/data.pkl"] = pickle.replace(b"\nq\x00)\x81}(", b"\nq\x00)\x81q\xff}(X\x04\x00\x00\x00selfh\xff", 1)
    checkpoint = listing(rezipped(tmp_path / "cycle.pt", held))
    assert Leaf("self", "(contains itself)", True) in checkpoint.entries
    edited = tie(checkpoint, "a.lin.bias", "b.0.bias").checkpoint
    assert refused(Unsupported, save, edited, tmp_path / "y.pt") == (
        "the pickle holds an object that contains itself, which torch cannot read"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("class A(Module):\n  __parameters__ = []\n  __buffers__ = []\n",
         {"A": ScriptClass("Module", frozenset(), frozenset(), {})}),
        ('class A(Module):\n  __parameters__ = ["a", "b\\"\\n\\303", ]\n  x : Tensor\n  def f(self):\n'
         '  __buffers__ = ["no", ]\n', {"A": ScriptClass("Module", frozenset({"a", 'b"\nÃ'}), None, {})}),
        ("class A:\n  n : int\nclass B(NamedTuple):\n  x : Tensor\n",
         {"A": ScriptClass("", constants={}), "B": ScriptClass("NamedTuple", constants={})}),
        ('class A(Module):\n  i : Final[int] = -3\n  f : Final[float] = 0.5\n  t : Final[Tuple[int, int]] = (1, 2)\n'
         '  o : Final[Tuple[int]] = (3,)\n  b : Final[bool] = True\n  s : Final[str] = "zeros"\n  x : Final[int] = f()\n',
         {"A": ScriptClass("Module", constants={"i": -3, "f": 0.5, "t": (1, 2), "o": (3,), "b": True, "s": "zeros"})}),
        ('class A(Module):\n  __buffers__ = ["a" "b]\n', {"A": ScriptClass("Module", buffers=frozenset({"a"}), constants={})}),
        ("class\nclass (\n  __parameters__ = [\"a\"]\n", {}),
    ],
)  # fmt: skip
def test_code_is_read_as_text(text: str, expected: dict[str, ScriptClass]) -> None:
    assert classes(text) == expected


def test_code_that_would_crash_a_compiler(tmp_path: Path) -> None:
    path = script(tmp_path / "x.pt")
    held = records(path)
    for name in held:
        if name.endswith(".py"):
            held[name] += b"(" * 100_000 + b"\n  __buffers__ = [" + b'"\\' * 100_000 + b"]"
    assert [p.path for p in listing(rezipped(tmp_path / "y.pt", held)).params] == list(state(path))


def test_a_module_that_is_shared_too_often(tmp_path: Path) -> None:
    """Many attributes that nobody lists, met again and again: the work is bounded by the size of the file."""
    pairs = b"".join(b"X\x06\x00\x00\x00" + b"_%05dN" % i for i in range(20_000))
    shared = b"c__torch__\nX\n)\x81}(" + pairs + b"ub" + b"q\x00"
    names = b"".join(b"X\x05\x00\x00\x00" + b"%05dh\x00" % i for i in range(20_000))
    pickle = b"\x80\x02" + shared + b"0c__torch__\nY\n)\x81}(" + names + b"ub."
    path = rezipped(tmp_path / "x.pt", {"x/data.pkl": pickle, "x/constants.pkl": b"\x80\x02)."})
    message = f"{path}: shares its parts so often that listing them would not end"
    assert refused(FormatError, listing, path) == message


def test_damaged_archives_are_read_or_refused(tmp_path: Path) -> None:
    data = bytearray(script(tmp_path / "x.pt").read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 0x55
        (tmp_path / "x.pt").write_bytes(data)
        data[at] ^= 0x55
        for error in errors_of(tmp_path / "x.pt"):
            assert "\n" not in error


def errors_of(path: Path) -> Iterator[str]:
    try:
        checkpoint: Checkpoint = listing(path)
        for param in checkpoint.params:
            read_values(checkpoint, param)
    except FormatError as error:
        yield str(error)
    except Unsupported as error:
        yield str(error)
