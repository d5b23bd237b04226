"""`--check` on real ranks: from torch's dispatcher to the cell's error and its closing line.

What differs and how it is said is tested in tests/unit/display/diagnosis/test_checks.py.
"""

from __future__ import annotations

import re
import textwrap

import pytest

from tests.integration.kernel import Kernel
from tests.mistakes import MISTAKES, SILENT_MISTAKES, ask
from tests.spoiled_programs import FALSE_ALARMS, SHORT_FALSE_ALARMS

MISTAKE = {mistake.name: mistake for mistake in MISTAKES}
RIGHT = {mistake.name: mistake for mistake in FALSE_ALARMS}

DDP = """
model = DDP(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(rank)
for step in range(5):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).pow(2).mean().backward()
    optimizer.step()
print(f"{sum(p.double().sum() for p in model.parameters()).item():.12f}")
"""
FSDP2 = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
mesh = init_device_mesh("cpu", (world_size,))
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 9))
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(rank)
for step in range(3):
    model(torch.randn(4, 8)).pow(2).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
print(f"{sum(p.full_tensor().double().sum() for p in model.parameters()).item():.12f}")
"""


def _checked(summary: str) -> int:
    found = re.search(r"ok · checked (\d+) collectives", summary)
    assert found, summary
    return int(found.group(1))


@pytest.mark.parametrize("mistake", SILENT_MISTAKES, ids=lambda mistake: mistake.name)
def test_a_silent_mistake_fails_the_cell(kernel: Kernel, mistake: object) -> None:
    """With the lines of the cell, in one sentence."""
    assert mistake in SILENT_MISTAKES
    cell = textwrap.dedent(mistake.cell).strip("\n")  # type: ignore[attr-defined]
    result = kernel.run(f"%%ddp -n 3 --check\n{cell}\n")
    assert result.status == "error"
    assert re.search(mistake.says, result.traceback), result  # type: ignore[attr-defined]
    assert "Traceback" not in result.traceback
    assert result.traceback.splitlines()[-1].startswith("MismatchError: ")
    assert "checked" in result.summary


@pytest.mark.parametrize("cell", [DDP, FSDP2], ids=["DDP", "FSDP2"])
def test_a_right_program_computes_the_same(kernel: Kernel, cell: str) -> None:
    plain = kernel.run(f"%%ddp -n 2 --seed 1{cell}")
    checked = kernel.run(f"%%ddp -n 2 --seed 1 --check{cell}")
    assert (plain.status, checked.status) == ("ok", "ok"), (plain, checked)
    numbers = [re.findall(r"-?\d+\.\d{12}", result.text) for result in (plain, checked)]
    assert numbers[0]
    assert numbers[0] == numbers[1]
    assert _checked(checked.summary) > 5
    assert "checked" not in plain.summary


@pytest.mark.parametrize("name", SHORT_FALSE_ALARMS)
def test_a_right_program_is_not_accused(kernel: Kernel, name: str) -> None:
    answer = ask(kernel, RIGHT[name], "--check")
    assert (answer.said, answer.status) == ("", "ok")


def test_ranks_need_not_wait_for_each_other(kernel: Kernel) -> None:
    """A check in front of a collective would let these programs hang."""
    result = kernel.run(
        "%%ddp -n 2 --check\n"
        "a, b = dist.new_group([0, 1]), dist.new_group([0, 1])\n"
        "x, y = torch.ones(2), torch.ones(3)\n"
        "if rank == 0:\n"
        "    work = dist.all_reduce(x, group=a, async_op=True)\n"
        "    dist.all_reduce(y, group=b)\n"
        "    later = dist.all_reduce(torch.ones(1), async_op=True)\n"
        "    dist.send(x, 1)\n"
        "    work.wait(), later.wait()\n"
        "else:\n"
        "    dist.all_reduce(y, group=b)\n"
        "    dist.all_reduce(x, group=a)\n"
        "    dist.recv(x, 0)\n"
        "    dist.all_reduce(torch.ones(1))\n"
    )
    assert result.status == "ok", result
    assert _checked(result.summary) == 3


def test_an_absent_rank_is_named_as_without_it(kernel: Kernel) -> None:
    mistake = MISTAKE["a collective under `if rank == 0`"]
    answer = ask(kernel, mistake, "--check --time-limit 60")
    assert re.search(mistake.says, answer.said), answer


def test_a_ranks_own_error_is_still_the_error(kernel: Kernel) -> None:
    result = kernel.run("%%ddp -n 2 --check\nif rank: 1 / 0\ndist.all_reduce(torch.ones(2))")
    assert "WorkerError: rank 1 raised ZeroDivisionError at line 2" in result.traceback


def test_each_cell_of_a_session_is_checked_or_not(kernel: Kernel) -> None:
    """Numbers go on from the cells before; a cell that fails does not spoil the next."""
    loop = "for i in range(5): dist.all_reduce(torch.ones(2 + (rank == 1 and i == {wrong})))\n"
    first = kernel.run("%%ddp -n 2 -s lab\n" + loop.format(wrong=-1))
    assert first.status == "ok", first
    assert "checked" not in first.summary
    second = kernel.run("%%ddp -s lab --check\n" + loop.format(wrong=-1))
    assert _checked(second.summary) == 5
    third = kernel.run("%%ddp -s lab --check\n" + loop.format(wrong=2))
    assert "MismatchError: collective #13 differs" in third.traceback, third
    fourth = kernel.run("%%ddp -s lab --check\n" + loop.format(wrong=-1))
    assert _checked(fourth.summary) == 5
    kernel.run("%ddp_stop lab")


def test_a_rank_of_a_session_that_has_left_is_not_waited_for(kernel: Kernel) -> None:
    """It keeps its connections, so nobody would notice before the timeout of the collective."""
    kernel.run("%%ddp -n 2 -s lab --check\nimport time; dist.barrier()")
    slow = kernel.run(
        "%%ddp -s lab --check\nif rank == 0: time.sleep(2)\ndist.broadcast(torch.ones(1), 1)"
    )
    assert "checked 1 collective" in slow.summary
    result = kernel.run("%%ddp -s lab --check\nif rank == 0: dist.barrier()")
    assert "rank 0 called barrier #3 (line 2), but rank 1 did not" in result.traceback, result
    assert kernel.run("%%ddp -s lab --check\ndist.barrier()").status == "ok"
    kernel.run("%ddp_stop lab")


def test_launch_checks_too(kernel: Kernel) -> None:
    """The line is that of the function, in the cell that defines it."""
    kernel.run(
        "import ddp_magic\n"
        "def step(n):\n"
        "    import torch, torch.distributed as dist\n"
        "    dist.all_reduce(torch.ones(n + dist.get_rank()))\n"
    )
    result = kernel.run(
        "try:\n"
        "    ddp_magic.launch(step, 3, nproc_per_node=2, check=True)\n"
        "except ddp_magic.MismatchError as error:\n"
        "    print(error)\n"
    )
    assert re.search(
        r"rank 1 called all_reduce of float32 \[4\] \(Cell In\[\d+\], line 4\)", result.text
    ), result
