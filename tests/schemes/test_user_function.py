"""A user's own functions: what they may do, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scheme_draws import drawn, drawn_param, raw, user_file, values

from paramctl.edit.init import init
from paramctl.errors import UsageError
from paramctl.formats import opening
from paramctl.model.dtypes import BY_NAME
from paramctl.schemes.drawing import draw, why_not
from paramctl.schemes.drawn_param import DrawnParam
from paramctl.schemes.generators import seed_for
from paramctl.schemes.spec import parse
from paramctl.values.arrays import read_values


def user_error(text: str, at: DrawnParam, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        draw(parse(text), at, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "from torch.nn import init\ndef f(w): init.uniform_(w, 5, 10)",
        "from torch.nn import init\ndef f(w): return init.uniform_(w, 5, 10)",
        "import torch\ndef f(w): return torch.empty_like(w).uniform_(5, 10)",
        "import torch\ndef f(w): return torch.empty(w.shape[::-1]).t().uniform_(5, 10).contiguous()",
    ],
)
def test_a_function_changes_in_place_or_returns(source: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(seed_for(7, "0.weight"))
    reference = torch.empty(8, 4).uniform_(5, 10, generator=generator)
    got = drawn(user_file(tmp_path, source), drawn_param((8, 4)))
    assert len(got) == 128
    assert got == raw(reference) or "t()" in source


def test_a_function_draws_the_same_from_every_global_generator(tmp_path: Path) -> None:
    text = user_file(tmp_path, "import random, numpy as np\n"
                     "def f(w):\n    w[0], w[1] = random.random(), float(np.random.rand())")  # fmt: skip
    assert drawn(text, drawn_param((2,))) == drawn(text, drawn_param((2,)))
    assert drawn(text, drawn_param((2,))) != drawn(text, drawn_param((2,), path="1.weight"))


def test_a_function_s_module_is_executed_once_and_alike_whichever_param_comes_first(tmp_path: Path) -> None:
    text = user_file(
        tmp_path, "import torch\nprint('loaded')\nshift = torch.rand(())\ndef f(w): w.fill_(shift)"
    )
    spec = parse(text)
    first, second = drawn_param((2,)), drawn_param((2,), path="1.weight")
    a, b = bytes(draw(spec, first)), bytes(draw(spec, second))
    other = parse(text)
    assert (bytes(draw(other, second)), bytes(draw(other, first))) == (b, a)
    assert a == b


def test_a_function_may_take_the_path(tmp_path: Path) -> None:
    assert drawn(user_file(tmp_path, "def f(w, path): w.fill_(len(path))"), drawn_param((1,))) == raw(
        torch.tensor([8.0])
    )
    assert drawn(user_file(tmp_path, "def f(w, gain=3.0): w.fill_(gain)"), drawn_param((1,))) == raw(
        torch.tensor([3.0])
    )


def test_a_function_starts_from_the_current_values_or_zeros(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): w.add_(1)")
    assert drawn(text, drawn_param((2,))) == raw(torch.tensor([1.0, 1.0]))
    current = raw(torch.tensor([3.0, 4.0]))
    assert bytes(draw(parse(text), drawn_param((2,)), current)) == raw(torch.tensor([4.0, 5.0]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int64", "bool", "complex64"])
def test_a_function_s_result_is_cast(dtype: str, tmp_path: Path) -> None:
    text = user_file(tmp_path, "import torch\ndef f(w): return torch.ones(w.shape, dtype=torch.float64)")
    assert (
        values(text, (2, 2), dtype).tolist() == [[1, 1], [1, 1]]
        if dtype != "complex64"
        else drawn(text, drawn_param((1,), dtype)) == raw(torch.ones(1, dtype=torch.complex64))
    )


def test_a_function_s_dataclasses_and_closures_work(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Fill:\n    value: float\n    def __call__(self, w): w.fill_(self.value)\n"
        "f = Fill(2.0)"
    )
    assert drawn(user_file(tmp_path, source), drawn_param((1,))) == raw(torch.tensor([2.0]))


def test_a_file_s_name_may_hold_colons_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): w.fill_(1)", name="a:b.py")
    assert drawn(text, drawn_param((1,))) == raw(torch.tensor([1.0]))
    assert [each.name for each in tmp_path.iterdir()] == ["a:b.py"]
    assert parse(text).text == text


def test_what_a_function_prints_stays_out_of_the_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(user_file(tmp_path, "print('loading')\ndef f(w): print('drawing')"), drawn_param((1,)))
    assert capsys.readouterr() == ("", "loading\ndrawing\n")


def test_a_function_s_fractions_do_not_become_whole_numbers(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): return w.double() + 0.5")
    assert user_error(text, drawn_param((2,), "int64")) == (
        f"{text} returned float64 values that int64 cannot hold for 0.weight; "
        "it must change the tensor in place or return one of shape (2)"
    )


def test_a_function_may_close_what_it_prints_to_and_go_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    source = "import os, sys\ndef f(w):\n print('here')\n sys.stdout.close()\n os.chdir('sub')\n w.fill_(5)"
    made = draw(parse(user_file(tmp_path, source)), drawn_param((2, 2)))
    assert np.frombuffer(made, "<f4").tolist() == [5, 5, 5, 5]
    assert Path.cwd() == tmp_path
    sys.stderr.write("still there\n")
    assert capsys.readouterr().err == "here\nstill there\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(w): return [1]", "{f} returned a list for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): return w.t()", "{f} made a tensor of shape (4, 8) for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): w.resize_(2)", "{f} made a tensor of shape (2) for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): return w * 1j", "{f} returned complex numbers for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch\ndef f(w): return w.to_sparse()", "{f} returned a sparse_coo tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch\ndef f(w): return w.to('meta')", "{f} returned a meta tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch\ndef f(w): return torch.nested.nested_tensor([torch.ones(4)] * 8, layout=torch.jagged)",
         "{f} returned a nested tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("import torch, warnings\nwarnings.simplefilter('ignore')\n"
         "def f(w): return torch.quantize_per_tensor(w, 1.0, 0, torch.qint8)",
         "{f} returned a quantized tensor for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w): return w.double() + 1e300",
         "{f} returned float64 values that float32 cannot hold for 0.weight; "
         "it must change the tensor in place or return one of shape (8, 4)"),
        ("def f(w):\n    x = 1\n    return x / 0",
         "{f} failed for 0.weight: ZeroDivisionError: division by zero (line 3)"),
        ("def f(w):\n    import sys\n    sys.exit(4)", "{f} failed for 0.weight: SystemExit: 4 (line 3)"),
        ("class Odd(BaseException): pass\ndef f(w): raise Odd('no')", "{f} failed for 0.weight: Odd: no (line 2)"),
        ("class Odd(BaseException): pass\nraise Odd\ndef f(w): pass", "{f} failed for 0.weight: Odd (line 2)"),
        ("def f(w): raise GeneratorExit", "{f} failed for 0.weight: GeneratorExit (line 1)"),
        ("class Mine(KeyboardInterrupt): pass\ndef f(w): raise Mine", "{f} failed for 0.weight: Mine (line 2)"),
        ("def f(w): raise StopIteration(3)", "{f} failed for 0.weight: StopIteration: 3 (line 1)"),
        ("class Mute(Exception):\n    def __str__(self): 1 / 0\ndef f(w): raise Mute",
         "{f} failed for 0.weight: Mute (line 3)"),
        ("x = y\ndef f(w): pass", "{f} failed for 0.weight: NameError: name 'y' is not defined (line 1)"),
        ("def f(): pass",
         "{f} failed for 0.weight: TypeError: f() takes 0 positional arguments but 1 was given"),
        ("f = 3", "{file} has no function 'f'"),
    ],
)  # fmt: skip
def test_what_a_function_does_wrong(source: str, message: str, tmp_path: Path) -> None:
    text = user_file(tmp_path, source)
    assert user_error(text, drawn_param((8, 4))) == message.format(f=text, file=text.removesuffix(":f"))


def test_ctrl_c_is_no_fault_of_a_function(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        draw(parse(text), drawn_param((2,)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def my_init(w): pass", "{file} has no function 'f'"),
        ("def ff(w): pass", "{file} has no function 'f'; did you mean ff?"),
        ("def f(w)", "{file} is not Python: expected ':' (line 1)"),
        ("x = '\0'", "{file} is not Python: source code string cannot contain null bytes (line None)"),
    ],
)
def test_a_file_is_checked_without_running_it(source: str, message: str, tmp_path: Path) -> None:
    text = user_file(tmp_path, f"{source}\n")
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == message.format(file=text.removesuffix(":f"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.py").mkdir()
    with pytest.raises(UsageError) as caught:
        parse(f"{tmp_path}/x.py:f")
    assert str(caught.value) == f"{tmp_path}/x.py is not a regular file"


def test_a_function_gets_no_packed_elements(tmp_path: Path) -> None:
    text = user_file(tmp_path, "def f(w): pass")
    reason = why_not(parse(text), (2,), BY_NAME["float4_e2m1fn"])
    assert reason == "paramctl cannot hand float4_e2m1fn elements to a function"


def test_arguments_are_given_as_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.py").write_text(
        "def fn(w, path, std, scale=1, kind='a', flag=False):\n"
        "    assert (path, kind, flag, type(scale)) == ('0.weight', 'b', True, int)\n"
        "    w.fill_(std * scale)\n"
        "def narrow(w): w.fill_(1)\n"
    )
    torch.save({"0.weight": torch.zeros(2, 2)}, "x.pt")
    checkpoint = opening.open("x.pt")
    edit = init(checkpoint, ["0"], ["f.py:fn:std=0.5,scale=3, kind=b,flag=true"], seed=1)
    assert edit.changed[0].how == "f.py:fn:std=0.5,scale=3,kind=b,flag=True"
    values = read_values(edit.checkpoint, edit.checkpoint.params[0])
    assert (values == 1.5).all()
    for words, message in (("0.5", "f.py:fn: '0.5' has no name; write f.py:fn:KEY=VALUE"), ("a b=1", "f.py:fn: 'a b=1' has no name; write f.py:fn:KEY=VALUE")):
        with pytest.raises(UsageError) as caught:
            init(checkpoint, ["0"], [f"f.py:fn:{words}"], seed=1)
        assert str(caught.value) == message
    with pytest.raises(UsageError, match="unexpected keyword argument 'std'"):
        init(checkpoint, ["0"], ["f.py:narrow:std=1"], seed=1)
