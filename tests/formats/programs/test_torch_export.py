"""Exported programs: listed as torch.export.load finds them, edited so that it agrees, everything else as it was."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import changed_bytes, listing, raw, record_of, records, refused, rezipped, save, streamed, sums_hold, ties
from torch import nn

from paramctl.check.check import check
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, ParamctlError, Unsupported, UsageError
from paramctl.files import targets
from paramctl.formats import registry, saving
from paramctl.model.checkpoint import Leaf
from paramctl.values.arrays import read_values

pytestmark = [
    pytest.mark.filterwarnings("ignore:No complete tensor found in the group:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

export: Any = torch.export


class Net(nn.Module):
    """Parameters, buffers of both sorts, a tie, views of one storage, and constants."""

    passing: torch.Tensor
    wide: torch.Tensor
    tiny: torch.Tensor
    view: torch.Tensor
    tail: torch.Tensor
    scalar: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(3, 3)
        self.a = nn.Linear(3, 3)
        self.b = nn.Sequential(first, nn.BatchNorm1d(3))
        self.tied = nn.Linear(3, 3)
        self.tied.weight = first.weight
        self.small = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("wide", torch.arange(4.0).expand(3, 4))
        self.register_buffer("tiny", torch.ones(3).to(torch.float8_e4m3fn))
        self.register_buffer("view", torch.arange(10.0)[2:5])
        self.register_buffer("tail", self.view[1:])
        self.register_buffer("scalar", torch.tensor(3.0))
        self.attribute = torch.full((2,), 7.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        buffers = self.passing.sum() + self.wide.sum() + self.tiny.float().sum() + self.view.sum() + self.tail.sum()
        constants = self.scalar + self.attribute.sum() + torch.tensor(2.0)
        out: torch.Tensor = self.tied(self.b(self.a(x))) + self.small.sum() + buffers + constants
        return out


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported program as torch writes it now."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("export") / "x.pt2"
    shapes = {"x": {0: export.Dim("batch")}}
    made = export.export(Net().eval(), (torch.ones(2, 3),), dynamic_shapes=shapes)
    export.save(made, path, extra_files={"notes.txt": "hello"})
    return path


def blob(found: object) -> bytes:
    held = io.BytesIO()
    torch.save(found, held)
    return held.getvalue()


def of_2_7(program: Path, path: Path) -> Path:
    """The same as torch 2.7 wrote it: one file of torch.save for the weights, and one for the constants."""
    made = export.load(program)
    held = {
        name: data
        for name, data in records(program).items()
        if not name.startswith(("x/data/weights/", "x/data/constants/"))
    }
    held["x/data/weights/model.pt"] = blob(dict(made.state_dict))
    held["x/data/constants/model.pt"] = blob(dict(made.constants))
    return rezipped(path, held)


def of_2_6(program: Path, path: Path) -> Path:
    """The same as torch 2.0 to 2.6 wrote it: a plain zip archive with fixed names."""
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    made = export.load(program)
    return rezipped(
        path,
        {
            "version": ".".join(map(str, SCHEMA_VERSION)).encode(),
            "serialized_exported_program.json": serialize(made).exported_program,
            "serialized_state_dict.pt": blob(dict(made.state_dict)),
            "serialized_constants.pt": blob(dict(made.constants)),
            "serialized_example_inputs.pt": blob(((torch.ones(2, 3),), {})),
        },
    )


LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {
    "now": lambda program, path: Path(shutil.copy(program, path)),
    "2.7": of_2_7,
    "2.6": of_2_6,
}


@pytest.fixture(params=LAYOUTS.values(), ids=list(LAYOUTS))
def path(request: pytest.FixtureRequest, program: Path, tmp_path: Path) -> Path:
    made: Path = request.param(program, tmp_path / "x.pt2")
    return made


def state(path: Path) -> dict[str, torch.Tensor]:
    """Weights and constants as torch finds them."""
    found = export.load(path)
    return {**found.state_dict, **found.constants}


def changed(before: Path, after: Path) -> set[str]:
    """The names that torch finds other values for; all else must be as it was."""
    old, new = state(before), state(after)
    assert [(n, t.shape, t.dtype) for n, t in old.items()] == [(n, t.shape, t.dtype) for n, t in new.items()]
    return {name for name in old if raw(old[name]) != raw(new[name])}


def other_records(before: Path, after: Path) -> set[str]:
    """The records that differ, or that only one has."""
    old, new = records(before), records(after)
    assert sums_hold(after)
    return {name.removeprefix("x/") for name in {*old, *new} if old.get(name) != new.get(name)}


def one_tensor(path: Path, *names: str) -> bool:
    found = state(path)
    return len({found[name].data_ptr() for name in names}) == 1


# --- listing -------------------------------------------------------------------------------------


def test_it_lists_what_torch_loads(path: Path) -> None:
    checkpoint = listing(path)
    assert (checkpoint.format, checkpoint.file) == ("torch-export", str(path))
    expected = state(path)
    assert [param.path for param in checkpoint.params] == list(expected)
    for param in checkpoint.params:
        tensor = expected[param.path]
        assert (param.shape, f"torch.{param.dtype.name}") == (tuple(tensor.shape), str(tensor.dtype))
        assert (param.strides, param.offset) == (tensor.stride(), tensor.storage_offset())
        assert read_values(checkpoint, param).tobytes() == raw(tensor)
    assert ties(checkpoint) == [["b.0.weight", "tied.weight"]]


def test_kinds(path: Path) -> None:
    assert {param.path: param.kind for param in listing(path).params} == {
        **dict.fromkeys(["small", "a.weight", "a.bias", "b.0.weight", "b.0.bias", "b.1.weight"], "parameter"),
        **dict.fromkeys(["b.1.bias", "tied.weight", "tied.bias"], "parameter"),
        **dict.fromkeys(["b.1.running_mean", "b.1.running_var", "b.1.num_batches_tracked"], "buffer"),
        **dict.fromkeys(["wide", "tiny", "view", "tail", "scalar", "passing"], "buffer"),
        **dict.fromkeys(["attribute", "lifted_tensor_0"], "tensor"),
    }


DTYPES = [
    "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex64", "complex128", "bool",
    "bfloat16", "uint16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    "uint32", "uint64", "complex32",
]  # fmt: skip


def test_every_number_of_a_dtype() -> None:
    """The table is torch's own."""
    from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE

    from paramctl.formats.programs.export_tables import _DTYPES

    theirs = {number.value: str(dtype).removeprefix("torch.") for dtype, number in _TORCH_TO_SERIALIZE_DTYPE.items()}
    assert {number: name for number, name in enumerate(_DTYPES) if name} == theirs
    assert set(DTYPES) == set(theirs.values())


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype(tmp_path: Path, name: str) -> None:
    from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE

    dtype = getattr(torch, name)
    path = made(tmp_path, weight=(bytes(range(16)), tensor_meta(_TORCH_TO_SERIALIZE_DTYPE[dtype].value, [16 // dtype.itemsize])))
    (param,) = listing(path).params
    assert (param.dtype.name, param.nbytes) == (name, 16)


def test_several_models(program: Path, tmp_path: Path) -> None:
    held = records(program)
    for name in [*held]:
        other = name.replace("models/model.json", "models/other.json").replace("/model_", "/other_")
        held.setdefault(other, held[name])
    checkpoint = listing(rezipped(tmp_path / "two.pt2", held))
    single = [param.path for param in listing(program).params]
    assert [p.path for p in checkpoint.params] == [f"{model}.{path}" for model in ("model", "other") for path in single]


# --- editing -------------------------------------------------------------------------------------


def test_a_save_without_a_change_is_a_copy(path: Path, tmp_path: Path) -> None:
    assert save(listing(path), tmp_path / "y.pt2").read_bytes() == path.read_bytes() == streamed(listing(path))


def test_init_and_set(path: Path, tmp_path: Path) -> None:
    drawn = init(listing(path), ["a"], ["normal"], seed=1).checkpoint
    edited = set_values(drawn, "b.0.weight[0, 0] = 42", "tiny = 2", "attribute = 5", "passing[1] = 3").checkpoint
    out = save(edited, tmp_path / "y.pt2")
    assert changed(path, out) == {
        "a.weight", "a.bias", "b.0.weight", "tied.weight", "tiny", "attribute", "passing"
    }  # fmt: skip
    assert streamed(edited) == out.read_bytes()
    again = save(init(listing(path), ["a"], ["normal"], seed=1).checkpoint, tmp_path / "z.pt2")
    assert state(again)["a.weight"].equal(state(out)["a.weight"])
    assert export.load(out).module()(torch.ones(4, 3)).shape == (4, 3)


def test_a_value_is_a_few_bytes(program: Path, tmp_path: Path) -> None:
    out = save(set_values(listing(program), "a.bias[0] = 42").checkpoint, tmp_path / "y.pt2")
    spot = record_of(program, "/weight_2")
    payload = set(range(spot.payload, spot.payload + 4))
    crc = {*range(spot.payload + 12 + 4, spot.payload + 12 + 8), *range(spot.central + 16, spot.central + 20)}
    assert changed_bytes(program, out) <= payload | crc
    extra = {"notes.txt": ""}
    export.load(out, extra_files=extra)
    assert extra == {"notes.txt": "hello"}


def test_a_value_in_an_archive_inside(program: Path, tmp_path: Path) -> None:
    path = of_2_6(program, tmp_path / "x.pt2")
    out = save(set_values(listing(path), "a.bias[0] = 42").checkpoint, tmp_path / "y.pt2")
    assert other_records(path, out) == {"serialized_state_dict.pt"}
    inside = [rezip(records(file)["serialized_state_dict.pt"]) for file in (path, out)]
    assert [name for name in inside[0] if inside[0][name] != inside[1][name]] == ["archive/data/2"]


def rezip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_in_place(path: Path) -> None:
    for patch in (False, True):
        checkpoint = listing(path)
        edited = set_values(checkpoint, f"a.bias = {3 + patch}").checkpoint
        saving.save(edited, targets.InPlace(checkpoint.sources[0], patch))
        assert state(path)["a.bias"].tolist() == [3 + patch] * 3


def test_tie_and_untie(path: Path, tmp_path: Path) -> None:
    tied = save(tie(listing(path), "a", "b.0").checkpoint, tmp_path / "tied.pt2")
    assert changed(path, tied) == {"b.0.weight", "b.0.bias"}
    assert one_tensor(tied, "a.weight", "b.0.weight") and not one_tensor(tied, "b.0.weight", "tied.weight")
    assert len(ties(listing(tied))) == 2
    untied = save(untie(listing(tied), "b.0").checkpoint, tmp_path / "untied.pt2")
    assert changed(tied, untied) == set() and ties(listing(untied)) == []
    assert not one_tensor(untied, "a.weight", "b.0.weight")


def test_what_a_tie_changes(program: Path, tmp_path: Path) -> None:
    config = "data/weights/model_weights_config.json"
    tied = save(tie(listing(program), "a", "b.0").checkpoint, tmp_path / "tied.pt2")
    assert other_records(program, tied) == {config, "data/weights/weight_4"}
    untied = save(untie(listing(tied), "b.0").checkpoint, tmp_path / "untied.pt2")
    assert other_records(tied, untied) == {config, "data/weights/weight_4", "data/weights/weight_15"}
    constants = save(tie(listing(program), "attribute", "passing").checkpoint, tmp_path / "constants.pt2")
    assert other_records(program, constants) == {"data/constants/model_constants_config.json", "data/constants/tensor_2"}
    assert state(constants)["passing"].tolist() == [7, 7]


def test_a_view_is_untied_and_tied(program: Path, tmp_path: Path) -> None:
    out = save(untie(listing(program), "tail").checkpoint, tmp_path / "y.pt2")
    assert changed(program, out) == set()
    assert other_records(program, out) == {"data/weights/model_weights_config.json", "data/weights/weight_15"}
    tied = save(tie(listing(out), "a.bias", "view").checkpoint, tmp_path / "z.pt2")
    assert one_tensor(tied, "a.bias", "view") and changed(out, tied) == {"view"}


def test_a_tie_that_the_file_cannot_say(program: Path, tmp_path: Path) -> None:
    edited = tie(listing(program), "attribute", "tail").checkpoint
    assert refused(Unsupported, save, edited, tmp_path / "y.pt2") == (
        "tail cannot lie in record data/constants/tensor_0; the program looks for it in data/weights/ only: tie others"
    )
    old = listing(of_2_6(program, tmp_path / "old.pt2"))
    assert refused(Unsupported, save, tie(old, "attribute", "tail").checkpoint, tmp_path / "y.pt2") == (
        "tail lies in record serialized_state_dict.pt, and cannot be tied to what is not in it"
    )
    assert not (tmp_path / "y.pt2").exists()


def test_archives_that_python_packed(program: Path, tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = rezipped(tmp_path / "x.pt2", records(program), method)
        out = save(set_values(listing(path), "a.bias = 4").checkpoint, tmp_path / "y.pt2")
        assert other_records(path, out) == {"data/weights/weight_2"}
        if method == zipfile.ZIP_STORED:
            assert changed(path, out) == {"a.bias"}


# --- made by hand --------------------------------------------------------------------------------


def tensor_meta(dtype: Any = 7, sizes: Any = (2,), **other: Any) -> dict[str, Any]:
    """What a config says of a contiguous tensor."""
    shape = [{"as_int": n} for n in sizes]
    strides = [{"as_int": 1}] * len(shape)
    return {
        "dtype": dtype, "sizes": shape, "requires_grad": False, "device": {"type": "cpu", "index": None},
        "strides": strides, "storage_offset": {"as_int": 0}, "layout": 7, **other,
    }  # fmt: skip


def made(
    folder: Path, *, config: object = None, held: dict[str, bytes] | None = None, **weights: tuple[bytes, Any]
) -> Path:
    """An archive of one model with these weights, or with this config."""
    lines = {
        name: {"path_name": name, "is_param": False, "use_pickle": False, "tensor_meta": meta}
        for name, (_, meta) in weights.items()
    }
    parts = {
        "x/archive_format": b"pt2",
        "x/models/model.json": b"{}",
        "x/data/weights/model_weights_config.json": json.dumps(config or {"config": lines}).encode(),
        "x/data/constants/model_constants_config.json": b'{"config": {}}',
        **{f"x/data/weights/{name}": data for name, (data, _) in weights.items()},
        **(held or {}),
    }
    return rezipped(folder / "x.pt2", parts)


def pickled(meta: object, name: str = "weight_0") -> dict[str, Any]:
    return {"config": {"w": {"path_name": name, "is_param": True, "use_pickle": True, "tensor_meta": meta}}}


def test_a_tensor_of_a_subclass_is_an_archive_inside(tmp_path: Path) -> None:
    held = {"x/data/weights/weight_0": blob(nn.Parameter(torch.arange(4.0)))}
    path = made(tmp_path, config=pickled(tensor_meta(sizes=[4])), held=held)
    checkpoint = listing(path)
    assert [(p.path, p.kind, p.shape) for p in checkpoint.params] == [("w", "parameter", (4,))]
    assert read_values(checkpoint, checkpoint.params[0]).tolist() == [0, 1, 2, 3]
    out = save(set_values(checkpoint, "w[2] = 9").checkpoint, tmp_path / "y.pt2")
    assert other_records(path, out) == {"data/weights/weight_0"}
    assert torch.load(io.BytesIO(records(out)["x/data/weights/weight_0"]), weights_only=True).tolist() == [0, 1, 9, 3]


def test_objects_among_the_constants(tmp_path: Path) -> None:
    held = {
        "x/data/constants/model_constants_config.json": json.dumps(pickled(None, "opaque_obj_0")).encode(),
        "x/data/constants/opaque_obj_0": b"cposix\nsystem\n(S'true'\ntR.",
    }
    path = made(tmp_path, config={"config": {}}, held=held)
    assert listing(path).entries == (Leaf("w", "an object", True),)
    report = check(str(path), ["safety"])
    assert [(finding.level, finding.rule) for finding in report.findings if finding.level == "error"] == [
        ("error", "dangerous")
    ]
    assert [name for name, _ in report.safety] == ["x/data/constants/opaque_obj_0"]


def test_a_fake_tensor_has_no_values(tmp_path: Path) -> None:
    (param,) = listing(made(tmp_path, w=(b"", tensor_meta()))).params
    assert (param.layout, param.storage, param.shape) == ("meta", None, (2,))


def test_layouts_that_are_not_strided(tmp_path: Path) -> None:
    (param,) = listing(made(tmp_path, w=(b"12345678", tensor_meta(layout=1)))).params
    assert (param.layout, param.storage) == ("sparse_coo", None)


META: dict[str, tuple[Any, str]] = {
    "no object": (5, "'w' does not say what a tensor is: there is no JSON object"),
    "dtype": (tensor_meta(99), "tensor 'w' has the unknown dtype 99"),
    "no dtype": (tensor_meta(True), "tensor 'w' has the unknown dtype True"),
    "symbol": (tensor_meta(sizes=[]) | {"sizes": [{"as_expr": "s0"}]}, "tensor 'w' has a shape that is not a list of sizes"),
    "negative": (tensor_meta(sizes=[-1]), "tensor 'w' has a shape that is not a list of sizes"),
    "no sizes": (tensor_meta() | {"sizes": None}, "tensor 'w' has a shape that is not a list of sizes"),
    "many": (tensor_meta(sizes=[1] * 65), "tensor 'w' has 65 dimensions, over the limit of 64"),
    "huge": (tensor_meta(sizes=[2**40, 2**40]), "tensor 'w' has a shape too large for any file"),
    "strides": (tensor_meta() | {"strides": []}, "tensor 'w' has 1 sizes and 0 strides"),
    "long": (tensor_meta(sizes=[3]), "tensor 'w' reaches element 3 of a record of 8 bytes"),
    "offset": (tensor_meta(storage_offset={"as_int": 1}), "tensor 'w' reaches element 3 of a record of 8 bytes"),
    "device": (tensor_meta(device="cpu"), "'w' does not say what a tensor is: there is no JSON object"),
}


@pytest.mark.parametrize(("meta", "message"), META.values(), ids=list(META))
def test_a_tensor_that_contradicts_itself(tmp_path: Path, meta: Any, message: str) -> None:
    path = made(tmp_path, w=(b"12345678", meta))
    assert refused(FormatError, listing, path) == f"{path}: {message}"


CONFIGS: dict[str, tuple[Any, dict[str, bytes], type[ParamctlError], str]] = {
    "no record": (
        {"config": {"w": {"path_name": "../w", "tensor_meta": tensor_meta()}}}, {}, FormatError,
        "tensor 'w' lies in record data/weights/../w, which is not in the archive",
    ),
    "no name": ({"config": {"w": {}}}, {}, FormatError, "tensor 'w' has no path_name"),
    "no config": (
        {"a": 1}, {}, FormatError,
        "'data/weights/model_weights_config.json' does not say what a tensor is: there is no JSON object",
    ),
    "no JSON": (
        None, {"x/data/weights/model_weights_config.json": b"{"}, FormatError,
        "record data/weights/model_weights_config.json is not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    "deep": (
        None, {"x/data/weights/model_weights_config.json": b"[" * 200_000}, FormatError,
        "record data/weights/model_weights_config.json is nested too deep",
    ),
    "no archive inside": (
        pickled(tensor_meta()), {"x/data/weights/weight_0": b"no archive"}, Unsupported,
        "record data/weights/weight_0 is no archive of torch.save, or is compressed once more",
    ),
    "a signature that is none": (
        {"config": {"w": {"path_name": "w", "tensor_meta": tensor_meta()}}},
        {"x/data/weights/w": b"12345678", "x/models/model.json": b'{"signature": ['}, FormatError,
        "record models/model.json is not JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "held", "kind", "message"), CONFIGS.values(), ids=list(CONFIGS))
def test_a_config_that_says_nothing(
    tmp_path: Path, config: Any, held: dict[str, bytes], kind: type[ParamctlError], message: str
) -> None:
    path = made(tmp_path, config=config, held=held)
    assert refused(kind, listing, path) == f"{path}: {message}"


def test_compiled_code_alone_is_refused(tmp_path: Path) -> None:
    path = rezipped(tmp_path / "x.pt2", {"x/archive_format": b"pt2", "x/data/aotinductor/model/a.so": b""})
    assert refused(Unsupported, listing, path) == (
        f"{path}: is a .pt2 archive without an exported program: it has compiled code only"
    )


# --- other formats, and checks -------------------------------------------------------------------


@pytest.mark.parametrize("to", ["safetensors", "torch-zip"])
def test_conversion_to(path: Path, tmp_path: Path, to: str) -> None:
    form = registry.named(to)
    out = tmp_path / f"y{form.SUFFIXES[0]}"
    saving.save(convert(listing(path), form, lossy=to == "safetensors").checkpoint, targets.NewFile(out), form)
    written, expected = listing(out), state(path)
    if to == "safetensors":
        del expected["wide"]
    found = {p.path: read_values(written, p).tobytes() for p in written.params}
    assert found == {name: raw(tensor) for name, tensor in expected.items()}


def test_conversion_from_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    form = registry.named(".pt2")
    assert refused(UsageError, lambda: convert(listing(tmp_path / "x.pt"), form)) == (
        "an exported program holds a graph too, and cannot be made of tensors alone; convert to .pt, "
        "load_state_dict() that into the module, and export it"
    )


def test_check(path: Path) -> None:
    report = check(str(path))
    assert (report.tensors, [f for f in report.findings if f.level != "note"]) == (20, [])
    assert any(name.endswith("data.pkl") for name, _ in report.safety)


def test_check_finds_damage(program: Path, tmp_path: Path) -> None:
    data = bytearray(program.read_bytes())
    data[record_of(program, "/weight_2").payload] ^= 1
    damaged = tmp_path / "x.pt2"
    damaged.write_bytes(data)
    (finding,) = check(str(damaged), ["integrity"]).findings
    assert (finding.level, finding.rule, finding.path) == ("error", "checksum", "a.bias")


def test_damaged_archives_are_read_or_refused(program: Path, tmp_path: Path) -> None:
    data = bytearray(program.read_bytes())
    for at in range(0, len(data), 151):
        data[at] ^= 0x55
        (tmp_path / "x.pt2").write_bytes(data)
        data[at] ^= 0x55
        try:
            checkpoint = listing(tmp_path / "x.pt2")
            for param in checkpoint.params:
                if param.storage is not None:
                    read_values(checkpoint, param)
        except ParamctlError as error:
            assert "\n" not in str(error)
