"""Options against each other and against a machine of so many GPUs."""

from __future__ import annotations

import os

import pytest

from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.machine.devices import Gpu
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.resolve import resolve


def _resolve(line: str, gpus: int = 0) -> Options:
    there = [
        Gpu(visible=str(i), uuid=f"GPU-{i}-{os.getpid()}", name="T4", used_mib=0, total_mib=9)
        for i in range(gpus)
    ]
    options = resolve(parse_line("%%ddp", line), there)
    options.gpu_locks.release()
    return options


@pytest.mark.parametrize(
    ("line", "gpus", "ranks"),
    [
        ("", 0, 2),
        ("", 3, 3),
        ("-g 0,2", 3, 2),
        ("-g none", 3, 2),
        ("-n 5", 0, 5),
        ("-n gpu", 3, 3),
        ("-n auto", 3, 3),
        ("-n auto", 0, os.cpu_count()),
        ("-n cpu --backend gloo", 3, os.cpu_count()),
    ],
)
def test_numbers_of_ranks(line: str, gpus: int, ranks: int) -> None:
    assert _resolve(line, gpus).nproc == ranks


@pytest.mark.parametrize(
    ("line", "gpus", "message"),
    [
        ("-n gpu", 0, "nproc_per_node: gpu needs a GPU, and there is none here: use a number"),
        ("-n gpu -g none", 1, "nproc_per_node: gpu needs a GPU, and none was chosen: use a number"),
        ("-g 3", 0, "gpus: GPU 3 does not exist: no GPU is visible"),
        ("-g 1", 1, "gpus: GPU 1 does not exist: only GPU 0 is visible"),
        ("-g 3", 2, "gpus: GPU 3 does not exist: GPUs 0 to 1 are visible"),
        ("-g 0,0", 2, "gpus: GPU 0 is listed twice"),
        ("--backend nccl", 0, "backend: nccl needs a GPU for each rank, and there is none here"),
        ("-n 4", 1, "nproc_per_node: nccl needs a GPU for each rank, but there are 4 ranks and 1"),
        ("-n 99999999", 0, "nproc_per_node: 99,999,999 ranks are too many for this machine, which"),
    ],
)
def test_contradictions(line: str, gpus: int, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        _resolve(line, gpus)
    assert str(caught.value).startswith(message)
