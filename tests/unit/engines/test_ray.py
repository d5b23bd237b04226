"""What is asked of Ray's nodes, what its driver says, and the streams of a node; no Ray runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddp_magic.engines import ray
from ddp_magic.engines.ray_driver import Driver, loss, why
from ddp_magic.engines.ray_node import Node
from tests.limits import HANG_S

HALF = {"Alive": True, "Resources": {"CPU": 2.0}}
WHOLE = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}
DEAD = {"Alive": False, "Resources": {"CPU": 4.0, "GPU": 2.0}}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--nope"], "unrecognized arguments: --nope: use --address, and for each node"),
        (["--num-gpus", "many"], "argument --num-gpus: 'many' is not a number from 0 on: use"),
        (["--num-cpus", "-1"], "argument --num-cpus: '-1' is not a number from 0 on"),
        (["--num-cpus=nan"], "argument --num-cpus: 'nan' is not a number from 0 on"),
        (["--num-gpus=inf"], "argument --num-gpus: 'inf' is not a number from 0 on"),
        (["--resources", '{"fast": -1}'], "--resources: fast: -1 is not a number from 0 on"),
        (["--resources", '{"a": 1, "b": "x"}'], "--resources: b: 'x' is not a number from 0 on"),
        (["--resources", '{"a": true}'], "--resources: a: True is not a number from 0 on"),
        (["--resources", '{"a": NaN}'], "--resources: a: nan is not a number from 0 on"),
        (["--resources", "{"], "argument --resources: invalid loads value"),
        (["--resources", "3"], "--resources is not a JSON object"),
        (["--num"], "unrecognized arguments: --num"),
    ],
)
def test_arguments_that_cannot_be_used(words: list[str], problem: str) -> None:
    assert ray.problem_of(words).startswith(problem)


def test_arguments_that_can_be_used() -> None:
    words = ["--num-cpus=2", "--num-gpus", "4", "--resources", '{"fast": 1}', "--address", "a:1"]
    assert ray.problem_of(words) == ""
    assert ray.problem_of([]) == ""
    assert ray.problem_of(["--num-cpus", "0.5", "--num-gpus=0"]) == ""


@pytest.mark.parametrize(
    ("nodes", "count", "words"),
    [
        ([WHOLE, HALF, DEAD], 2, "2 nodes with 4 CPU, 1 GPU each are needed, and 1 of its 2 nodes"),
        ([HALF], 1, "a node with 4 CPU, 1 GPU is needed, and 0 of its 1 nodes have that"),
        ([WHOLE, WHOLE], 2, "2 nodes with 4 CPU, 1 GPU each are needed, and others use them"),
    ],
)
def test_why_a_run_waits(nodes: list[dict[str, object]], count: int, words: str) -> None:
    assert words in why(nodes, count, {"CPU": 4.0, "GPU": 1.0})


class FakeCluster:
    """A Ray whose nodes are all up; some are free.

    Attributes:
        asked: The sizes of the groups that were asked for, in order.
        groups: Those that are there.
    """

    def __init__(self, nodes: int, free: int) -> None:
        self.util = SimpleNamespace()
        self.asked: list[int] = []
        self.groups: list[SimpleNamespace] = []
        self._nodes, self._free = nodes, free

    def nodes(self) -> list[dict[str, object]]:
        return [WHOLE] * self._nodes

    def placement_group(self, bundles: list[Any], strategy: str) -> SimpleNamespace:
        assert strategy == "STRICT_SPREAD"
        count = len(bundles)
        self.asked.append(count)
        group = SimpleNamespace(bundle_count=count, wait=lambda _s: count <= self._free)
        self.groups.append(group)
        return group

    def remove_placement_group(self, group: SimpleNamespace) -> None:
        self.groups.remove(group)


@pytest.mark.parametrize(
    ("nodes", "free", "asked"),
    [(4, 4, [4]), (4, 2, [4, 3, 2]), (2, 2, [2]), (9, 9, [4]), (1, 1, [1])],
)
def test_of_a_range_the_nodes_that_are_free_are_taken(
    monkeypatch: pytest.MonkeyPatch, nodes: int, free: int, asked: list[int]
) -> None:
    """More than there are is not asked for; what cannot be had is given back."""
    cluster = FakeCluster(nodes, free)
    for name in ("ray", "ray.util", "ray.util.placement_group"):
        monkeypatch.setitem(sys.modules, name, cast("Any", cluster))
    need = {"num_cpus": 1, "num_gpus": 0, "resources": {}}
    group = Driver(cluster, {"nnodes": 4, "min_nodes": 1, **need}, -1, -1)._reserve()
    assert cluster.asked == asked
    assert cluster.groups == [group]


def test_the_driver_says_what_it_waits_for() -> None:
    """Its other lines are logged."""
    log: list[bytes] = []
    script = f"echo '{ray.WAITS}a node'>&2; echo other>&2; read word"
    job = ray.RayJob(["sh", "-c", script], {}, log.append)
    deadline = time.monotonic() + HANG_S
    while not log and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.waits_for() == "a node"
    job.running("07")
    assert (job.name, job.waits_for()) == ("Ray job 07", "")
    job.cancel()
    assert job.wait() != 0
    assert log == [b"other\n"]


def test_what_the_driver_has_lost() -> None:
    """The first loss is the cause; what the kernel has ended is none."""
    script = f"echo '{ray.LOST}n2: it died'>&2; echo '{ray.LOST}n1: the driver ended it'>&2"
    job = ray.RayJob(["sh", "-c", script], {}, lambda _line: None)
    job.wait()
    assert job.fate() == "lost n2: it died"
    assert job.lost() == "n2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: Node\n"
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM",
            "The actor is dead because its worker process has died",
        ),
        ("The actor d5 is unavailable: Socket closed. The task may",
         "its actor cannot be reached: Socket closed"),
        ("The actor d5 is unavailable: The actor is temporarily unavailable: RpcError: RPC error: "
         "Socket closed rpc_code: 14. The task may", "its actor cannot be reached: Socket closed"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_why_ray_has_lost_an_actor(text: str, reason: str) -> None:
    assert loss(RuntimeError(text)) == reason


def test_a_driver_that_does_not_end_is_killed() -> None:
    script = "trap '' TERM; echo up >&2; exec sleep 1000"
    up = threading.Event()
    job = ray.RayJob(["sh", "-c", script], {}, lambda _: up.set())
    assert up.wait(HANG_S)
    job.cancel()
    assert job.wait() == -9


def test_a_nodes_streams() -> None:
    """Whole lines come from it, and its exit code at the end; its stdin ends."""
    node = Node()
    code = "import sys, time; print('a' * 5, end='', flush=True); time.sleep(0.1)\n"
    code += "print('b\\nrest', end='', flush=True)\nfor line in sys.stdin: print(line, end='')\n"
    node.run([sys.executable, "-c", code + "print(); sys.exit(3)"], "/", {})
    assert node.read() == b"aaaaab\n"
    node.write(b"x\n")
    node.end()
    node.end()
    said = b""
    while isinstance(piece := node.read(), bytes):
        said += piece
    assert (said, piece) == (b"restx\n\n", 3)
    node.write(b"too late")


class FakeRay:
    """Ray, as far as the driver carries streams with it: each call is made at once."""

    def __init__(self) -> None:
        self.read = self.write = self
        self.written: list[bytes] = []
        self.said: list[bytes | int] = []

    def remote(self, *data: bytes) -> object:
        self.written += data
        return None if data else self.said.pop(0)

    def get(self, found: object) -> object:
        return found


@pytest.mark.parametrize("code", [0, 1])
def test_the_driver_ends_with_its_nodes(code: int) -> None:
    """The kernel says nothing, and its stream stays open: it waits for the driver's end."""
    node = FakeRay()
    node.said = [b"line\n", code]
    (stdin, kernel), (read_end, output) = os.pipe(), os.pipe()
    driver = Driver(
        node, {"nnodes": 1, "num_cpus": 1, "num_gpus": 0, "resources": {}}, stdin, output
    )
    driver._nodes, driver._running = [node], 1
    carrying = threading.Thread(target=driver._carry, daemon=True)
    os.write(kernel, b"to the node")
    carrying.start()
    deadline = time.monotonic() + HANG_S
    while not node.written and time.monotonic() < deadline:
        time.sleep(0.01)
    driver._read(node, "n1")
    carrying.join(HANG_S)
    assert not carrying.is_alive()
    assert (node.written, os.read(read_end, 100)) == ([b"to the node"], b"line\n")
    for fd in (stdin, kernel, read_end, output):
        os.close(fd)


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "killed by SIGKILL"), (1, "exit code 1"), (0, "")]
)
def test_a_relay_that_ends_before_its_agent_is_a_loss(
    capfd: pytest.CaptureFixture[str], code: int, words: str
) -> None:
    """Also if it has not said a word: Python does not start there."""
    node = FakeRay()
    node.said = [code]
    read_end, output = os.pipe()
    asked = {"nnodes": 2, "num_cpus": 1, "num_gpus": 0, "resources": {}}
    Driver(node, asked, -1, output)._read(node, "n2")
    said = f"{ray.LOST}n2: its relay ended ({words})\n" if words else ""
    assert capfd.readouterr().err == said
    os.close(read_end)
    os.close(output)


def test_the_driver_ends_with_the_kernel() -> None:
    """Its stream has ended."""
    stdin, kernel = os.pipe()
    asked = {"nnodes": 1, "num_cpus": 1, "num_gpus": 0, "resources": {}}
    driver = Driver(FakeRay(), asked, stdin, -1)
    os.close(kernel)
    driver._carry()
    os.close(stdin)
