"""The command that runs a script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddp_magic.kernel.machine.devices import Gpu
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.script.command import command, folders_of_modules

GPUS = [
    Gpu(visible=name, uuid=f"GPU-{name}", name="H200", used_mib=0, total_mib=1)
    for name in ("4", "5", "6")
]


def _command(line: str, gpus: list[Gpu], folders: list[str] | None = None) -> str:
    return command(parse_line("%%ddp", line), "train.py", gpus, folders or [])


@pytest.mark.parametrize(
    ("line", "gpus", "words"),
    [
        ("-n 4", [], "torchrun --nproc-per-node 4 train.py"),
        ("", [], "torchrun --nproc-per-node 2 train.py"),
        ("", GPUS, "torchrun --nproc-per-node 3 train.py"),
        ("-n gpu", [], "torchrun --nproc-per-node gpu train.py"),
        ("-n auto", GPUS, "torchrun --nproc-per-node auto train.py"),
        ("-g 0,2", GPUS, "CUDA_VISIBLE_DEVICES=4,6 torchrun --nproc-per-node 2 train.py"),
        ("-g 0,2", [], "CUDA_VISIBLE_DEVICES=0,2 torchrun --nproc-per-node 2 train.py"),
        ("-g none", GPUS, "CUDA_VISIBLE_DEVICES= torchrun --nproc-per-node 2 train.py"),
        ("--check", [], "TORCH_DISTRIBUTED_DEBUG=DETAIL torchrun --nproc-per-node 2 train.py"),
        ("--max-restarts 3", [], "torchrun --nproc-per-node 2 --max-restarts 3 train.py"),
        (
            "-N 1:2 -n 8",
            [],
            "torchrun --nnodes 1:2 --rdzv-backend c10d --rdzv-endpoint HOST:29400 "
            "--nproc-per-node 8 train.py",
        ),
        (
            "-n 1 -- --lr 0.1 'a b' -- x",
            [],
            "torchrun --nproc-per-node 1 train.py --lr 0.1 'a b' -- x",
        ),
    ],
)
def test_it_says_what_the_options_say(line: str, gpus: list[Gpu], words: str) -> None:
    assert _command(line, gpus) == words


def test_a_gpu_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match=r"GPU 3 does not exist: GPUs 0 to 2 are visible"):
        _command("-g 3", GPUS)


def test_torchrun_knows_the_options() -> None:
    """Every word before the script is one that this torch accepts."""
    line = _command("-N 2 -n 8 --max-restarts 3", [])
    parse = (
        "import sys; from torch.distributed.run import parse_args; a = parse_args(sys.argv[1:]);"
        "print(a.nnodes, a.nproc_per_node, a.max_restarts, a.rdzv_endpoint, a.training_script)"
    )
    words = line.split()[1:]
    done = subprocess.run(
        [sys.executable, "-c", parse, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "8", "3", "HOST:29400", "train.py"]


def test_where_the_notebook_finds_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that the notebook has added, and its own, if the script is elsewhere."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "here.py").touch()
    (tmp_path / "lib" / "there.py").touch()
    monkeypatch.chdir(tmp_path)
    roots = (sys.prefix, sys.base_prefix)
    usual = [path for path in sys.path if path.startswith(roots)]
    monkeypatch.setattr(sys, "path", ["", *usual, "lib", str(tmp_path / "missing")])
    assert folders_of_modules(tmp_path / "a.py", ["os", "here", "missing"]) == []
    assert folders_of_modules(tmp_path / "lib" / "a.py", ["os", "here", "there"]) == ["."]
    assert folders_of_modules(tmp_path / "a.py", ["here", "there"]) == [str(tmp_path / "lib")]
    assert _command("", [], [".", "/x y"]).startswith("PYTHONPATH='.:/x y' torchrun ")
