"""Ranks on GPUs. `pytest -m gpu` on a machine that has them; the first test needs two."""

from __future__ import annotations

import pytest
import torch

from tests.integration.kernel import Kernel

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


def test_the_cpu_on_a_gpu_machine(kernel: Kernel) -> None:
    """-g none hides the GPUs."""
    result = kernel.run("%%ddp -n 2 -g none\nprint(device, torch.cuda.is_available())")
    assert sorted(result.lines) == ["[rank 0] cpu False", "[rank 1] cpu False"], result


def test_cuda_in_the_notebook_does_no_harm(kernel: Kernel) -> None:
    """A notebook that has used CUDA itself launches as any other."""
    kernel.run("import torch\nmine = torch.ones(1, device='cuda')")
    result = kernel.run("%%ddp -g 0\nprint(torch.ones(1, device=device).item())")
    assert result.lines == ["[rank 0] 1.0"], result
