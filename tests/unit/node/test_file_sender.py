"""When the files of a node are sent; the node has one, which a test changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddp_magic.node.file_sender import SOON_S, STACKS_S, FileSender
from ddp_magic.node.node_directory import NodeDirectory
from ddp_magic.wire.relay_frames import Kind


class Node:
    """Its directory, and what is told to the kernel."""

    def __init__(self) -> None:
        self.directory = NodeDirectory()
        self.told: list[tuple[Kind, bytes]] = []
        stream = SimpleNamespace(
            tell=lambda kind, _connection, data: self.told.append((kind, data))
        )
        self.files = FileSender(self.directory, stream)  # type: ignore[arg-type]

    @property
    def file(self) -> Path:
        return self.directory.run.path / "x.rank1.pt"


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.directory.remove()


def test_what_is_new_is_sent_once(node: Node) -> None:
    node.file.write_bytes(b"saved")
    for _ in range(2):
        node.files.send()
    head = json.dumps({"folder": "", "name": "x.rank1.pt"}).encode()
    assert node.told == [(Kind.FILE, head + b"\0saved")]


def test_what_is_sent_soon_is_not_sent_all_the_time(node: Node) -> None:
    node.files.send()
    node.file.write_bytes(b"saved")
    node.files.send_soon()
    assert node.told == []
    node.files._sent -= 2 * SOON_S
    node.files.send_soon()
    assert len(node.told) == 1


def test_a_stack_is_expected_for_a_while(node: Node) -> None:
    """Calls that are checked, for as long as the cell runs."""
    assert not node.files.expects
    node.files.expect_stack()
    assert node.files.expects
    node.files._stacks_until -= 2 * STACKS_S
    assert not node.files.expects
    node.files.checks = True
    assert node.files.expects
