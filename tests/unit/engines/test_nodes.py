"""What is concluded from what the nodes' relays have said, and from their silence."""

from __future__ import annotations

import signal

import pytest

from ddp_magic.engines.nodes import Nodes
from ddp_magic.wire.relay_frames import NodeEnd


@pytest.mark.parametrize(
    ("heard", "ended", "silent"),
    [
        ({0: 100.0, 1: 100.0}, {}, None),
        ({0: 100.0, 1: 69.0}, {}, 1),
        ({0: 100.0, 1: 80.0}, {}, None),
        ({0: 60.0, 1: 60.0}, {}, None),
        ({0: 100.0, 1: 60.0}, {1: NodeEnd.REPORTED}, None),
        ({0: 60.0, 1: 60.0}, {0: NodeEnd.REPORTED}, 1),
        ({0: 60.0, 1: 60.0}, {0: NodeEnd.REPORTED, 1: NodeEnd.REPORTED}, None),
        ({}, {}, None),
    ],
)
def test_a_node_that_is_gone(
    heard: dict[int, float], ended: dict[int, NodeEnd], silent: int | None
) -> None:
    """It is silent and others are not; if all are, the job may be suspended, or ends."""
    assert Nodes(heard=heard, ended=ended).silent(100.5, 30.0) == silent


def test_a_signal_before_the_end_of_an_agent_came_from_outside() -> None:
    """Later ones follow from that end: srun kills the other nodes."""
    nodes = Nodes(hosts={0: "n1", 1: "n2"})
    nodes.note_signal(signal.SIGTERM)
    nodes.note_signal(signal.SIGKILL)
    nodes.ended = {0: NodeEnd.REPORTED, 1: NodeEnd.REPORTED}
    assert nodes.outside_words() == "was ended from outside, by SIGTERM"
    nodes = Nodes(hosts={0: "n1", 1: "n2"}, ended={1: NodeEnd.DIED})
    nodes.note_signal(signal.SIGTERM)
    nodes.ended[0] = NodeEnd.REPORTED
    assert nodes.outside_words() == ""


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({0: NodeEnd.REPORTED}, "lost its relay on n2"),
        ({}, "lost its relays on n1, n2"),
        ({0: NodeEnd.REPORTED, 1: NodeEnd.DIED}, ""),
        ({0: NodeEnd.TOLD, 1: NodeEnd.DIED}, ""),
        ({0: NodeEnd.TOLD, 1: NodeEnd.TOLD}, "was ended from outside"),
        ({0: NodeEnd.TOLD}, "lost its relay on n2"),
    ],
)
def test_a_relay_that_did_not_say_its_end_was_lost(ended: dict[int, NodeEnd], words: str) -> None:
    assert Nodes(hosts={1: "n2", 0: "n1"}, ended=ended).outside_words() == words


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({0: NodeEnd.TOLD}, "lost node 1 of 2 before it was up"),
        ({0: NodeEnd.DIED}, ""),
        ({0: NodeEnd.REPORTED}, ""),
    ],
)
def test_a_node_that_never_came_up(ended: dict[int, NodeEnd], words: str) -> None:
    """Nobody else ended the job, unless the agent of another node failed first."""
    assert Nodes(count=2, hosts={0: "n1"}, ended=ended).outside_words() == words


def test_what_nobody_listened_to_is_no_silence() -> None:
    """This process was suspended, or its threads waited: the other node will be heard next."""
    nodes = Nodes()
    for second in range(10):
        nodes.hear(0, second)
        nodes.hear(1, second + 0.1)
    nodes.hear(0, 70.0)
    assert nodes.silent(70.1, 30.0) is None
    for second in range(71, 102):
        nodes.hear(0, second)
    assert nodes.silent(101.0, 30.0) == 1
