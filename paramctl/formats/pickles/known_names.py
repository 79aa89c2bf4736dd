"""What would happen if a name that a pickle holds were looked up and called: by review, without looking it up.

The tables only sort names; none is trusted for not being in them. What no table knows is "unknown", never fine.
Sources: the Python library reference, torch's own code, and the published ways around scanners of pickles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from paramctl.model.dtypes import BY_NAME, BY_STORAGE

Danger = Literal["dangerous", "unknown", "known"]
MAX_WALK = 20  # attributes of attributes; what goes further hides something


class Verdict(NamedTuple):
    """A judgement on a name: how far it is to be trusted, and what it does; `does` is "" if only its use can tell."""

    danger: Danger
    does: str


def canonical(path: str) -> str:
    """Return the name as Python 3 knows it, without a stray end of line."""
    return renamed(path.replace("\r", "").replace(" ", ""))


def renamed(path: str) -> str:
    """Return a Python 2 name as Python 3 spells it: `__builtin__.eval` is `builtins.eval`."""
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    module, _, name = path.rpartition(".")
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, name])
    if module in IMPORT_MAPPING:
        return f"{IMPORT_MAPPING[module]}.{name}"
    first, _, rest = path.partition(".")
    return f"{IMPORT_MAPPING[first]}.{rest}" if rest and first in IMPORT_MAPPING else path


def judge(module: str, name: str) -> Verdict:
    """Return the verdict on `name`, an attribute or a path of attributes of `module`."""
    return judge_path(canonical(f"{module}.{name}"), len(module.split(".")))


def judge_path(path: str, depth: int = 1) -> Verdict:
    """Return the verdict on a whole path, whose first `depth` names are the module that is imported."""
    if path in _KNOWN:
        return Verdict("known", _KNOWN[path])
    if path in _NOTED:
        return Verdict("unknown", _NOTED[path])
    names = path.split(".")
    does = _DANGERS.get(path) or _walked(names[depth:])
    if does:
        return Verdict("dangerous", does)
    known = _known_by_pattern(path, len(names) - depth)
    if known:
        return Verdict("known", known)
    does = _longest(_DANGERS, names) or _FUNCTIONS_ANYWHERE.get(names[-1], "")
    if does:
        return Verdict("dangerous", does)
    return Verdict("unknown", _TORCHSCRIPT if names[0] == "__torch__" else "")


def _known_by_pattern(path: str, walked: int) -> str:
    """Return what a class or function of torch does, if its place is enough to know it; else ""."""
    if _TENSOR_FUNCTIONS.fullmatch(path):
        return _OPERATION
    if walked != 1:  # a class is known where it is defined; a walk may leave through what its module imports
        return ""
    if _TORCH_CLASSES.fullmatch(path) and ".parallel." not in path:
        return _LAYER
    if _SPLIT_CLASSES.fullmatch(path):
        return "describes how a checkpoint is split"
    return _ERROR if _ERRORS.fullmatch(path) else ""


def _walked(names: list[str]) -> str:
    """Return what a path of attributes reaches, whatever module it starts from; "" if nothing is known."""
    if any(name.startswith("__") and name.endswith("__") for name in names):
        return _INSIDES
    for i, name in enumerate(names[:MAX_WALK]):
        alias = name.lstrip("_")  # `random._os` is os
        if alias in _MODULES_ANYWHERE or i < len(names) - 1:
            does = _longest(_DANGERS, [alias, *names[i + 1 :]])
            if does:
                return does
    return _INSIDES if len(names) > MAX_WALK else ""


def is_plain(path: str) -> bool:
    """Return whether tensors, and the dicts that hold them, need this name."""
    return path in _PLAIN or (path in REBUILDS and path not in FROM_NUMPY)


def is_dtype(path: str) -> bool:
    """Return whether a name is a dtype of torch, which some tensors name."""
    return path in DTYPES


def _longest(table: Mapping[str, str], names: list[str]) -> str:
    """Return what the table says of a path, or of the longest part of it that it knows."""
    for n in range(min(len(names), _LONGEST), 0, -1):
        if (found := table.get(".".join(names[:n]))) is not None:
            return found
    return ""


def _table(*rows: tuple[str, str]) -> dict[str, str]:
    return {name: does for does, names in rows for name in names.split()}


def _under(modules: str, names: str) -> str:
    return " ".join(f"{module}.{name}" for module in modules.split() for name in names.split())


_SHELL = "runs a shell command"
_PROGRAM = "runs another program"
_OS = "reaches the operating system: files, processes, environment"
_SOURCE = "runs Python source that the file holds"
_SCRIPT = "runs a Python module or script"
_IMPORT = "imports a module by its name, which runs its code"
_PICKLE = "loads another pickle, which may do anything"
_FILES = "opens, writes or deletes files"
_NETWORK = "opens a network connection"
_NATIVE = "loads or calls native code"
_CALLS = "calls the functions it is given"
_TORCHSCRIPT = "makes an object of a TorchScript class, whose code is in the archive"
_INSIDES = "reaches into the insides of Python, and from there everything"
_ATTRIBUTE = "reaches any attribute of any object"
_LATER = "calls a function at a later moment, or in another thread or process"

# Each name covers everything below it.
_DANGERS = _table(
    (_SHELL, """
     os.system posix.system nt.system os.popen posix.popen nt.popen os.popen2 os.popen3 os.popen4 popen2 commands
     subprocess.getoutput subprocess.getstatusoutput platform.popen asyncio.create_subprocess_shell
     asyncio.subprocess.create_subprocess_shell pydoc.pipepager pydoc.tempfilepager IPython.utils.process
     numpy.distutils.exec_command
     """),
    (_PROGRAM, """
     subprocess _posixsubprocess asyncio.create_subprocess_exec asyncio.subprocess asyncio.unix_events
     asyncio.base_events asyncio.windows_events pty multiprocessing concurrent.futures.process webbrowser antigravity
     pip ensurepip venv idlelib os.execv os.execve os.execl os.execle os.execlp os.execlpe os.execvp os.execvpe
     os.spawnl os.spawnle os.spawnlp os.spawnlpe os.spawnv os.spawnve os.spawnvp os.spawnvpe os.startfile
     os.posix_spawn os.posix_spawnp posix.execv posix.execve posix.posix_spawn posix.posix_spawnp nt.execv nt.execve
     nt.spawnv nt.spawnve nt.startfile test.support sh plumbum pexpect invoke fabric paramiko uuid._get_command_stdout
     distutils setuptools _pytest pytest ctypes.util.find_library _osx_support _aix_support torch.multiprocessing
     torch.utils.collect_env torch.utils.bottleneck torch.distributed.elastic torch.distributed.launch
     torch.distributed.run
     """),
    (_OS, """
     os posix nt posixpath ntpath genericpath msvcrt winreg _winreg _winapi fcntl resource signal _signal syslog pwd
     grp termios tty platform _scproxy getpass
     """),
    (_SOURCE, """
     builtins.exec builtins.eval builtins.execfile builtins.compile builtins.__build_class__ code codeop timeit
     cProfile profile pstats bdb pdb trace doctest compileall py_compile rlcompleter cgitb lib2to3 numpy.testing
     numpy.f2py pandas.eval pandas.core.computation numexpr jinja2 mako IPython sympy.parsing sympy.sympify
     sympy.core.sympify sympy.lambdify sympy.utilities.lambdify torch._dynamo torch._inductor torch.compile
     torch.utils.benchmark torch.utils._config_module torch.jit torch._jit_internal
     torch.fx.experimental.symbolic_shapes torch.fx.graph_module.reduce_deploy_graph_module
     torch.fx.graph_module._forward_from_src torch.fx.graph_module._method_from_src
     torch.fx.graph_module._exec_with_source typing._eval_type typing.get_type_hints typing.ForwardRef
     inspect.get_annotations dataclasses marshal types.FunctionType types.CodeType types.LambdaType
     collections.namedtuple
     """),
    (_SCRIPT, "runpy zipapp modulefinder unittest turtledemo tkinter _tkinter turtle nose"),
    (_IMPORT, """
     builtins.__import__ importlib _frozen_importlib _frozen_importlib_external _imp imp pkgutil zipimport site pydoc
     logging.config xmlrpc.server.resolve_dotted_attribute hydra.utils hydra._internal torch.package pkg_resources
     torch.fx.graph_module.reduce_package_graph_module torch._utils._import_dotted_name torch._lazy encodings
     numpy.core._ufunc_reconstruct numpy._core._ufunc_reconstruct werkzeug.utils django.utils.module_loading
     """),
    (_PICKLE, """
     pickle _pickle cPickle pickletools shelve dill cloudpickle joblib torch.load torch.serialization
     torch.storage._load_from_bytes torch.distributed.distributed_c10d torch.hub torch.utils.model_zoo
     torch.utils.data.datapipes pandas.read_pickle pandas.io.pickle pandas.compat.pickle_compat pandas.read_hdf
     numpy.load numpy.lib.npyio numpy.lib._npyio_impl numpy.lib.format numpy.lib._format_impl yaml ruamel jsonpickle
     ray.cloudpickle skops mlflow keras.models keras.saving tensorflow.keras.models
     lightning.fabric.utilities.cloud_io
     """),
    (_FILES, """
     builtins.open io _io _pyio codecs shutil tempfile glob pathlib fileinput linecache tokenize zipfile tarfile gzip
     bz2 lzma dbm sqlite3 _sqlite3 mailbox netrc filecmp csv configparser ConfigParser mmap plistlib mimetypes
     logging.FileHandler logging.basicConfig logging.handlers xml lxml zoneinfo cgi readline numpy.save numpy.savez
     numpy.savez_compressed numpy.savetxt numpy.loadtxt numpy.genfromtxt numpy.memmap numpy.core.memmap
     numpy._core.memmap numpy.fromregex numpy.DataSource numpy.lib._datasource pandas.io pandas.read_csv
     pandas.read_json pandas.read_sql pandas.read_html pandas.read_xml pandas.read_excel pandas.read_table
     pandas.read_parquet torch.save torch.utils.tensorboard torch.onnx torch.export torch.profiler
     torch.autograd.profiler torch._C.PyTorchFileReader torch._C.PyTorchFileWriter torch._C.import_ir_module
     torch._C.import_ir_module_from_buffer torch._C._load_for_lite_interpreter safetensors h5py.File
     PIL.Image.open imageio fsspec smart_open tensorflow.io tensorflow.raw_ops
     """),
    (_NETWORK, """
     socket _socket ssl _ssl select selectors socketserver http httplib httplib2 urllib urllib2 urllib3 requests httpx
     aiohttp ftplib smtplib smtpd poplib imaplib nntplib telnetlib xmlrpc xmlrpclib SimpleHTTPServer BaseHTTPServer
     wsgiref asyncore asynchat asyncio.streams asyncio.open_connection asyncio.start_server huggingface_hub boto3
     botocore zmq websockets torch.distributed.rpc nltk.downloader nltk.download
     """),
    (_NATIVE, """
     ctypes _ctypes cffi _cffi_backend numpy.ctypeslib numpy.distutils torch.utils.cpp_extension torch.cuda.jiterator
     numba cython Cython pyximport triton llvmlite _testcapi _xxsubinterpreters torch.classes
     """),
    (_CALLS, """
     builtins.map builtins.filter builtins.sorted builtins.min builtins.max builtins.iter builtins.next builtins.apply
     builtins.reduce builtins.property builtins.classmethod builtins.staticmethod builtins.super functools _functools
     itertools operator _operator copy heapq bisect contextlib types numpy.vectorize numpy.frompyfunc
     numpy.apply_along_axis numpy.apply_over_axes numpy.fromfunction numpy.piecewise numpy.fromiter
     torch.utils.checkpoint torch.overrides torch.func torch.vmap torch.autograd.functional torch.library
     torch.testing torch._higher_order_ops torch._functorch torch.utils._pytree.tree_map
     torch.utils._pytree.tree_map_only torch.utils._pytree.tree_map_ unittest.mock
     """),
    (_LATER, """
     threading _thread thread dummy_thread concurrent asyncio sched atexit weakref.finalize faulthandler cmd
     """),
    (_ATTRIBUTE, """
     builtins.getattr builtins.setattr builtins.delattr builtins.hasattr builtins.vars builtins.globals
     builtins.locals builtins.dir operator.attrgetter operator.methodcaller operator.itemgetter operator.call
     _operator.attrgetter _operator.methodcaller _operator.itemgetter _operator.call
     """),
    (_INSIDES, """
     sys gc inspect builtins types.MethodType types.ModuleType traceback opcode _opcode dis symtable _symtable copyreg
     copyreg.pickle torch._guards torch._utils_internal
     """),
)  # fmt: skip
_LONGEST = max(name.count(".") + 1 for name in _DANGERS)

# Modules that are the same whoever imported them, and functions whose name says enough.
_MODULES_ANYWHERE = frozenset(
    ("os", "sys", "posix", "nt", "subprocess", "builtins", "importlib", "shutil", "socket", "ctypes", "pickle", "runpy")
)
_FUNCTIONS_ANYWHERE = _table(
    (_SHELL, "system popen getoutput getstatusoutput exec_command shell_exec"),
    (_PROGRAM, "Popen check_output check_call execv execve execvp execvpe posix_spawn spawnv spawnl"),
    (_SOURCE, "exec execfile runstring run_code eval_expression"),
    (_IMPORT, "import_module import_string import_by_path"),
    (_SCRIPT, "run_path run_module"),
    (_PICKLE, "read_pickle unpickle unsafe_load _load_from_bytes pickle_load"),
    (_NATIVE, "load_library CDLL dlopen LoadLibrary"),
    (_FILES, "from_file tofile fromfile unlink rmtree write_text write_bytes read_text read_bytes rmdir"),
    (_NETWORK, "urlopen urlretrieve download_url load_state_dict_from_url download_url_to_file"),
)  # fmt: skip

_CONTAINER = "makes a container of the standard library"
_VALUE = "makes a plain value of Python"
_ERROR = "makes an exception, without raising it"
_NUMPY = "makes a numpy array, number or dtype"
_ENUM = "stands for a constant of torch"
_LAYER = "makes a part of a torch model or optimizer, without calling it"
_OPERATION = "is a mathematical function of torch or Python"
_DATE = "makes a date or a time"
_PATH = "makes the name of a file, without opening it"

_REBUILDS = (
    "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor",
    "sparse_csr_tensor", "nested_tensor", "meta_tensor_no_storage", "wrapper_subclass", "device_tensor_from_cpu_tensor",
    "device_tensor_from_numpy", "xla_tensor",
)  # fmt: skip
REBUILDS = frozenset(f"torch._utils._rebuild_{kind}" for kind in _REBUILDS)
FROM_NUMPY = frozenset(f"torch._utils._rebuild_{kind}" for kind in ("device_tensor_from_numpy", "xla_tensor"))
JAGGED = "torch.nested._internal.nested_tensor._rebuild_njt"
FROM_TYPE = frozenset(("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"))

_SMALL = [f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)]
DTYPES = frozenset(f"torch.{name}" for name in (*BY_NAME, *_SMALL))
_REAL = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_QSCHEMES = ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric", "channel_affine_float_qparams")
QSCHEMES = frozenset(f"torch.per_{kind}" for kind in _QSCHEMES)
STORAGES = frozenset(
    (
        *(f"torch.{name}" for name in BY_STORAGE),
        *(f"torch.cuda.{name}Storage" for name in (*_REAL, "ComplexDouble", "ComplexFloat")),
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    )
)
_DENSE = [f"torch.{device}{name}Tensor" for device in ("", "cuda.") for name in _REAL]
_SPARSE = [f"torch.{device}sparse.{name}Tensor" for device in ("", "cuda.") for name in _REAL if name != "Bool"]
TENSORS = frozenset(("torch.Tensor", *_DENSE, *_SPARSE))
_OTHER_SPELLINGS = (
    "torch.Storage", "torch._UntypedStorage", "torch._TypedStorage", "torch.storage._UntypedStorage",
    "torch.storage._TypedStorage", "torch._tensor.Tensor", "torch.nn.Parameter",
)  # fmt: skip
_DICTS_AND_SHAPES = (
    "collections.OrderedDict", "torch.Size", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"
)  # fmt: skip
_PLAIN = frozenset((*_DICTS_AND_SHAPES, *_OTHER_SPELLINGS)) | TENSORS | STORAGES | QSCHEMES | FROM_TYPE

# Reviewed, and neither harmless nor harmful by themselves.
_NOTED = _table(
    ("keeps a function and arguments for a later call", "functools.partial"),
    ("compiles and runs Python source that the file holds", "torch.fx.graph_module.reduce_graph_module"),
)
_OPERATORS = """
    add sub mul truediv floordiv mod pow matmul neg pos abs eq ne lt le gt ge and_ or_ xor not_ invert lshift rshift
    iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor getitem is_ is_not contains
"""
_KNOWN = _table(
    (_CONTAINER, """
     builtins.set builtins.frozenset builtins.dict builtins.list builtins.tuple builtins.bytearray builtins.bytes
     collections.Counter collections.defaultdict collections.deque collections.ChainMap collections.UserDict
     collections.UserList collections.UserString itertools.count argparse.Namespace types.SimpleNamespace
     """),
    (_VALUE, """
     builtins.complex builtins.slice builtins.range builtins.int builtins.float builtins.str builtins.bool
     builtins.object builtins.type builtins.NotImplemented builtins.Ellipsis builtins.NoneType types.NoneType
     _codecs.encode decimal.Decimal fractions.Fraction uuid.UUID uuid.SafeUUID copyreg._reconstructor
     copyreg.__newobj__ copyreg.__newobj_ex__ random.Random random._random.Random re._compile re.RegexFlag
     ipaddress.IPv4Address ipaddress.IPv6Address enum.Enum enum.IntEnum string.Template math.inf math.nan math.pi
     math.e math.tau
     """),
    (_DATE, "datetime.date datetime.time datetime.datetime datetime.timedelta datetime.timezone time.struct_time"),
    (_PATH, """
     pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePath pathlib.PurePosixPath pathlib.PureWindowsPath
     pathlib._local.Path pathlib._local.PosixPath pathlib._local.WindowsPath pathlib._local.PurePath
     pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
     """),
    (_OPERATION, _under("builtins", "abs bin chr divmod hex len oct ord pow round sum hash zip")),
    (_OPERATION, _under("operator _operator", _OPERATORS)),
    (_NUMPY, """
     numpy.dtype numpy.ndarray numpy.bool_ numpy.bool numpy.str_ numpy.bytes_ numpy.void numpy.datetime64
     numpy.timedelta64 numpy.complex128 numpy.longdouble numpy.clongdouble numpy.half numpy.single numpy.double
     numpy.intc numpy.uintc
     numpy.longlong numpy.ulonglong numpy.ma.core.MaskedArray numpy.dtypes.Float32DType numpy.dtypes.Float64DType
     numpy.dtypes.Int64DType numpy.dtypes.Int32DType
     """),
    (_NUMPY, _under("numpy.core numpy._core", "multiarray._reconstruct multiarray.scalar numeric._frombuffer")),
    (_NUMPY, _under("numpy", "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64")),
    (_ENUM, """
     torch.device torch.dtype torch.layout torch.memory_format torch.strided torch.sparse_coo torch.sparse_csr
     torch.sparse_csc torch.sparse_bsr torch.sparse_bsc torch.contiguous_format torch.channels_last
     torch.channels_last_3d torch.preserve_format torch.Generator torch._C.Generator torch.half torch.float torch.double
     torch.int torch.long torch.short torch.cfloat torch.cdouble
     """),
    (_ENUM, " ".join(sorted(DTYPES))),
    (_LAYER, """
     torch.nn.parameter.UninitializedParameter torch.nn.parameter.UninitializedBuffer torch.nn.parameter.Buffer
     torch.nn.parallel.data_parallel.DataParallel torch.cuda.amp.grad_scaler.GradScaler
     torch.amp.grad_scaler.GradScaler torch._C._VariableFunctions torch._C._VariableFunctionsClass
     torch.fx._symbolic_trace.Tracer torch.fx.proxy.Tracer
     """),
    ("makes a tensor of a numpy array", " ".join(sorted(FROM_NUMPY))),
    ("makes a jagged tensor", f"""
     {JAGGED} torch.nested._internal.nested_tensor.NestedTensor torch._dynamo.decorators._DimRange
     """),
    ("makes a list or tensor of TorchScript", """
     torch.jit._pickle.build_intlist torch.jit._pickle.build_tensorlist torch.jit._pickle.build_doublelist
     torch.jit._pickle.build_boollist torch.jit._pickle.build_tensor_from_id torch.jit._pickle.restore_type_tag
     """),
)  # fmt: skip

_FUNCTIONS = """
    add sub mul div matmul mm bmm exp log sqrt rsqrt pow abs neg sum mean cat stack flatten reshape relu relu_ relu6
    gelu silu  mish tanh sigmoid softmax log_softmax softplus softsign elu selu celu leaky_relu hardtanh hardswish
    hardsigmoid prelu rrelu  glu logsigmoid tanhshrink softshrink hardshrink threshold dropout linear cross_entropy
    mse_loss l1_loss nll_loss  binary_cross_entropy binary_cross_entropy_with_logits smooth_l1_loss huber_loss
    layer_norm batch_norm group_norm  max_pool2d avg_pool2d adaptive_avg_pool2d interpolate pad normalize
    cosine_similarity square sin cos erf clamp
"""
_OPERATIONS = "|".join(_FUNCTIONS.split())
_TORCH_CLASSES = re.compile(
    r"torch\.(?:optim|nn|nn\.(?:modules|utils|quantized|qat|intrinsic|quantizable)|ao\.nn|ao\.quantization|quantization)"
    r"\.(?:[a-z0-9_]+\.){0,4}_?[A-Z]\w*"
)
_SPLIT_CLASSES = re.compile(r"torch\.distributed\.checkpoint\.(?:metadata|filesystem|planner)\._?[A-Z]\w*")
_ERRORS = re.compile(r"builtins\.[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Iteration|Exit)")
_TENSOR_FUNCTIONS = re.compile(
    rf"torch\.(?:nn\.functional\.|_VF\.)?(?:{_OPERATIONS})"
    r"|torch\._C\._VariableFunctions(?:Class)?\.(?!from_file$)[a-z]\w*"
    r"|torch\._C\._(?:nn|fft|linalg|special|sparse|nested)\.[a-z]\w*"
)
