"""Values that readers stumble over: numbers at the edges of machine words, odd texts, and the names that torch pickles."""

from __future__ import annotations

from random import Random
from typing import TypeVar

T = TypeVar("T")

EDGES = (0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 4095, 4096, 65535, 65536)
BITS = (31, 32, 33, 40, 53, 61, 62, 63, 64, 65, 128)

TEXTS = (
    "", "0", "1", "2", "-1", "00", "a", ".", "..", "a.b", "a/b", "../a", "/a", "0.weight", "weight", "bias", "cpu", "cuda:0", "meta",
    "storage", "module", "state_dict", "model", "state", "param_groups", "params", "exp_avg", "step", "_parameters", "_buffers",
    "_modules", "_metadata", "training", "normalized_shape", "_non_persistent_buffers_set", "_flat_weights", "_code", "_graphmodule_cls_name",
    "fqn", "offset", "length", "relative_path", "offsets", "sizes", "size", "chunks", "properties", "storage_data",
    "state_dict_metadata", "planner_data", "torch.strided", "__torch__.Net", "dtype", "shape", "data_offsets", "F32", "BF16",
    "F8_E4M3", "F4", "I64", "BOOL", "__metadata__", "format", "pt", "weight_map", "metadata", "total_size", "DCP_SHARDING_INFO",
    "little", "big", "\u202e", "\x1b[31m", "\n", "\ud800", "é", "[/x]", "x" * 300,
)  # fmt: skip

NAMES = tuple(
    tuple(text.split())
    for text in """
    torch._utils _rebuild_tensor|torch._utils _rebuild_tensor_v2|torch._utils _rebuild_tensor_v3|torch._utils _rebuild_parameter
    torch._utils _rebuild_parameter_with_state|torch._utils _rebuild_qtensor|torch._utils _rebuild_sparse_tensor
    torch._utils _rebuild_nested_tensor|torch._utils _rebuild_meta_tensor_no_storage|torch._utils _rebuild_wrapper_subclass
    torch._utils _rebuild_device_tensor_from_numpy|torch._utils _rebuild_device_tensor_from_cpu_tensor
    torch._utils _rebuild_sparse_csr_tensor|torch._tensor _rebuild_from_type_v2|torch._tensor _rebuild_from_type
    torch.jit._pickle build_intlist|torch.jit._pickle build_tensor_from_id|torch.jit._pickle restore_type_tag
    torch.storage UntypedStorage|torch.storage TypedStorage|torch FloatStorage|torch DoubleStorage|torch ByteStorage
    torch BFloat16Storage|torch QInt8Storage|torch Size|torch device|torch dtype|torch float32|torch bfloat16|torch int8|torch bits8
    torch float8_e4m3fn|torch float4_e2m1fn_x2|torch Tensor|torch per_tensor_affine|torch per_channel_affine
    torch.nn.parameter Parameter|torch.nn.parameter Buffer|torch.nn.parameter UninitializedParameter
    torch.serialization _get_layout|torch.nn.modules.linear Linear|torch.nn.modules.container Sequential
    torch.nn.modules.normalization LayerNorm|torch.nn.modules.rnn LSTM|torch.nn.modules.batchnorm BatchNorm1d
    torch.fx.graph_module reduce_graph_module|torch.fx.graph_module reduce_package_graph_module
    torch.distributed.tensor DTensor|torch.distributed.checkpoint.metadata Metadata
    torch.distributed.checkpoint.metadata TensorStorageMetadata|torch.distributed.checkpoint.metadata BytesStorageMetadata
    torch.distributed.checkpoint.metadata ChunkStorageMetadata|torch.distributed.checkpoint.metadata MetadataIndex
    torch.distributed.checkpoint.metadata TensorProperties|torch.distributed.checkpoint.filesystem _StorageInfo
    collections OrderedDict|collections defaultdict|builtins set|builtins getattr|builtins eval|__builtin__ set|builtins range
    builtins complex|builtins bytearray|builtins dict|builtins list|os system|posix system|operator attrgetter|functools partial
    copyreg _reconstructor|copy_reg __newobj__|_codecs encode|numpy dtype|numpy ndarray|numpy.core.multiarray _reconstruct
    numpy.core.multiarray scalar|numpy._core.multiarray _reconstruct|pathlib PosixPath|__torch__ Net|types SimpleNamespace
    """.replace("\n", "|").split("|")
    if text.strip()
)

WORDS = (
    "def forward(self, x):", "import torch", "import os", "from torch import device", "os.system('true')", "getattr(self, '0')", "return x",
    "self.x = x", "lambda: x", "x = [y for y in x]", "torch.ops.aten.add", "__class__", "class Net(Module):", "__parameters__ = []",
    "__buffers__ = []", "weight : Tensor", "(", ")", "[", "]", ":", "=", "#", "'", '"""', "\\", "\t", "  ", ";", "async", "yield", "\x00",
)  # fmt: skip


def number(rng: Random) -> int:
    """Return an integer that counts, shapes and offsets are wrong at; seldom one of thousands of digits."""
    if rng.random() < 0.5:
        return rng.choice(EDGES) * rng.choice((1, 1, 1, -1))
    if rng.random() < 0.02:
        return int(10 ** rng.choice((400, 4290, 4310, 5000)))
    return int(((1 << rng.choice(BITS)) + rng.choice((-1, 0, 1))) * rng.choice((1, 1, 1, -1)))


def span(rng: Random, size: int, longest: int = 8) -> slice:
    """Return a place in a sequence of that size: mostly a short one."""
    start = rng.randrange(size + 1)
    length = rng.randrange(1, longest + 1) if rng.random() < 0.9 else rng.randrange(size + 1)
    return slice(start, start + length)


def rearranged(items: list[T], rng: Random, other: list[T], longest: int = 8) -> None:
    """Delete, repeat, swap or move some items, or bring some of `other`, in place."""
    where = span(rng, len(items), longest)
    held = items[where]
    match rng.randrange(5):
        case 0:
            del items[where]
        case 1:
            items[where.start : where.start] = held * (rng.randrange(2, 60) if rng.random() < 0.05 else 1)
        case 2:
            at = rng.randrange(len(items) + 1)
            items[at:at] = held
        case 3 if items:
            i, j = (rng.randrange(len(items)) for _ in range(2))
            items[i], items[j] = items[j], items[i]
        case _:
            items[where.start : where.start] = other[span(rng, len(other), longest)]
