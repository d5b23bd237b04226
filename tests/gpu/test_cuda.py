"""Ranks on GPUs: `pytest -m gpu tests/gpu` on a machine that has them; the first test needs two."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from ddp_magic.kernel.machine.devices import visible_gpus
from tests.integration.kernel import Kernel, wait_gone
from tests.integration.test_ports import is_loopback, listening
from tests.limits import HANG_S

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_rank_has_its_gpu(kernel: Kernel) -> None:
    """A bare `cuda` means the rank's own GPU, and the default group reduces on it by NCCL."""
    result = kernel.run(
        "%%ddp -n 2\nt = torch.ones(1, device='cuda')\ndist.all_reduce(t)\n"
        "print(device, t.device, t.item(), dist.get_backend(dist.group.WORLD))"
    )
    assert sorted(line.split()[2:5] for line in result.lines) == [
        ["cuda:0", "cuda:0", "2.0"],
        ["cuda:1", "cuda:1", "2.0"],
    ], result


def test_one_gpu(kernel: Kernel) -> None:
    """CUDA works in a rank that was forked, NCCL too, and the status shows its memory."""
    result = kernel.run(
        "%%ddp -g 0\nt = torch.ones(2**20, device=device)\ndist.all_reduce(t)\n"
        "print(device, t.sum().item())\nimport time; time.sleep(1)"
    )
    assert result.lines == ["[rank 0] cuda:0 1048576.0"], result
    status = kernel.run("print(get_ipython().run_line_magic('ddp_status', ''))").text
    assert "on the GPU" in status


def test_nccl_listens_on_loopback_only(kernel: Kernel, shared_kernel_directory: Path) -> None:
    """All ranks are on this machine: nobody on another one can reach NCCL's ports."""
    go = shared_kernel_directory / "go"
    message = kernel.start(
        "%%ddp -g 0\ndist.all_reduce(torch.ones(1, device=device))\nprint('up', flush=True)\n"
        "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)"
    )
    kernel.finish(message, until="up")
    found = listening(psutil.Process(kernel.pid).children(recursive=True))
    go.touch()
    assert kernel.finish(message).status == "ok"
    assert len(found) > 1
    assert [item for item in found if not is_loopback(item[0])] == []


def test_a_session_goes_on_after_a_failed_cell(kernel: Kernel) -> None:
    """Its NCCL group is made anew, and its variables, CUDA tensors too, are kept."""
    kernel.run("%%ddp -g 0 -s lab\nt = torch.full((2,), 3.0, device=device); dist.all_reduce(t)")
    failed = kernel.run("%%ddp -s lab\n1 / 0")
    assert "the process group was re-created" in failed.text, failed
    result = kernel.run("%%ddp -s lab\ndist.all_reduce(t)\nprint(t.tolist(), dist.get_backend())")
    assert result.lines == ["[rank 0] [3.0, 3.0] cpu:gloo,cuda:nccl"], result
    kernel.run("%ddp_stop lab")


def test_a_session_whose_cuda_context_is_lost(kernel: Kernel) -> None:
    """CUDA fails in it until its process ends, which is said; what lies on the CPU comes back."""
    kernel.run("%%ddp -g 0 -s lab\nhistory = [0.5, 0.25]\nx = torch.zeros(4, device=device)")
    failed = kernel.run("%%ddp -s lab\nx[torch.tensor([9], device=device)].sum().item()")
    assert "rank 0 can no longer use its GPU (CUDA error: device-side assert" in failed.text, failed
    assert kernel.run("%%ddp -s lab --pull history\npass").status == "ok"
    assert kernel.value("history") == [0.5, 0.25]
    assert kernel.run("%ddp_stop lab").status == "ok"
    again = kernel.run("%%ddp -g 0 -s lab\nprint(torch.ones(1, device=device).item())")
    assert again.lines == ["[rank 0] 1.0"], again
    kernel.run("%ddp_stop lab")


def test_idle_gpus(new_kernel: Callable[..., Kernel]) -> None:
    """A session holds them from its start to its end; the driver's answers are understood."""
    first, second = new_kernel(), new_kernel()
    line = f"%%ddp -g free:{torch.cuda.device_count()}"
    cell = f"{line} -s lab\nt = torch.ones(2**20, device=device)\nprint(device)"
    assert "[rank 0] cuda:0" in first.run(cell).lines
    refused = second.run(f"{line}\nprint(device)")
    assert f"(pid {first.pid})" in refused.text, refused
    assert "MiB in use) is used by " in refused.text, refused
    first.run("%ddp_stop lab")
    assert "[rank 0] cuda:0" in second.run(f"{line}\nprint(device)").lines


def test_the_cpu_on_a_gpu_machine(kernel: Kernel) -> None:
    """-g none hides the GPUs."""
    result = kernel.run("%%ddp -n 2 -g none\nprint(device, torch.cuda.is_available())")
    assert sorted(result.lines) == ["[rank 0] cpu False", "[rank 1] cpu False"], result


def test_cuda_in_the_notebook_does_no_harm(kernel: Kernel) -> None:
    """A notebook that has used CUDA itself launches as any other."""
    kernel.run("import torch\nmine = torch.ones(1, device='cuda')")
    result = kernel.run("%%ddp -g 0\nprint(torch.ones(1, device=device).item())")
    assert result.lines == ["[rank 0] 1.0"], result


def test_ranks_may_share_a_gpu(kernel: Kernel) -> None:
    """Two ranks and one GPU: NCCL can't, which is said before anything starts; gloo can."""
    refused = kernel.run("%%ddp -n 2 -g 0\nprint(device)")
    assert refused.status == "error", refused
    assert "nccl needs a GPU for each rank" in refused.error["evalue"], refused
    result = kernel.run(
        "%%ddp -n 2 -g 0 --backend gloo\n"
        "model = DDP(torch.nn.Linear(4, 1).to(device), device_ids=[device])\n"
        "model(torch.full((2, 4), rank + 1.0, device=device)).sum().backward()\n"
        "print(device, model.module.weight.grad.tolist())"
    )
    mean = "[[3.0, 3.0, 3.0, 3.0]]"  # of 2 and 4
    assert sorted(result.lines) == [f"[rank {rank}] cuda:0 {mean}" for rank in range(2)], result


def test_running_out_of_memory_is_told(kernel: Kernel) -> None:
    """Rank, line and torch's own sentence; the exception is torch's, and the next cell works."""
    result = kernel.run("%%ddp -g 0\nx = 1\ntorch.empty(2**45, device=device)")
    assert result.status == "error", result
    assert "rank 0 raised OutOfMemoryError at line 3" in result.traceback, result.traceback
    assert kernel.run("%%ddp -g 0\nprint(torch.ones(1, device=device).item())").lines == [
        "[rank 0] 1.0"
    ]


def _used_mib() -> int:
    return sum(gpu.used_mib for gpu in visible_gpus(os.environ))


@pytest.mark.parametrize("end", ["interrupt", "error", "restart"])
def test_nothing_stays_on_the_gpu(new_kernel: Callable[..., Kernel], end: str) -> None:
    """However a cell ends, its ranks are gone, and the memory that they had is free."""
    kernel = new_kernel()
    before = _used_mib()
    started = kernel.start(
        "%%ddp -g 0\nimport os, time\nx = torch.ones(2**30, device=device)\n"
        "print('pid', os.getpid())\n" + ("1 / 0" if end == "error" else "time.sleep(1000)")
    )
    if end == "error":
        text = kernel.finish(started).text
    else:
        text = kernel.finish(started, until="pid ").text
        assert _used_mib() > before + 4000  # the test sees it
        if end == "interrupt":
            kernel.interrupt()
            kernel.finish(started)
        else:
            kernel.manager.restart_kernel(now=True)
            kernel.client.wait_for_ready(timeout=HANG_S)
    pid = int(text.split("pid ")[1].split()[0])
    assert wait_gone([pid], 10) == []
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline and _used_mib() > before + 100:
        time.sleep(0.1)
    assert _used_mib() <= before + 100
