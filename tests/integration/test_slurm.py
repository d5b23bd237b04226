"""What Slurm alone has: queues, allocations, arguments of srun; on a real one of two nodes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.kernel import Kernel
from tests.integration.slurm_cluster import SlurmCluster
from tests.limits import HANG_S, LONG_S, within

pytestmark = pytest.mark.slow
_OF_NODES = re.compile(r"ddp_magic\.node\.(far_relay|node_agent)")


@pytest.fixture(scope="module")
def shared_kernel_env(slurm: SlurmCluster) -> dict[str, str]:
    """The kernel of this module is on the cluster's login node."""
    return slurm.env


def _cell(body: str, options: str = "") -> str:
    return f"%%ddp -n 2 -N 2 --engine slurm -g none {options}\n{body}"


def test_the_first_line_says_where(kernel: Kernel, slurm: SlurmCluster) -> None:
    """And the second one names the job and its nodes, as the status does."""
    result = kernel.run(_cell("pass"))
    assert result.status == "ok", result
    heads = [c["data"]["text/plain"] for kind, c in result.outputs if kind == "display_data"]
    assert heads[0].startswith("4 ranks = 2 nodes x 2 (slurm)")
    where = result.lines[0]
    assert re.fullmatch(r"Slurm job \d+\.0 on n1, n2", where)
    status = kernel.run("%ddp_status")
    shown = str(status.outputs)
    assert where in shown
    assert "n1 cpu" in shown
    assert "n2 cpu" in shown
    assert slurm.jobs() == []


def test_a_queued_run(kernel: Kernel, slurm: SlurmCluster) -> None:
    """The cell says why it waits; Stop ends it, and takes the job out of the queue."""
    message = kernel.start("%%ddp -n 1 -N 2 --engine slurm --engine-args='--begin=now+1hour'\n1")
    shown, deadline = "", time.monotonic() + HANG_S
    while "BeginTime" not in shown and time.monotonic() < deadline:
        kind_and_content = kernel.client.get_iopub_msg(timeout=HANG_S)
        shown += json.dumps(kind_and_content["content"])
    assert "queued as Slurm job" in shown
    assert len(slurm.jobs("PENDING")) == 1
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.error["ename"] == "RunInterrupted", result
    deadline = time.monotonic() + HANG_S
    while slurm.jobs() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert slurm.jobs() == []


def test_a_time_limit_begins_when_the_job_does(kernel: Kernel, slurm: SlurmCluster) -> None:
    """A job that is held says so, and what starts it; that time does not count."""
    message = kernel.start(
        "%%ddp -n 1 -N 2 --engine slurm --engine-args=-H --time-limit 4\nimport time; time.sleep(1)"
    )
    shown = ""
    while "does not start by itself" not in shown:
        shown += json.dumps(kernel.client.get_iopub_msg(timeout=HANG_S)["content"])
    time.sleep(5.0)
    (job,) = slurm.jobs("PENDING")
    assert f"scontrol release {job} starts it" in shown
    slurm.run("scontrol", "release", job)
    assert kernel.finish(message).status == "ok"


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-p nope", "invalid partition"),
        ("--nonsense", "unrecognized option"),
        ("-w n9", "nvalid node name"),
        ("--mem=999G", "Memory specification can not be satisfied"),
        ("-C gpu", "Invalid feature specification"),
    ],
)
def test_what_slurm_refuses(kernel: Kernel, arguments: str, words: str) -> None:
    """In its own words."""
    result = kernel.run(f"%%ddp -n 1 -N 2 --engine slurm --engine-args '{arguments}'\n1")
    assert result.error["ename"] == "LaunchError", result
    assert words in result.traceback


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("arguments", ["--help", "-N 2-3", "--out=x", "gpu"])
def test_what_is_refused_before(kernel: Kernel, arguments: str) -> None:
    """In one line, and nothing is started."""
    result = kernel.run(f"%%ddp -n 1 -N 2 --engine slurm --engine-args='{arguments}'\n1")
    assert result.error["ename"] == "UsageError", result
    assert result.text.startswith("UsageError: %%ddp --engine-args: "), result
    assert result.text.count("\n") <= 1


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("arguments", ["-l", "--label --job-name=mine", "-v"])
def test_arguments_that_change_the_output(kernel: Kernel, arguments: str) -> None:
    """srun's labels, and its own words, do no harm."""
    result = kernel.run(
        f"%%ddp -n 1 -N 2 --engine slurm --engine-args '{arguments}'\nprint('z' * 5000)"
    )
    assert result.status == "ok", result
    assert result.text.count("z" * 5000) == 2


def test_a_job_that_is_cancelled(kernel: Kernel, slurm: SlurmCluster) -> None:
    """By `scancel` from outside: that is told, and not that ranks were killed."""
    message = kernel.start(_cell("import time\nprint('up')\ntime.sleep(1000)"))
    kernel.finish(message, until="[rank 3] up")
    (job,) = slurm.jobs("RUNNING")
    slurm.run("scancel", job)
    result = kernel.finish(message)
    assert result.error["ename"] == "LaunchError", result
    assert f"LaunchError: Slurm job {job}.0 was cancelled" in result.traceback
    assert "SIGTERM" not in result.traceback


def test_ranks_may_save_before_a_job_ends(kernel: Kernel, slurm: SlurmCluster) -> None:
    """Slurm sends SIGTERM to all processes, and waits (KillWait) before it kills them."""
    message = kernel.start(
        _cell(
            "import signal, time\ndef save(*_):\n    time.sleep(1.5); print('saved'); sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, save)\nprint('up')\ntime.sleep(1000)"
        )
    )
    kernel.finish(message, until="[rank 3] up")
    slurm.run("scancel", *slurm.jobs("RUNNING"))
    result = kernel.finish(message)
    assert "was cancelled" in result.error["evalue"], result
    assert result.text.count("] saved") == 4, result


def test_a_job_that_is_cancelled_in_the_queue(kernel: Kernel, slurm: SlurmCluster) -> None:
    message = kernel.start("%%ddp -n 1 -N 2 --engine slurm --engine-args='-b now+1hour'\n1")
    deadline = time.monotonic() + HANG_S
    while not (jobs := slurm.jobs("PENDING")) and time.monotonic() < deadline:
        time.sleep(0.1)
    slurm.run("scancel", *jobs)
    result = kernel.finish(message)
    assert f"LaunchError: Slurm job {jobs[0]} was cancelled" in result.traceback, result


def test_a_session_whose_job_is_cancelled(kernel: Kernel, slurm: SlurmCluster) -> None:
    """Between two cells: the next one says so, and has new ranks."""
    kernel.run(_cell("x = 1", "--session lab"))
    (job,) = slurm.jobs("RUNNING")
    slurm.run("scancel", job)
    deadline = time.monotonic() + HANG_S
    while slurm.jobs() and time.monotonic() < deadline:
        time.sleep(0.1)
    result = kernel.run(_cell("print('x' in globals())", "--session lab"))
    assert f"its last cell: Slurm job {job}.0 was cancelled" in result.text, result
    assert result.text.count("] False") == 4
    kernel.run("%ddp_stop lab")


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_signals_of_the_users(kernel: Kernel, slurm: SlurmCluster, name: str) -> None:
    """Slurm sends them to all processes of a job, to warn of its end: they are the ranks' own."""
    message = kernel.start(
        _cell(
            "import signal, time\nfound = []\n"
            f"signal.signal(signal.SIG{name}, lambda *_: found.append(1))\nprint('up')\n"
            "while not found: time.sleep(0.05)\ndist.barrier()\nprint('saved')"
        )
    )
    kernel.finish(message, until="[rank 3] up")
    slurm.run("scancel", "-s", name, slurm.jobs("RUNNING")[0])
    result = kernel.finish(message)
    assert result.status == "ok", result
    assert result.text.count("] saved") == 4


def test_in_an_allocation(slurm: SlurmCluster, new_kernel: Callable[..., Kernel]) -> None:
    """A notebook in `salloc`: the run is a step beside it, and ends alone."""
    job = slurm.allocate()
    try:
        kernel = new_kernel({**slurm.env, **slurm.variables_of(job), "SLURM_NTASKS": "1"})
        result = kernel.run(_cell("print(os.environ['SLURM_JOB_ID'])"))
        assert result.status == "ok", result
        assert result.text.count(f"] {job}") == 4
        message = kernel.start(_cell("import time\nprint('up')\ntime.sleep(1000)"))
        kernel.finish(message, until="up")
        kernel.interrupt()
        assert kernel.finish(message).error["ename"] == "RunInterrupted"
        assert slurm.jobs() == [job]
    finally:
        slurm.run("scancel", job)


@pytest.mark.parametrize("kind", ["batch", "step"])
def test_in_a_job(slurm: SlurmCluster, tmp_path: Path, kind: str) -> None:
    """In `sbatch`, or a step of it, as notebooks are: the run is another step, beside it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import ddp_magic\n"
        "run = ddp_magic.run('x = torch.ones(1); dist.all_reduce(x); y = x.item()',\n"
        "    nproc_per_node=1, nnodes=2, engine='slurm', gpus='none', pull='y@all')\n"
        "print('result', run.results)\n"
    )
    step = "srun -N1 -n1 " if kind == "step" else ""
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\n{step}{sys.executable} {program}\necho the job goes on\n")
    said = tmp_path / "said"
    job = slurm.run("sbatch", "--parsable", "-N2", "-n2", "-o", str(said), str(script)).strip()
    deadline = time.monotonic() + HANG_S
    while job in slurm.jobs() and time.monotonic() < deadline:
        time.sleep(0.1)
    text = said.read_text()
    assert "result {'y': [2.0, 2.0]}" in text, text
    assert text.endswith("the job goes on\n")


def test_five_of_five_restarts(kernel: Kernel) -> None:
    """A rank of either node dies in each attempt but the last, between collectives."""
    result = kernel.run(
        _cell(
            "attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
            "for _ in range(20):\n    x = torch.ones(1); dist.all_reduce(x)\n"
            "dist.barrier()\nif attempt < 5 and rank == attempt % 4: os._exit(7)\n"
            "dist.barrier()\nprint('end', x.item(), attempt)",
            "--max-restarts 5",
        ),
        LONG_S,
    )
    assert result.status == "ok", result
    assert result.text.count("] end 4.0 5") == 4
    assert "5 restarts" in result.summary


def _kill_relay(slurm: SlurmCluster, node: str) -> None:
    """Kill the relay on a node of this cluster."""
    for process in psutil.process_iter():
        try:
            env = process.environ()
            here = env.get("SLURM_CONF"), env.get("SLURMD_NODENAME")
            is_relay = "far_relay" in " ".join(_words(process))
            if is_relay and here == (slurm.env["SLURM_CONF"], node):
                process.kill()
        except psutil.Error:
            continue


_WAITS = """\
import time
print(rank, "up in attempt", os.environ["TORCHELASTIC_RESTART_COUNT"])
if world_size == 4: time.sleep(1000)
x = torch.ones(1); dist.all_reduce(x)
"""


def test_one_node_of_two_is_free(kernel: Kernel, slurm: SlurmCluster) -> None:
    """The cell runs there, and says so."""
    slurm.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    try:
        cell = _cell("v = world_size", "--pull v@all").replace("-N 2", "-N 1:2")
        result = kernel.run(cell)
        assert result.status == "ok", result
        assert "2 ranks = 1 node x 2 (slurm, 1 to 2 nodes)" in result.text
        assert re.search(r"Slurm job \d+\.0 on n1$", result.text, re.MULTILINE)
        assert result.summary.startswith("2 ranks · ")
        assert kernel.value("v") == [2, 2]
    finally:
        slurm.run("scontrol", "update", "nodename=n2", "state=resume")
        slurm.wait_until_idle()


def test_a_node_that_slurm_loses(kernel: Kernel, slurm: SlurmCluster) -> None:
    """The run goes on without it; if then none is left, the error says so."""
    slurm.wait_until_idle()
    cell = _cell(_WAITS, "--max-restarts 2").replace("-N 2", "-N 1:2")
    message = kernel.start(cell)
    kernel.finish(message, until="3 up in attempt 0")
    _kill_relay(slurm, "n2")
    result = kernel.finish(message)
    assert result.status == "ok", result
    assert "lost n2: its relay was ended (Killed) · restart 1 of 2" in result.text
    assert result.text.count("up in attempt 1") == 2
    slurm.wait_until_idle()
    message = kernel.start(cell.replace("world_size == 4", "True"))
    kernel.finish(message, until="3 up in attempt 0")
    _kill_relay(slurm, "n2")
    kernel.finish(message, until="1 up in attempt 1")
    _kill_relay(slurm, "n1")
    result = kernel.finish(message)
    assert result.error["ename"] == "LaunchError", result
    problem = "the run needs at least 1 node, which it cannot have without n2, n1 (lost)"
    assert problem in result.error["evalue"]
    assert slurm.jobs("PENDING,RUNNING") == []


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_node_that_is_set_down(kernel: Kernel, slurm: SlurmCluster, node: str) -> None:
    """As by an administrator, or by Slurm when it does not answer: the run goes on without it."""
    slurm.wait_until_idle()
    message = kernel.start(_cell(_WAITS, "--max-restarts 1").replace("-N 2", "-N 1:2"))
    kernel.finish(message, until="3 up in attempt 0")
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        result = kernel.finish(message)
        assert result.status == "ok", result
        assert f"lost {node}: node failure · restart 1 of 1" in result.text
        assert result.text.count("up in attempt 1") == 2
    finally:
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
        slurm.wait_until_idle()


@pytest.mark.parametrize("waits_s", [0.0, 1.0, 3.0])
def test_stop_after_the_loss_of_a_node(kernel: Kernel, slurm: SlurmCluster, waits_s: float) -> None:
    """While the old job ends, while the new one is placed, while its ranks start."""
    slurm.wait_until_idle()
    cell = _cell(_WAITS.replace("world_size == 4", "True"), "--max-restarts 2")
    message = kernel.start(cell.replace("-N 2", "-N 1:2"))
    kernel.finish(message, until="3 up in attempt 0")
    _kill_relay(slurm, "n2")
    time.sleep(waits_s)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.error["ename"] == "RunInterrupted", result
    deadline = time.monotonic() + HANG_S
    while slurm.jobs() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert slurm.jobs() == []


def test_nothing_listens_on_all_interfaces(kernel: Kernel, slurm: SlurmCluster) -> None:
    """The stores are on the address of node 0; nothing else of ours listens."""
    result = kernel.run(
        _cell(
            "import psutil\n"
            "for p in [psutil.Process(), psutil.Process(os.getppid())]:\n"
            "    for c in p.net_connections('inet'):\n"
            "        if c.status == 'LISTEN': print('listens', c.laddr.ip)",
        )
    )
    assert result.status == "ok", result
    found = set(re.findall(r"listens (\S+)", result.text))
    assert found
    assert found <= {slurm.address("n1"), slurm.address("n2")}


def test_nothing_is_left_on_the_nodes(slurm: SlurmCluster, kernel: Kernel) -> None:
    """No directory and no process, after an end of any kind."""
    before = _node_directories(slurm)  # of relays that were killed
    message = kernel.start(_cell("import time\nprint('here')\ntime.sleep(1)"))
    kernel.finish(message, HANG_S, until="here")
    assert _processes_of_nodes(slurm)
    assert _node_directories(slurm) - before
    kernel.finish(message, HANG_S)
    for body in ("1 / 0", "os._exit(3)"):
        kernel.run(_cell(body))
    began = time.monotonic()
    while left := [*_processes_of_nodes(slurm), *(_node_directories(slurm) - before)]:
        assert within(time.monotonic() - began, HANG_S), left
        time.sleep(0.1)


def _node_directories(slurm: SlurmCluster) -> set[Path]:
    return set(slurm.temporary.glob("ddp_magic_node-*"))


def _processes_of_nodes(slurm: SlurmCluster) -> list[psutil.Process]:
    return [p for p in slurm.processes() if _OF_NODES.search(" ".join(_words(p)))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
