"""What a name opens: a folder with one checkpoint in it, and a pipe that the shell made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import refused
from safetensors.torch import save_file

from paramctl.errors import FileError, UsageError
from paramctl.formats import opening

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as the Hugging Face hub has it, in one file."""
    (tmp_path / "model").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text('{"tie_word_embeddings": true}')
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "README.md").write_text("# A model")
    (tmp_path / "model" / ".gitattributes").write_text("* -text")
    (tmp_path / "model" / "onnx").mkdir()
    return tmp_path / "model"


def test_the_only_checkpoint_of_a_folder_is_opened(folder: Path) -> None:
    checkpoint = opening.open(str(folder))
    assert (checkpoint.file, [param.path for param in checkpoint.params]) == (str(folder / "model.safetensors"), ["w"])


def test_several_checkpoints_are_named(folder: Path) -> None:
    torch.save({"w": torch.ones(2)}, folder / "optimizer.pt")
    what = f"{folder}: is a directory with several checkpoints (model.safetensors, optimizer.pt); name one of them"
    assert refused(UsageError, opening.open, str(folder)) == what


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-00002-of-00003.bin", "__0_0.distcp"])
def test_a_shard_without_its_index_is_no_whole_checkpoint(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    (folder / ".model-00002-of-00002.safetensors.paramctl-477ac498.tmp").write_bytes(b"")
    what = f"{folder}: is a directory, not a checkpoint file; name a file in it"
    assert refused(FileError, opening.open, str(folder)) == what


def test_a_folder_without_a_checkpoint_is_none(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    what = f"{folder}: is a directory, not a checkpoint file; name a file in it"
    assert refused(FileError, opening.open, str(folder)) == what


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="there is no /dev/fd here")  # noqa: PTH110
@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("paramctl ls <(cat a.pt)", "w\ttensor\tfloat32\t300000\t300000\t1200000\t\n"),
        ("paramctl diff <(cat a.pt) <(cat a.pt) 2>&1", "same: 1 tensor\n"),
        ("paramctl check -q <(cat a.pt) | sed s:/[^:]*:X:", "X: nothing wrong (1 tensor; integrity, health, safety)\n"),
        ("paramctl track <(cat a.pt) <(cat a.pt) --order given | cut -f 4 | cut -c -8", "547.7225\n547.7225\n"),
        ("paramctl set <(cat a.pt) 'w = 2' -q | paramctl show - 'w[0]' --json | grep -c 2.0", "1\n"),
    ],
)
def test_a_pipe_that_the_shell_made_is_read(line: str, out: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(300_000)}, tmp_path / "a.pt")
    paramctl = f'paramctl() {{ {sys.executable} -m paramctl "$@"; }}; '
    done = subprocess.run(
        ["bash", "-c", paramctl + line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (out, "")


def test_any_other_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    what = f"{tmp_path / 'pipe'}: is a named pipe, not a checkpoint file; pipe it in and name '-'"
    assert refused(FileError, opening.open, str(tmp_path / "pipe")) == what
