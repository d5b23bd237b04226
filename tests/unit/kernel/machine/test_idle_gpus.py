"""`-g free:2`: which GPUs are idle, who gets them, and who uses the others."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.resolve import resolve
from ddp_magic.system.gpu_locks import GpuLocks, holder
from tests.gpu_machine import Machine

ME = pwd.getpwuid(os.getuid()).pw_name
Resolve = Callable[[str], Options]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Four GPUs, the second in use."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = Machine.of(tmp_path, [3, 40000, 3, 3])
    made.install()
    return made


@pytest.fixture
def run() -> Iterator[Resolve]:
    """Resolve the options of a line; what its run holds is released at the end."""
    made: list[Options] = []

    def resolved(line: str) -> Options:
        made.append(resolve(parse_line("%%ddp", line)))
        return made[-1]

    yield resolved
    for options in made:
        options.gpu_locks.release()


def _problem(run: Resolve, line: str) -> str:
    with pytest.raises(OptionError) as caught:
        run(line)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "visible", "ranks"),
    [
        ("-g free:1", "0", 1),
        ("-g free:2", "0,2", 2),
        ("-g free:3", "0,2,3", 3),
        ("-g free", "0", 1),
        ("-g free -n 2", "0,2", 2),
        ("-g free -n gpu", "0", 1),
        ("-g free:3 -n 2", "0,2,3", 2),
        ("-g free:1 -n 2 --backend gloo", "0", 2),
    ],
)
@pytest.mark.usefixtures("machine")
def test_the_first_idle_ones_are_chosen(run: Resolve, line: str, visible: str, ranks: int) -> None:
    options = run(line)
    assert (options.visible, options.nproc, options.device) == (visible, ranks, "cuda")


@pytest.mark.usefixtures("machine")
def test_the_first_line_says_which(run: Resolve) -> None:
    assert run("-g free:2").devices == (
        "2 ranks on cuda:0 NVIDIA A100, cuda:1 NVIDIA A100; idle GPUs chosen: 0, 2"
    )


@pytest.mark.usefixtures("machine")
def test_two_runs_never_get_the_same(run: Resolve) -> None:
    assert run("-g free:2").visible == "0,2"
    assert run("-g free:1").visible == "3"
    assert "none of 4 is idle" in _problem(run, "-g free:1")


@pytest.mark.usefixtures("machine")
def test_what_a_run_held_can_be_chosen_after_it(run: Resolve) -> None:
    first = run("-g free:3")
    first.gpu_locks.release()
    assert run("-g free:3").visible == "0,2,3"


def test_a_run_that_names_its_gpus_holds_them_too(run: Resolve, machine: Machine) -> None:
    """Before its ranks use any memory."""
    run("-g 0,2 -n 1")  # its only rank uses GPU 0
    assert run("-g free:2").visible == "2,3"
    assert holder(machine.uuid(1)) is None


@pytest.mark.usefixtures("machine")
def test_a_named_gpu_that_is_held_is_used_with_a_warning(run: Resolve) -> None:
    run("-g free:2")
    options = run("-g 2,3")
    assert options.visible == "2,3"
    assert options.devices.endswith(
        "cuda:0 is held by this notebook's own run or session (%ddp_status lists them)"
    )


def test_busy_ones_are_named_with_owner_and_memory(run: Resolve, machine: Machine) -> None:
    """Memory, processes of this user and of others who cannot be seen, and other runs."""
    machine.processes = [
        f"{machine.uuid(2)}, {os.getpid()}, 1200",
        f"{machine.uuid(3)}, 4194305, [N/A]",  # above the largest pid
    ]
    machine.install()
    held = GpuLocks()
    held.take(machine.uuid(0))
    try:
        assert _problem(run, "-g free:2") == (
            "gpus: 2 idle GPUs are needed, and none of 4 is idle: "
            "GPU 0 (3 of 81,920 MiB in use) is held by this notebook's own run or session "
            "(%ddp_status lists them); "
            "GPU 1 (40,000 of 81,920 MiB in use) is used by processes that cannot be seen from "
            "here; "
            f"GPU 2 (3 of 81,920 MiB in use) is used by {ME} (pid {os.getpid()}, 1,200 MiB); "
            "GPU 3 (3 of 81,920 MiB in use) is used by a process that cannot be seen from here "
            "(pid 4194305): "
            "wait, name GPUs to share them, or use none for the CPU"
        )
    finally:
        held.release()


def test_many_processes_are_counted(run: Resolve, machine: Machine) -> None:
    machine.processes = [f"{machine.uuid(0)}, {os.getpid()}, 1"] * 9
    machine.install()
    problem = _problem(run, "-g free:3")
    assert problem.count(f"used by {ME} (pid {os.getpid()}, 1 MiB)") == 3
    assert "1 MiB), 6 more; GPU 1" in problem


def test_a_refusal_leaves_nothing_locked(run: Resolve, machine: Machine) -> None:
    problem = _problem(run, "-g free:4")
    assert problem.startswith("gpus: 4 idle GPUs are needed, and 3 of 4 are idle: GPU 1 (40,000 of")
    assert problem.endswith(": use free:3, wait, name GPUs to share them, or use none for the CPU")
    assert all(holder(uuid) is None for uuid in machine.uuids)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-g free:2 -n 3", "nproc_per_node: nccl needs a GPU for each rank, but there are 3 ranks"),
        ("-g free:2 --show 2", "show: invalid rank 2: this run has ranks 0 to 1"),
        ("-g free:2 --trace /no/such/t.json", "trace: '/no/such' is not a directory"),
        ("-g free:5", "gpus: 5 idle GPUs are needed, and GPUs 0 to 3 are visible: use free:4 or"),
    ],
)
def test_a_line_that_is_wrong_locks_nothing(
    run: Resolve, machine: Machine, line: str, message: str
) -> None:
    assert _problem(run, line).startswith(message)
    assert all(holder(uuid) is None for uuid in machine.uuids)


def test_only_visible_ones_are_chosen(
    run: Resolve, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers count as CUDA does in the notebook; the mask's own spellings reach the ranks."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"1,{machine.uuid(3)[:9]},2")
    options = run("-g free:1")
    assert options.visible == machine.uuid(3)[:9]
    assert options.devices.endswith("idle GPU chosen: 1")
    assert holder(machine.uuid(3)) is not None, "the lock has the whole UUID"
    assert run("-g free:1").visible == "2"
    assert "1 of 3" not in _problem(run, "-g free:3")


def test_a_gpu_is_the_same_however_it_is_spelled(
    run: Resolve, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"-g {machine.uuid(0)}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{machine.uuid(0)[:9]},2")
    assert run("-g free:1").visible == "2"


def test_a_gpu_that_mig_divides_is_not_chosen(run: Resolve, machine: Machine) -> None:
    machine.mig = (machine.uuid(0),)
    machine.install()
    assert run("-g free:2").visible == "2,3"
    assert "GPU 0 (3 of 81,920 MiB in use) is divided into MIG instances" in _problem(
        run, "-g free:1"
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("", "no GPU is visible with CUDA_VISIBLE_DEVICES=: use none for the CPU"),
        ("-1", "no GPU is visible with CUDA_VISIBLE_DEVICES=-1: use none"),
        ("MIG-1a/2", "free cannot choose among the MIG instances of CUDA_VISIBLE_DEVICES=MIG-1a/2"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_no_visible_gpu(
    run: Resolve, monkeypatch: pytest.MonkeyPatch, mask: str, message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert _problem(run, "-g free:1").startswith(f"gpus: {message}")


def test_a_driver_that_fails(run: Resolve, machine: Machine) -> None:
    (machine.folder / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert _problem(run, "-g free") == "gpus: nvidia-smi finds no GPU: use none for the CPU"


def test_a_machine_without_nvidia_smi(run: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert _problem(run, "-g free:2").startswith(
        "gpus: there is no GPU here, because nvidia-smi is not found: use none for the CPU"
    )


def test_an_old_driver_without_mig_or_processes(run: Resolve, machine: Machine) -> None:
    """Memory alone decides then."""
    gpus = "\n".join(machine.gpus)
    (machine.folder / "nvidia-smi").write_text(
        f'#!/bin/sh\ncase "$1" in *=index,uuid,*) echo "{gpus}";; *) exit 2;; esac\n'
    )
    assert run("-g free:3").visible == "0,2,3"
