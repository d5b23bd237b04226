"""`-g free:N` in several notebooks, on a machine whose `nvidia-smi` shows two GPUs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu_machine import Machine
from tests.integration.kernel import Kernel, Result

HELD = f"held by a run of {pwd.getpwuid(os.getuid()).pw_name}"
CELL = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


@pytest.fixture
def notebook(
    tmp_path: Path, new_kernel: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Kernel]:
    """Makes kernels that see two idle GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    Machine.of(tmp_path, [3, 3]).install()
    return lambda: new_kernel({"PATH": f"{tmp_path}:{os.environ['PATH']}"})


def _gpus(result: Result) -> str:
    assert result.status == "ok", result
    return result.lines[-1].removeprefix("[rank 0] ")


def test_a_gpu_is_held_until_the_session_or_the_kernel_ends(
    notebook: Callable[[], Kernel],
) -> None:
    first, second = notebook(), notebook()
    assert _gpus(first.run(f"%%ddp -g free:1 -s lab\n{CELL}")) == "0"
    assert _gpus(second.run(f"%%ddp -g free:1\n{CELL}")) == "1"
    refused = second.run(f"%%ddp -g free:2\n{CELL}")
    assert refused.status == "error"
    assert (
        "%%ddp --gpus: 2 idle GPUs are needed, and 1 of 2 is idle: GPU 0 (3 of 81,920 MiB in use) "
        f"is {HELD} (pid {first.pid}): use free:1, wait"
    ) in refused.text

    assert _gpus(first.run(f"%%ddp -s lab\n{CELL}")) == "0", "later cells need no lock"
    shared = second.run(f"%%ddp -g 0\n{CELL}")
    assert f"cuda:0 is {HELD} (pid {first.pid})" in str(shared.outputs)
    first.run("%ddp_stop lab")
    assert _gpus(second.run(f"%%ddp -g free:2 -n 1\n{CELL}")) == "0,1"

    first.run(f"%%ddp -g free:2 -n 1 -s lab\n{CELL}")
    first.kill()
    first.manager.provisioner.process.wait()
    assert _gpus(second.run(f"%%ddp -g free:2 -n 1\n{CELL}")) == "0,1"


def test_a_cell_that_fails_before_its_start_holds_nothing(
    notebook: Callable[[], Kernel],
) -> None:
    kernel = notebook()
    for line, cell in (
        ("-g free:2", "1 +"),
        ("-g free:2 -s lab", "f.read()"),
        ("-g free:2 -n 1", "1 / 0"),
    ):
        kernel.run("f = open('/dev/null')")
        assert kernel.run(f"%%ddp {line}\n{cell}").status == "error"
    ran = kernel.run(
        "import ddp_magic\n"
        "try: ddp_magic.run('1 +', gpus='free:2')\n"
        "except ddp_magic.CellSyntaxError: pass\n"
        "try: ddp_magic.launch(lambda: 1 / 0, gpus='free:2', nproc_per_node=1)\n"
        "except ZeroDivisionError: pass\n"
    )
    assert ran.status == "ok", ran
    assert _gpus(kernel.run(f"%%ddp -g free:2 -n 1\n{CELL}")) == "0,1"


def test_a_detached_run_holds_its_gpus_itself(notebook: Callable[[], Kernel]) -> None:
    """Until it ends, whatever becomes of its kernel."""
    first, second = notebook(), notebook()
    started = first.run("%%ddp -g free:1 --detach\nimport time; time.sleep(1000)")
    assert started.status == "ok", started
    assert "until its end it holds: 1 rank on cuda:0" in started.text
    run = started.text.split()[1]
    first.kill()
    first.manager.provisioner.process.wait()
    assert _gpus(second.run(f"%%ddp -g free:1\n{CELL}")) == "1"
    shared = second.run(f"%%ddp -g 0\n{CELL}")
    assert f"cuda:0 is {HELD}" in str(shared.outputs)
    assert f"(pid {first.pid})" not in str(shared.outputs)
    assert "stopped" in second.run(f"%ddp_stop {run}").text
    assert _gpus(second.run(f"%%ddp -g free:2 -n 1\n{CELL}")) == "0,1"
