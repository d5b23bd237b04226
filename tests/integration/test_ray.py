"""What Ray alone has: its queue, its actors, the process that is its driver; on a real one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.kernel import Kernel, pids_in, wait_gone
from tests.integration.ray_cluster import RayCluster
from tests.limits import HANG_S, within

pytestmark = pytest.mark.slow
KERNEL_S = 5.0  # until nothing is left after the kernel's SIGKILL
CELL = "%%ddp -n 1 -N 2 --engine ray -g none\n"
HERE = "import time\nprint('pid=%d;' % os.getpid(), 'pid=%d;' % os.getppid())\ntime.sleep(1000)"


@pytest.fixture(scope="module")
def shared_kernel_env(ray: RayCluster) -> dict[str, str]:
    """The cluster's address."""
    return ray.env


@pytest.fixture(scope="module")
def shared_kernel_prefix(ray: RayCluster) -> tuple[str, ...]:
    """The kernel of this module is on a node of the cluster."""
    return ray.prefix


def _actors(ray: RayCluster) -> list[psutil.Process]:
    """Return the processes that Ray has started for actors of ours, and the relays in them.

    Not those of another cluster: tests that run at the same time have theirs.
    """
    found = []
    for process in ray.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(process.cmdline())
            if words.startswith("ray::Node") or "ddp_magic.node.far_relay" in words:
                found.append(process)
    return found


def test_a_queued_run(kernel: Kernel) -> None:
    """The cell says why it waits; Stop ends it, and takes it out of Ray's queue."""
    message = kernel.start(CELL.replace("-N 2", "-N 3") + "1")
    shown, deadline = "", time.monotonic() + HANG_S
    while "queued by Ray" not in shown and time.monotonic() < deadline:
        shown += json.dumps(kernel.client.get_iopub_msg(timeout=HANG_S)["content"])
    assert "queued by Ray: 3 nodes with 1 CPU each are needed, and 2 of its 2 nodes" in shown
    assert "unless others join, ask for less by -N" in shown
    kernel.interrupt()
    assert kernel.finish(message).error["ename"] == "RunInterrupted"
    assert kernel.run(CELL + "1").status == "ok"


def test_what_a_node_must_have(kernel: Kernel) -> None:
    """Processors and other things, in the words of `ray start`."""
    result = kernel.run("%%ddp -n 1 -N 2 --engine ray --engine-args '--num-cpu 1'\n1")
    assert "--engine-args: unrecognized arguments: --num-cpu" in result.text, result
    result = kernel.run(CELL.replace("-g none", "--engine-args '--num-cpus 4'") + "print('here')")
    assert result.text.count("here") == 2, result


def test_a_cluster_that_is_not_there(kernel: Kernel) -> None:
    """One line."""
    result = kernel.run(CELL.replace("-g none", "--engine-args '--address nowhere:1'") + "1")
    assert result.error["ename"] == "LaunchError", result
    assert "there is no cluster at nowhere:1" in result.traceback, result
    assert "Traceback" not in result.traceback


def test_a_node_that_ray_loses(ray: RayCluster, kernel: Kernel) -> None:
    """It is named, in Ray's words; the other node was ended for it, and has lost nothing."""
    message = kernel.start(CELL + HERE)
    kernel.finish(message, until="[rank 1] pid")
    relays = [p for p in _actors(ray) if "ddp_magic.node.far_relay" in " ".join(p.cmdline())]
    on_n2 = next(p for p in relays if p.environ().get("DDP_MAGIC_RAY_NODE") == "1")
    on_n2.parent().kill()
    result = kernel.finish(message)
    assert "lost n2: The actor is dead because its worker process has died" in result.traceback
    assert "ended without a report" not in result.text


@pytest.mark.parametrize("ends", ["kernel", "driver"])
def test_nothing_is_left(ray: RayCluster, new_kernel: Callable[..., Kernel], ends: str) -> None:
    """After the SIGKILL of the kernel, or of the driver: no process, and no directory."""
    kernel = new_kernel(ray.env, ray.prefix)
    message = kernel.start(CELL + HERE)
    seen, deadline = "", time.monotonic() + HANG_S
    while len(pids_in(seen)) < 4 and time.monotonic() < deadline:
        seen += kernel.finish(message, until="pid=").text
    pids = [*pids_in(seen), *(process.pid for process in _actors(ray))]
    assert len(pids) == 8
    if ends == "kernel":
        kernel.kill()
    else:
        drivers = [p for p in kernel.processes() if "ray_driver" in " ".join(p.cmdline())]
        for driver in drivers:
            driver.kill()
        found = kernel.finish(message).traceback
        assert "lost its driver, which was killed by SIGKILL" in found
    assert wait_gone(pids, KERNEL_S) == []


def test_the_first_lines_say_where_and_no_directory_is_left(
    ray: RayCluster, kernel: Kernel
) -> None:
    """The directories are there until an end of any kind. The kernel does not import ray."""
    before = _node_directories(ray)  # of relays that were killed
    message = kernel.start(CELL + "import time\nprint('here')\ntime.sleep(1)")
    first = kernel.finish(message, HANG_S, until="here")
    assert _node_directories(ray) - before
    result = kernel.finish(message, HANG_S)
    assert result.status == "ok", result
    heads = [c["data"]["text/plain"] for kind, c in first.outputs if kind == "display_data"]
    assert heads[0].startswith("2 ranks = 2 nodes x 1 (ray)")
    assert first.lines[0].startswith("Ray job ")
    assert first.lines[0].endswith(" on n1, n2")
    assert kernel.value("'ray' in __import__('sys').modules") is False
    for body in ("1 / 0", "os._exit(3)"):
        kernel.run(CELL + body)
    began = time.monotonic()
    while (left := _node_directories(ray) - before) and within(time.monotonic() - began, KERNEL_S):
        time.sleep(0.1)
    assert not left


def _node_directories(ray: RayCluster) -> set[Path]:
    return set(ray.temporary.glob("ddp_magic_node-*"))
