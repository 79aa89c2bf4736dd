"""What a pickle would do if it were loaded: each way around a scanner is found, and torch's safe loader is foretold."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import io
import os
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import _weights_only_unpickler

from paramctl.errors import FormatError
from paramctl.formats.pickles import weights_only
from paramctl.formats.pickles.verdict import Safety, Use, inspect

OBJECT = "would be imported, and its own code would make an object of it"
FUNCTION = "would be imported and called"
NAMED = "would be imported, and not called"
LAYER = "makes a part of a torch model or optimizer, without calling it"
SHELL = "runs a shell command"
PROGRAM = "runs another program"
SOURCE = "runs Python source that the file holds"
SCRIPT = "runs a Python module or script"
IMPORT = "imports a module by its name, which runs its code"
PICKLE = "loads another pickle, which may do anything"
FILES = "opens, writes or deletes files"
NETWORK = "opens a network connection"
NATIVE = "loads or calls native code"
CALLS = "calls the functions it is given"
LATER = "calls a function at a later moment, or in another thread or process"
ATTRIBUTE = "reaches any attribute of any object"
INSIDES = "reaches into the insides of Python, and from there everything"
SYSTEM = "reaches the operating system: files, processes, environment"
RESULT = "calls what another call returns"

SHELL_USE = Use("posix.system", SHELL, "dangerous", True)


# --- pickles made by hand ------------------------------------------------------------------------


def g(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(func: bytes, *args: bytes) -> bytes:
    return func + b"(" + b"".join(args) + b"tR"


def uses(body: bytes) -> tuple[Use, ...]:
    return inspect(b"\x80\x02" + body + b".").uses


def one(module: str, name: str) -> Use:
    """The only use in a pickle that calls a global with a text."""
    (use,) = uses(call(g(module, name), text("x")))
    return use


SYSTEM_CALL = call(g("posix", "system"), text("true"))


# --- every way of calling ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(SYSTEM_CALL, id="REDUCE"),
        pytest.param(b"(" + text("true") + b"iposix\nsystem\n", id="INST"),
        pytest.param(b"(" + g("posix", "system") + text("true") + b"o", id="OBJ"),
        pytest.param(b"(" + g("posix", "system") + text("true") + b"o0N", id="OBJ, popped"),
        pytest.param(g("posix", "system") + text("true") + b"\x85\x81", id="NEWOBJ"),
        pytest.param(g("posix", "system") + b")}\x92", id="NEWOBJ_EX"),
        pytest.param(text("posix") + text("system") + b"\x93" + text("true") + b"\x85R", id="STACK_GLOBAL"),
        pytest.param(SYSTEM_CALL + b"0}", id="popped before the dict"),
        pytest.param(b"(" + SYSTEM_CALL + b"1}", id="popped with a mark"),
        pytest.param(b"}" + SYSTEM_CALL + b"Ns", id="a key of a dict"),
        pytest.param(SYSTEM_CALL + b"\x940N", id="in the memo only"),
        pytest.param(SYSTEM_CALL + b"Q", id="a persistent id"),
        pytest.param(b"(" + SYSTEM_CALL + b"\x91", id="in a set"),
        pytest.param(b"S'\\x70osix'\nS'sys\\x74em'\n\x93" + b"S'tr\\x75e'\n\x85R", id="escapes in STRING"),
        pytest.param(b"Vp\\u006fsix\nV\\u0073ystem\n\x93" + text("true") + b"\x85R", id="escapes in UNICODE"),
    ],
)
def test_a_call_is_found_wherever_it_is(body: bytes) -> None:
    assert uses(body) == (SHELL_USE,)


def test_a_line_that_ends_as_on_windows() -> None:
    assert uses(call(b"cposix\r\nsystem\r\n", text("true"))) == (Use("posix\r.system\r", SHELL, "dangerous", True),)


def test_a_name_that_is_not_called() -> None:
    assert uses(g("posix", "system")) == (Use("posix.system", SHELL, "dangerous", False),)
    assert uses(g("mypkg", "Net")) == (Use("mypkg.Net", NAMED, "unknown", False),)


def test_each_name_once_in_order() -> None:
    body = b"(" + call(g("b", "F")) + call(g("a", "f")) + call(g("b", "F")) + g("posix", "system") + b"t"
    assert uses(body) == (
        Use("b.F", OBJECT, "unknown", True),
        Use("a.f", FUNCTION, "unknown", True),
        Use("posix.system", SHELL, "dangerous", False),
    )


# --- every kind of function ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("os.system", SHELL), ("nt.system", SHELL), ("os.popen", SHELL), ("subprocess.getoutput", SHELL),
        ("commands.getoutput", SHELL), ("platform.popen", SHELL), ("asyncio.create_subprocess_shell", SHELL),
        ("subprocess.Popen", PROGRAM), ("os.execv", PROGRAM), ("pty.spawn", PROGRAM), ("pip.main", PROGRAM),
        ("pip._internal.main", PROGRAM), ("webbrowser.open", PROGRAM), ("_posixsubprocess.fork_exec", PROGRAM),
        ("idlelib.pyshell.ModifiedInterpreter.runcommand", PROGRAM), ("torch.utils.collect_env.run", PROGRAM),
        ("asyncio.unix_events._UnixSubprocessTransport._start", PROGRAM), ("ensurepip._run_pip", PROGRAM),
        ("os.remove", SYSTEM), ("posix.unlink", SYSTEM), ("os.environ", SYSTEM),
        ("builtins.exec", SOURCE), ("builtins.eval", SOURCE), ("builtins.compile", SOURCE), ("__builtin__.eval", SOURCE),
        ("__builtin__.execfile", SOURCE), ("code.InteractiveInterpreter", SOURCE), ("timeit.timeit", SOURCE),
        ("cProfile.runctx", SOURCE), ("profile.Profile.run", SOURCE), ("bdb.Bdb.run", SOURCE), ("pdb.run", SOURCE),
        ("doctest.debug_script", SOURCE), ("trace.Trace.run", SOURCE), ("numpy.testing._private.utils.runstring", SOURCE),
        ("torch.jit.unsupported_tensor_ops.execWrapper", SOURCE), ("torch._dynamo.guards.GuardBuilder.get", SOURCE),
        ("torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression", SOURCE),
        ("lib2to3.pgen2.pgen.ParserGenerator.make_label", SOURCE), ("torch._inductor.codecache.compile_file", SOURCE),
        ("types.CodeType", SOURCE), ("types.FunctionType", SOURCE), ("marshal.loads", SOURCE), ("torch.compile", SOURCE),
        ("pandas.eval", SOURCE), ("collections.namedtuple", SOURCE),
        ("runpy.run_module", SCRIPT), ("modulefinder.ModuleFinder", SCRIPT),
        ("builtins.__import__", IMPORT), ("importlib.import_module", IMPORT), ("pydoc.locate", IMPORT),
        ("pkgutil.resolve_name", IMPORT), ("logging.config.dictConfig", IMPORT), ("zipimport.zipimporter", IMPORT),
        ("numpy.core._ufunc_reconstruct", IMPORT), ("torch.fx.graph_module.reduce_package_graph_module", IMPORT),
        ("pickle.loads", PICKLE), ("_pickle.loads", PICKLE), ("cPickle.loads", PICKLE), ("torch.load", PICKLE),
        ("torch.storage._load_from_bytes", PICKLE), ("torch.serialization.load", PICKLE), ("torch.hub.load", PICKLE),
        ("numpy.load", PICKLE), ("numpy.lib.npyio.load", PICKLE), ("joblib.load", PICKLE), ("dill.loads", PICKLE),
        ("shelve.open", PICKLE), ("pandas.read_pickle", PICKLE), ("torch.utils.model_zoo.load_url", PICKLE),
        ("torch.utils.data.datapipes.utils.decoder.basichandlers", PICKLE), ("yaml.unsafe_load", PICKLE),
        ("builtins.open", FILES), ("io.open", FILES), ("shutil.rmtree", FILES), ("pathlib.Path.unlink", FILES),
        ("numpy.save", FILES), ("torch.save", FILES), ("torch.from_file", FILES), ("linecache.getline", FILES),
        ("numpy.fromfile", FILES), ("torch._C._VariableFunctionsClass.from_file", FILES), ("distutils.file_util.write_file", PROGRAM),
        ("socket.create_connection", NETWORK), ("urllib.request.urlopen", NETWORK), ("urllib2.urlopen", NETWORK),
        ("requests.get", NETWORK), ("http.client.HTTPSConnection", NETWORK), ("ssl.get_server_certificate", NETWORK),
        ("torch.distributed.rpc.rpc_sync", NETWORK),
        ("ctypes.CDLL", NATIVE), ("torch.ops.load_library", NATIVE), ("torch.utils.cpp_extension.load", NATIVE),
        ("builtins.map", CALLS), ("itertools.starmap", CALLS), ("functools.reduce", CALLS), ("__builtin__.reduce", CALLS),
        ("copy.deepcopy", CALLS), ("types.DynamicClassAttribute", CALLS),
        ("operator.attrgetter", ATTRIBUTE), ("operator.methodcaller", ATTRIBUTE), ("_operator.itemgetter", ATTRIBUTE),
        ("builtins.setattr", ATTRIBUTE), ("builtins.globals", ATTRIBUTE),
        ("threading.Thread", LATER), ("atexit.register", LATER), ("concurrent.futures.ThreadPoolExecutor", LATER),
        ("sys.setprofile", INSIDES), ("gc.get_objects", INSIDES), ("inspect.currentframe", INSIDES), ("builtins.print", INSIDES),
        ("copyreg.add_extension", INSIDES), ("copy_reg.pickle", INSIDES),
    ],
)  # fmt: skip
def test_what_dangerous_functions_do(name: str, does: str) -> None:
    module, _, function = name.rpartition(".")
    assert one(module, function) == Use(name, does, "dangerous", True)


@pytest.mark.parametrize(
    ("module", "walk", "does"),
    [
        ("shutil", "os.system", SHELL),
        ("torch", "os.system", SHELL),
        ("random", "_os.system", SHELL),
        ("linecache", "os.execv", PROGRAM),
        ("mypkg", "helpers.subprocess.run", PROGRAM),
        ("mypkg", "tools.system", SHELL),
        ("mypkg", "load.__globals__", INSIDES),
        ("mypkg", "Net.__init__.__globals__", INSIDES),
        ("torch.nn.modules.linear", "torch.hub.load", PICKLE),
        ("torch.nn", "Module.__subclasses__", INSIDES),
        ("collections", "OrderedDict.fromkeys.__self__", INSIDES),
        ("pathlib", "Path.write_text", FILES),
        ("numpy", "ndarray.tofile", FILES),
        ("mypkg", "os", SYSTEM),
        ("mypkg", "a." * 30 + "b", INSIDES),
    ],
)
def test_a_path_of_attributes_is_judged_by_what_it_reaches(module: str, walk: str, does: str) -> None:
    body = text(module) + text(walk) + b"\x93"
    assert uses(body + b"(" + text("x") + b"tR") == (Use(f"{module}.{walk}", does, "dangerous", True),)
    assert uses(body) == (Use(f"{module}.{walk}", does, "dangerous", False),)


def test_a_class_is_known_where_it_is_defined_and_not_by_way_of_another_module() -> None:
    assert uses(text("torch.nn.modules") + text("linear.Linear") + b"\x93") == (
        Use("torch.nn.modules.linear.Linear", NAMED, "unknown", False),
    )


# --- calls of calls, and calls by others ---------------------------------------------------------


def test_calling_what_a_call_returns() -> None:
    partial = call(g("functools", "partial"), g("mypkg", "f"))
    assert uses(call(partial)) == (
        Use("functools.partial", "keeps a function and arguments for a later call", "unknown", True),
        Use("mypkg.f", NAMED, "unknown", False),
        Use("functools.partial(…)", RESULT, "dangerous", True),
    )


def test_calling_what_a_call_of_a_call_returns() -> None:
    assert uses(call(call(call(g("mypkg", "F"))))) == (
        Use("mypkg.F", OBJECT, "unknown", True),
        Use("mypkg.F(…)", RESULT, "dangerous", True),
        Use("(…)(…)", RESULT, "dangerous", True),
    )


def test_an_attrgetter_that_is_called() -> None:
    body = call(call(g("operator", "attrgetter"), text("system")), call(g("importlib", "import_module"), text("os")))
    assert uses(body) == (
        Use("operator.attrgetter", ATTRIBUTE, "dangerous", True),
        Use("importlib.import_module", IMPORT, "dangerous", True),
        Use("operator.attrgetter(…)", RESULT, "dangerous", True),
    )


def test_getattr_counts_as_the_path_it_reaches() -> None:
    matmul = call(g("__builtin__", "getattr"), g("torch._C", "_VariableFunctionsClass"), text("matmul"))
    assert uses(matmul) == (
        Use("torch._C._VariableFunctionsClass", LAYER, "known", False),
        Use("torch._C._VariableFunctionsClass.matmul", "is a mathematical function of torch or Python", "known", False),
    )
    assert uses(call(call(g("builtins", "getattr"), g("shutil", "os"), text("system")), text("true"))) == (
        Use("shutil.os", SYSTEM, "dangerous", False),
        Use("shutil.os.system", SHELL, "dangerous", True),
    )


def test_getattr_of_getattr() -> None:
    inner = call(g("builtins", "getattr"), g("mypkg", "Net"), text("forward"))
    assert uses(call(g("builtins", "getattr"), inner, text("__globals__"))) == (
        Use("mypkg.Net", NAMED, "unknown", False),
        Use("mypkg.Net.forward", NAMED, "unknown", False),
        Use("mypkg.Net.forward.__globals__", INSIDES, "dangerous", False),
    )


def test_getattr_of_an_object_is_a_method_of_its_class() -> None:
    method = call(g("builtins", "getattr"), g("mypkg", "Net") + b")\x81", text("hook"))
    assert uses(method) == (
        Use("mypkg.Net", OBJECT, "unknown", True),
        Use("mypkg.Net.hook", NAMED, "unknown", False),
    )
    assert uses(call(method)) == (
        Use("mypkg.Net", OBJECT, "unknown", True),
        Use("mypkg.Net.hook", NAMED, "unknown", False),
        Use("builtins.getattr(…)", RESULT, "dangerous", True),
    )
    assert uses(call(g("builtins", "getattr"), call(g("pathlib", "PosixPath"), text("x")), text("unlink"))) == (
        Use("pathlib.PosixPath", "makes the name of a file, without opening it", "known", True),
        Use("pathlib.PosixPath.unlink", FILES, "dangerous", False),
    )


def test_getattr_that_cannot_be_followed() -> None:
    use = Use("builtins.getattr", ATTRIBUTE, "dangerous", True)
    assert uses(call(g("builtins", "getattr"), call(g("mypkg", "f")), text("x")))[0] == use
    assert uses(call(g("builtins", "getattr"), g("mypkg", "Net"), call(g("mypkg", "f"))))[0] == use
    assert uses(call(g("builtins", "getattr"), g("mypkg", "Net"), text("x" * 300)))[0] == use
    assert uses(g("builtins", "getattr")) == (use._replace(called=False),)


@pytest.mark.parametrize("function", ["_rebuild_from_type", "_rebuild_from_type_v2"])
def test_a_function_of_torch_that_calls_what_it_is_given(function: str) -> None:
    rebuild = g("torch._tensor", function)
    body = call(rebuild, g("posix", "system"), g("torch", "Tensor"), text("true") + b"\x85", b"}")
    use = Use(f"torch._tensor.{function}", CALLS, "dangerous", True)
    assert uses(body) == (use, SHELL_USE)
    nested = call(
        rebuild, rebuild, g("torch", "Tensor"), b"(" + g("posix", "system") + b"N(" + text("true") + b"tt", b"}"
    )
    assert uses(nested) == (use, SHELL_USE)
    assert uses(call(rebuild, call(g("mypkg", "F")), g("torch", "Tensor"), b")", b"}")) == (
        use,
        Use("mypkg.F", OBJECT, "unknown", True),
        Use("mypkg.F(…)", RESULT, "dangerous", True),
    )


def test_build_that_plants_what_the_next_build_calls() -> None:
    plant = b"}" + text("__setstate__") + g("posix", "system") + b"sb"
    namespace = Use("types.SimpleNamespace", "makes a container of the standard library", "known", True)
    assert uses(g("types", "SimpleNamespace") + b")\x81" + plant) == (namespace, SHELL_USE._replace(called=False))
    assert uses(g("types", "SimpleNamespace") + b")\x81" + plant + text("true") + b"b") == (namespace, SHELL_USE)
    in_slots = b"N}" + text("__setstate__") + g("posix", "system") + b"s\x86b"
    assert uses(g("types", "SimpleNamespace") + b")\x81" + in_slots + text("true") + b"b") == (namespace, SHELL_USE)


@pytest.mark.parametrize(
    ("attribute", "trigger"), [("append", b"Na"), ("extend", b"(Ne"), ("append", b"(Ne"), ("add", b"(N\x90")]
)
def test_build_that_plants_what_another_opcode_calls(attribute: str, trigger: bytes) -> None:
    plant = b"}" + text(attribute) + g("mypkg", "f") + b"sb"
    assert uses(g("mypkg", "Net") + b")\x81" + plant + trigger) == (
        Use("mypkg.Net", OBJECT, "unknown", True),
        Use("mypkg.f", FUNCTION, "unknown", True),
    )


def test_build_of_a_class_changes_it_for_all() -> None:
    forward = call(g("builtins", "getattr"), g("torch.nn", "Linear"), text("forward"))
    assert uses(forward + b"N}" + text("__code__") + b"Ns\x86b")[1:] == (
        Use("torch.nn.Linear.forward", "changes a class, function or module for the whole program", "dangerous", True),
    )


def test_a_new_class_and_the_type_of_a_value() -> None:
    assert uses(call(g("builtins", "type"), b"N")) == (
        Use("builtins.type", "makes a plain value of Python", "known", True),
    )
    assert uses(call(g("builtins", "type"), text("C"), b")", b"}")) == (
        Use("builtins.type", "makes a new class of what the file holds", "dangerous", True),
    )


@pytest.mark.parametrize("maker", ["_reconstructor", "__newobj__", "__newobj_ex__"])
def test_objects_made_by_a_helper(maker: str) -> None:
    body = call(g("copy_reg", maker), g("mypkg", "net"), g("__builtin__", "object"), b"N")
    assert uses(body)[0] == Use("mypkg.net", OBJECT, "unknown", True)
    assert uses(call(g("copy_reg", maker), g("posix", "system"), text("true"))) == (SHELL_USE,)


# --- graph modules: Python source inside ---------------------------------------------------------

IMPORTS = "import torch\nfrom torch import device\nimport torch.fx._pytree as fx_pytree\nNoneType = type(None)\n"
FORWARD = "\n\n\ndef forward(self, x : torch.Tensor, y = None) -> torch.Tensor:\n    a = torch.relu(x);  x = None\n"
PLAIN = "compiles and runs Python source that the file holds: it is imports and one plain forward()"
MORE = "compiles and runs Python source that the file holds, and that is more than a plain forward()"


def graph(code: str, imports: str = IMPORTS) -> Use:
    body = b"}" + text("_code") + text(code) + b"s"
    (use,) = uses(call(g("torch.fx.graph_module", "reduce_graph_module"), body, text(imports)))
    return use


class Traced(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        self.register_buffer("b", torch.ones(2))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.block(x).relu() + self.b
        z = torch.nn.functional.gelu(torch.cat([y, y], dim=-1).to(torch.float16)[:, 0:2])
        return {"z": z, "n": y.shape[0] * 3, "inf": float("inf") * y}


Traced.forward.__annotations__.clear()  # torch.fx writes them into the source, and here they are texts


def test_a_graph_module_that_torch_made(tmp_path: Path) -> None:
    torch.save(torch.fx.symbolic_trace(Traced()), tmp_path / "g.pt")
    found = inspect(data_pkl(tmp_path / "g.pt")).uses
    assert Use("torch.fx.graph_module.reduce_graph_module", PLAIN, "known", True) in found
    assert {use.danger for use in found} == {"known"}


@pytest.mark.parametrize(
    "line",
    [
        'b = getattr(self, "conv/1")(a)',
        "b = self.block.conv.weight",
        "b = a[(slice(None, None, None), slice(0, 2, None))].to(torch.float16, device = device(type='cpu'))",
        "b = torch.ops.aten.add.Tensor(a, 1)",
        "x, y, = fx_pytree.tree_flatten_spec(([x], {}), self._in_spec)",
        "return {'a': a, 'b': [a.shape, -1.0]}",
    ],
)
def test_what_torch_writes_into_a_graph_module(line: str) -> None:
    use = Use("torch.fx.graph_module.reduce_graph_module", PLAIN, "known", True)
    assert graph(f"{FORWARD}    {line}\n") == use


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(f"import os\n{FORWARD}", id="a dangerous import"),
        pytest.param(f"from torch import hub\n{FORWARD}", id="a dangerous import from torch"),
        pytest.param(f"from torch import *\n{FORWARD}", id="import of everything"),
        pytest.param(f"torch.hub.load('x', 'y')\n{FORWARD}", id="a statement beside the function"),
        pytest.param(f"@torch.relu\n{FORWARD.strip()}\n", id="a decorator"),
        pytest.param("def forward(self, x = print()):\n    return x\n", id="a default that calls"),
        pytest.param("def forward(self, x : f()):\n    return x\n", id="an annotation that calls"),
        pytest.param("def forward(self) -> f():\n    return x\n", id="a result that calls"),
        pytest.param("def backward(self):\n    return 1\n", id="another function"),
        pytest.param(f"{FORWARD}\n\ndef more(self):\n    return 1\n", id="two functions"),
        pytest.param(f"{FORWARD}    import os\n", id="an import inside"),
        pytest.param(f"{FORWARD}    eval('1')\n", id="a built-in function"),
        pytest.param(f"{FORWARD}    __import__('os').system('true')\n", id="an import by name"),
        pytest.param(f"{FORWARD}    torch.load('x')\n", id="a dangerous function of torch"),
        pytest.param(f"{FORWARD}    torch.os.system('true')\n", id="a path to a dangerous function"),
        pytest.param(f"{FORWARD}    t = torch\n    t.hub.load('x')\n", id="a module by another name"),
        pytest.param(f"{FORWARD}    t = torch.utils\n    t.cpp_extension.load('x')\n", id="a module inside a module"),
        pytest.param(f"{FORWARD}    a.__class__.__base__\n", id="insides of an object"),
        pytest.param(f"{FORWARD}    getattr(a, '__class__')\n", id="insides by getattr"),
        pytest.param(f"{FORWARD}    getattr(torch, 'hub')\n", id="getattr of a module"),
        pytest.param(f"{FORWARD}    getattr(a, a)\n", id="getattr of what nobody knows"),
        pytest.param(f"{FORWARD}    f = getattr\n", id="getattr by another name"),
        pytest.param(f"{FORWARD}    torch.relu = a\n", id="torch changed"),
        pytest.param(f"{FORWARD}    b = (lambda: a)()\n", id="a function inside"),
        pytest.param(f"{FORWARD}    b = [c for c in a]\n", id="a loop"),
        pytest.param("def forward(self:\n", id="no Python"),
        pytest.param(f"{FORWARD}    b = {'(' * 5000}a{')' * 5000}\n", id="too deep"),
        pytest.param(f"{FORWARD}    b = {'-' * 100_000}1\n", id="much too deep"),
        pytest.param(f"{FORWARD}    b = a{'.b' * 100_000}\n", id="a long path"),
        pytest.param(f"{FORWARD}    b = a{'+a' * 150_000}\n", id="too long"),
        pytest.param(f"{FORWARD}    b = '\0'\n", id="a null"),
        pytest.param("", id="nothing"),
    ],
)
def test_more_than_a_forward(code: str) -> None:
    assert graph(code) == Use("torch.fx.graph_module.reduce_graph_module", MORE, "dangerous", True)


def test_source_that_is_changed_after_it_was_run() -> None:
    evil, plain = text(f"import os\n{FORWARD}"), text(FORWARD)
    body = b"}q\x00" + text("_code") + evil + b"s"
    made = call(g("torch.fx.graph_module", "reduce_graph_module"), body, text(IMPORTS))
    assert uses(made + b"0h\x00" + text("_code") + plain + b"s")[0].does == MORE


def test_source_that_nobody_wrote_down() -> None:
    made = call(g("torch.fx.graph_module", "reduce_graph_module"), call(g("mypkg", "f")), text(IMPORTS))
    assert uses(made)[0] == Use("torch.fx.graph_module.reduce_graph_module", MORE, "dangerous", True)


def test_the_class_that_traces_a_graph_is_called() -> None:
    body = b"}" + text("_code") + text(FORWARD) + b"s" + text("_tracer_cls") + g("mypkg", "Tracer") + b"s"
    assert uses(call(g("torch.fx.graph_module", "reduce_graph_module"), body, text(IMPORTS)))[1:] == (
        Use("mypkg.Tracer", OBJECT, "unknown", True),
    )


# --- what is harmless ----------------------------------------------------------------------------


def data_pkl(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def saved(make: Callable[[], object], protocol: int = 2) -> tuple[Safety, str]:
    """What we say of a file that torch made, and what torch says of it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised, sparse, nested: torch calls each experimental or deprecated
        torch.save(make(), file, pickle_protocol=protocol)
        with zipfile.ZipFile(file) as archive:
            data = archive.read("archive/data.pkl")
        file.seek(0)
        try:
            torch.load(file, weights_only=True)
        except Exception as error:  # noqa: BLE001 - whatever torch raises is a refusal
            return inspect(data), str(error) or repr(error)
    return inspect(data), ""


class Subclass(torch.Tensor):
    pass


def trained() -> dict[str, Any]:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5, "name": "é"}


def with_attribute() -> torch.Tensor:
    made = torch.ones(2)
    made.note = "x"  # type: ignore[attr-defined]
    return made


def ordered() -> Any:
    made = collections.OrderedDict(a=torch.ones(1))
    made._metadata = {"version": 1}  # type: ignore[attr-defined]
    return made


MADE: dict[str, Callable[[], Any]] = {
    "plain": lambda: {"a": torch.ones(2), "b": [1, 2.5, None, True, "x", (1, 2)]},
    "state_dict": lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict(),
    "training": trained,
    "module": lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LSTM(2, 2), torch.nn.ReLU()),
    "lazy": lambda: torch.nn.LazyLinear(2),
    "lazy state": lambda: torch.nn.LazyLinear(2).state_dict(),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "attribute": with_attribute,
    "subclass": lambda: torch.ones(2).as_subclass(Subclass),
    "ordered": ordered,
    "counter": lambda: collections.Counter("aab"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "numpy scalar": lambda: np.float64(1.5),
    "numpy array": lambda: np.arange(3),
    "numpy bool": lambda: {"x": np.bool_(True)},
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset((1, 2)),
    "complex": lambda: 1 + 2j,
    "bytes": lambda: b"ab\xff",
    "bytearray": lambda: bytearray(b"ab"),
    "range": lambda: range(3),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 10, torch.quint8),
    "quantized by channels": lambda: torch.quantize_per_channel(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8
    ),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "csr": lambda: torch.eye(2).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "meta": lambda: torch.ones(2, device="meta"),
    "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "uint16": lambda: torch.ones(2, dtype=torch.uint16),
    "half": lambda: torch.ones(2, dtype=torch.complex32),
    "conj": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "dtype": lambda: torch.float32,
    "size": lambda: torch.Size((1, 2)),
    "device": lambda: torch.device("cpu"),
    "layout": lambda: torch.strided,
    "storage": lambda: torch.ones(2).untyped_storage(),
    "namespace": lambda: argparse.Namespace(lr=0.1),
    "path": lambda: pathlib.PurePosixPath("a/b"),
    "date": lambda: datetime.datetime(2020, 1, 1),
    "partial": lambda: functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "type": lambda: type(None),
    "big": lambda: [2**40, -(2**70), 2**3000],
    "long text": lambda: "x" * 300,
    "scheduler": lambda: torch.optim.lr_scheduler.StepLR(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 1
    ).state_dict(),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", MADE)
def test_torch_takes_what_we_say_it_takes(kind: str, protocol: int) -> None:
    ours, theirs = saved(MADE[kind], protocol)
    assert bool(ours.refusal) == bool(theirs), (ours, theirs)
    asked = re.search(r"Unsupported global: GLOBAL (\S+) was", theirs)
    if asked:
        first = re.search(r"globals?: ([^,]+)", ours.refusal)
        assert first and first[1].removeprefix("builtins.") == asked[1]


@pytest.mark.parametrize("kind", MADE)
def test_nothing_that_torch_writes_is_called_dangerous(kind: str) -> None:
    assert [use for use in saved(MADE[kind])[0].uses if use.danger == "dangerous"] == []


PLAIN_KINDS = ["plain", "state_dict", "training", "parameter", "attribute", "ordered", "quantized", "sparse", "csr"]
PLAIN_KINDS += ["quantized by channels", "nested", "meta", "float8", "uint16", "conj", "size", "storage", "layout"]


@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_plain_tensors_use_nothing(kind: str) -> None:
    assert saved(MADE[kind])[0].uses == ()


def test_a_dtype_is_listed_where_no_tensor_needs_it() -> None:
    use = Use("torch.float32", "stands for a constant of torch", "known", False)
    assert saved(lambda: torch.float32)[0].uses == (use,)


def test_a_whole_module() -> None:
    assert saved(lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))[0] == Safety(
        (
            Use("torch.nn.modules.container.Sequential", LAYER, "known", True),
            Use("__builtin__.set", "makes a container of the standard library", "known", True),
            Use("torch.nn.modules.linear.Linear", LAYER, "known", True),
            Use("torch.nn.modules.activation.ReLU", LAYER, "known", True),
        ),
        "3 globals: torch.nn.modules.container.Sequential, torch.nn.modules.linear.Linear, "
        "torch.nn.modules.activation.ReLU",
    )


def test_a_tensor_of_a_numpy_array_is_known() -> None:
    body = call(
        g("torch._utils", "_rebuild_device_tensor_from_numpy"), b"N", g("torch", "float32"), text("cpu"), b"\x89"
    )
    assert uses(body) == (
        Use("torch._utils._rebuild_device_tensor_from_numpy", "makes a tensor of a numpy array", "known", True),
    )


# --- what torch.load(weights_only=True) says -----------------------------------------------------


def test_the_table_of_torch_is_ours() -> None:
    """Where a newer torch differs, `weights_only` and the prediction must follow it."""
    assert sorted(_weights_only_unpickler._get_allowed_globals()) == sorted(weights_only.ALLOWED)
    added = _weights_only_unpickler._get_user_allowed_globals()  # type: ignore[no-untyped-call]
    assert set(added) >= weights_only.ADDED


def test_every_global_is_named() -> None:
    body = (
        b"(" + g("a", "b") + g("collections", "OrderedDict") + g("__builtin__", "eval") + g("a", "b") + g("posix", "x")
    )
    assert inspect(b"\x80\x02" + body + b"t.").refusal == "3 globals: a.b, builtins.eval, posix.x"
    assert inspect(b"\x80\x02" + g("a", "b") + b".").refusal == "1 global: a.b"


OUTSIDE = "it refers to something outside"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"]\x94.", "opcode MEMOIZE, which torch does not read here (byte 3)"),
        (b"L1L\n.", "opcode LONG, which torch does not read here (byte 2)"),
        (b"I1\n.", "opcode INT, which torch does not read here (byte 2)"),
        (text("a") + text("b") + b"\x93.", "opcode STACK_GLOBAL, which torch does not read here (byte 14)"),
        (b"NQ.", f"{OUTSIDE} by what is no tuple (byte 3)"),
        (text("module") + b"\x85Q.", f"{OUTSIDE} that is no storage (byte 14)"),
        (g("torch", "float32") + b")R.", "it calls torch.float32 (byte 18)"),
        (call(call(g("torch", "device"), text("cpu"))) + b".", "it calls what is no allowed global (byte 29)"),
        (g("torch", "FloatStorage") + b")\x81.", "it makes an object of torch.FloatStorage (byte 23)"),
        (call(g("builtins", "set")) + text("x") + b"b.", "it sets the state of a builtins.set (byte 25)"),
        (call(g("collections", "OrderedDict")) + b"Na.", "it appends to a collections.OrderedDict (byte 31)"),
        (call(g("collections", "OrderedDict")) + b"(Ne.", "it appends to a collections.OrderedDict (byte 32)"),
        (call(g("builtins", "set")) + b"NNs.", "it sets items of a builtins.set (byte 21)"),
        (call(g("builtins", "set")) + b"(NNu.", "it sets items of a builtins.set (byte 22)"),
        (b"U\x01\xff.", "it has text that is not UTF-8 (byte 2)"),
    ],
)
def test_other_reasons(body: bytes, why: str) -> None:
    data = b"\x80\x02" + body
    assert inspect(data).refusal == why
    with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError, UnicodeDecodeError)):
        _weights_only_unpickler.load(io.BytesIO(data), encoding="utf-8")


def test_only_the_first_reason_counts() -> None:
    assert inspect(b"\x80\x02" + g("a", "b") + b"0I1\n.").refusal == "1 global: a.b"
    assert inspect(b"\x80\x02I1\n0" + g("a", "b") + b".").refusal.startswith("opcode INT")


# --- damaged and hostile -------------------------------------------------------------------------


def test_damage_behind_something_dangerous() -> None:
    with pytest.raises(FormatError) as caught:
        inspect(b"\x80\x02" + SYSTEM_CALL + b"0\xff")
    assert str(caught.value) == (
        "pickle is damaged: it has an opcode that no pickle has (byte 29, opcode 0xff); "
        "do not load it: before that it names posix.system, which runs a shell command"
    )


def test_damage_alone() -> None:
    with pytest.raises(FormatError) as caught:
        inspect(b"\x80\x02N0\xff")
    assert str(caught.value) == "pickle is damaged: it has an opcode that no pickle has (byte 4, opcode 0xff)"


def test_a_pickle_behind_another() -> None:
    first = pickle.dumps({"a": 1}, 2)
    assert inspect(first + SYSTEM_CALL + b".", len(first)).uses == (SHELL_USE,)


SIZE = 30_000
LONG = text("x" * SIZE)
WORDY = g("m" * SIZE, "F")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(WORDY + b"q\x00" + b"0h\x00)R" * SIZE, id="a long name called often"),
        pytest.param(WORDY + b"q\x00)Rq\x01" + b"0h\x01)R" * SIZE, id="the result of a long name called often"),
        pytest.param(b"cm\nF\n" + b")R" * SIZE, id="calls of calls"),
        pytest.param(
            b"}q\x00(" + b"NN" * SIZE + b"u0cm\nF\n)\x81" + b"h\x00b" * SIZE, id="a big state given often"
        ),
        pytest.param(
            g("builtins", "getattr") + b"q\x000" + g("m", "F") + b"q\x010" + text("a") + b"q\x020h\x01"
            + b"q\x030h\x00h\x03h\x02\x86R" * SIZE,
            id="getattr of getattr",
        ),
        pytest.param(
            g("torch.fx.graph_module", "reduce_graph_module") + b"q\x000}" + text("_code") + LONG + b"s" + text("")
            + b"\x86q\x01" + b"0h\x00h\x01R" * SIZE,
            id="one source, often",
        ),
        pytest.param(
            g("torch._tensor", "_rebuild_from_type_v2") + b"q\x000)" + b"q\x010(h\x00Nh\x01Nt" * SIZE + b"q\x02"
            + b"0h\x00h\x02R" * SIZE,
            id="a long chain of functions that call functions",
        ),
        pytest.param(g("torch", "a." * SIZE + "b"), id="a long path"),
        pytest.param(
            g("builtins", "getattr") + b"q\x000" + g("m", "F") + b"q\x010T" + struct.pack("<I", SIZE) + b"a" * SIZE + b"q\x02"
            + b"0h\x00h\x01h\x02\x86R" * SIZE,
            id="getattr of a long old text",
        ),
    ],
)  # fmt: skip
def test_work_is_bounded(body: bytes) -> None:
    """Each takes minutes where work grows with the square of the size."""
    assert len(inspect(b"\x80\x02" + body + b".").uses) <= 202


@pytest.mark.parametrize("old", [False, True])
def test_a_long_name_that_is_looked_up_often(old: bool) -> None:
    """The notes of each would take its length, and thirty thousand of them all memory."""
    long = b"T" + struct.pack("<I", SIZE) + b"m" * SIZE if old else text("m" * SIZE)
    body = long + b"q\x00" + b"".join(b"0h\x00" + text(str(i)) + b"\x93" for i in range(SIZE))
    with pytest.raises(FormatError) as caught:
        inspect(b"\x80\x02" + body + b".")
    assert str(caught.value) == (
        "pickle is damaged: it looks up longer names than it can hold (byte 32,754, opcode STACK_GLOBAL); "
        "do not load it: it hides what it does from whoever looks into it"
    )


# --- checkpoints that other projects ship --------------------------------------------------------

REAL = os.environ.get("PARAMCTL_REAL", "")


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="no real checkpoint is there: they are fetched by 'pytest -m real'")
def test_real_checkpoints() -> None:
    found = [path for path in sorted(Path(REAL).rglob("*")) if path.is_file() and ".wheels" not in path.parts]
    for path in filter(zipfile.is_zipfile, found):
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "data.pkl" not in names or "constants.pkl" in names:
            continue
        safety = inspect(data_pkl(path))
        try:
            torch.load(path, weights_only=True, map_location="cpu")
            theirs = ""
        except pickle.UnpicklingError as error:
            theirs = str(error)
        assert bool(safety.refusal) == bool(theirs), path
        assert [use for use in safety.uses if use.danger == "dangerous"] == [], path
