"""Engines of several nodes by their names: ours, and those of other packages."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddp_magic.engines import Choice, remote, slurm
from ddp_magic.engines.remote import RemoteAgents
from ddp_magic.wire.relay_frames import Frame, Kind, LineWriter
from ddp_magic.wire.specs import AgentSpec, WorkerSettings
from tests.limits import HANG_S
from tests.unit.engines.test_near_relay import FakeJob
from tests.unit.packages import install_engines


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of others."""
    install_engines(tmp_path, monkeypatch)


def test_ours() -> None:
    assert remote.find("slurm") is slurm


@pytest.mark.usefixtures("packages")
def test_another_packages() -> None:
    assert remote.find("mine").START == {}
    assert remote.names() == ["local", "torchrun", "slurm", "ray", "mine", "broken"]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mien", "unknown engine 'mien': did you mean mine?"),
        ("zzz", "use local, torchrun, slurm, ray, mine or broken"),
        ("broken", "engine 'broken' .* cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_there_is_none(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        remote.find(name)


NEWS = b'{"host": "n%d", "name": "c%d", "job": "5.0", "nodes": 2}'


class Scene:
    """Agents on two nodes whose job is the test's own."""

    def __init__(self, directory: Path, fate: str, **more: Any) -> None:
        self.job = FakeJob()
        self.job.words = fate
        self.chosen: Choice | None = None
        engine = SimpleNamespace(START={}, launch=self._launch)
        worker = WorkerSettings(socket="", directory=str(directory), device="cpu")
        spec = AgentSpec(
            run_id="r", kernel_pid=1, nproc=1, sys_path=(), worker=worker, nnodes=2, **more
        )
        self.agents = RemoteAgents(cast("Any", engine), spec, {}, [])

    def _launch(self, *_: object, choice: Choice | None = None, **__: object) -> FakeJob:
        self.chosen = choice
        return self.job

    def end(self, *said: tuple[int, Kind, int]) -> str | None:
        """Let nodes say something, and the job end; return how it was ended from outside."""
        lines = [LineWriter(node) for node in range(2)]
        for node, kind, number in said:
            payload = NEWS % (node + 1, node + 1) if kind is Kind.NODE else b""
            frame = Frame(node, kind, number, payload).encode()
            os.write(self.job.to_kernel, lines[node].lines(frame))
        self.job.end()
        deadline = time.monotonic() + HANG_S
        while not self.agents.ended() and time.monotonic() < deadline:
            time.sleep(0.001)
        found = self.agents.outside_end()
        return None if found is None else found.text


UP = ((0, Kind.NODE, 0), (1, Kind.NODE, 0))
ENDED = ((0, Kind.ENDED, 1), (1, Kind.ENDED, 1))


@pytest.mark.parametrize(
    ("said", "fate", "text"),
    [
        ((*UP, *ENDED), "was cancelled", None),  # so srun says when a node fails
        ((*UP, (0, Kind.SIGNALED, signal.SIGTERM), *ENDED), "was cancelled", "5.0 was cancelled"),
        (
            (*UP, (0, Kind.SIGNALED, signal.SIGINT), *ENDED),
            "",
            "5.0 was ended from outside, by SIGINT",
        ),
        ((*UP, ENDED[0]), "lost n2: node failure", "5.0 lost n2: node failure"),
        ((*UP, ENDED[0]), "", "5.0 lost its relay on n2"),
        ((), "was cancelled", "the job was cancelled"),
        ((), "", None),
    ],
)
def test_how_a_job_was_ended_from_outside(
    tmp_path: Path, said: tuple[tuple[int, Kind, int], ...], fate: str, text: str | None
) -> None:
    """The cluster's words, if what the nodes say agrees."""
    assert Scene(tmp_path, fate).end(*said) == text


@pytest.mark.parametrize(
    ("said", "fate", "node", "lost", "how"),
    [
        ((*UP, *ENDED), "", "", None, ""),
        ((*UP, ENDED[0]), "lost c2: node failure", "c2", "c2", "5.0 lost c2: node failure"),
        ((), "could not start on c2: no", "c2", "c2", "the job could not start on c2: no"),
        ((*UP, ENDED[0]), "", "", "c2", "n2 was lost"),
        ((*UP, (0, Kind.SIGNALED, signal.SIGTERM), ENDED[0]), "", "", "c2", "n2 was lost"),
        ((*UP, (0, Kind.SIGNALED, signal.SIGTERM)), "", "", None, ""),
        ((*UP, ENDED[0]), "was cancelled", "", None, ""),
    ],
)
def test_which_node_was_lost(
    tmp_path: Path,
    said: tuple[tuple[int, Kind, int], ...],
    fate: str,
    node: str,
    lost: str | None,
    how: str,
) -> None:
    """What the cluster says of it, or what the others say; none if the job was cancelled."""
    scene = Scene(tmp_path, fate)
    scene.job.node = node
    scene.end(*said)
    found = scene.agents.lost()
    assert (found and found.nodes) == (lost and (lost,))
    assert (found.how.text if found else "") == how


def test_too_few_nodes_are_left(tmp_path: Path) -> None:
    """The job without those that were lost could not be started."""
    scene = Scene(tmp_path, "", min_nodes=1, without=("c2", "c1"))
    assert scene.chosen == Choice(1, ("c2", "c1"))
    text = "the run needs at least 1 node, which it cannot have without c2, c1 (lost)"
    assert scene.end() == text


def test_what_the_kernel_ends_was_not_ended_from_outside(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "")
    scene.agents.kill()
    assert scene.end() is None


def test_a_stream_that_breaks(tmp_path: Path) -> None:
    """The nodes may be well, but nobody can say."""
    scene = Scene(tmp_path, "")
    os.write(scene.job.to_kernel, b"\x1e0 5 AAAA\n")
    assert str(scene.end()).startswith("lost the nodes: the output of the nodes arrives incomplete")


def test_a_node_that_is_silent_is_told_before_it_is_given_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "")
    nodes, now = scene.agents._relay.nodes, time.monotonic()
    nodes.hosts = {0: "n1", 1: "n2"}
    nodes.heard = {0: now, 1: now - 3.0}
    assert scene.agents.waits_for() == ""
    nodes.heard = {0: now, 1: now - 12.0}
    assert scene.agents.waits_for() == "n2 has not answered for 12 s"
    nodes.heard = {0: now - 12.0, 1: now - 13.0}
    assert scene.agents.waits_for().startswith("no node has answered for 12 s")
    scene.end()


def test_which_nodes_are_up(tmp_path: Path) -> None:
    """One that hangs while Python starts has said nothing: the others are named."""
    scene = Scene(tmp_path, "")
    nodes = scene.agents._relay.nodes
    assert scene.agents.waits_for() == "waiting for the nodes"
    nodes.count, nodes.hosts = 3, {1: "n2"}
    assert scene.agents.waits_for() == "1 of 3 nodes is up: n2"
    nodes.hosts[0] = "n1"
    assert scene.agents.waits_for() == "2 of 3 nodes are up: n1, n2"
    nodes.count, nodes.hosts = 64, dict.fromkeys(range(50), "n")
    assert scene.agents.waits_for() == "50 of 64 nodes are up"
    scene.end()
