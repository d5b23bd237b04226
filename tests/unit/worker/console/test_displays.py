"""Rich outputs: an event, and a mark in the text."""

from __future__ import annotations

import os
from typing import Any, cast

from ddp_magic.wire.worker_events import ClearOutput, DisplayData
from ddp_magic.worker.console.displays import Displays
from ddp_magic.worker.console.streams import TextPipe
from tests.unit.worker.fakes import FakeChannel


def _displays(channel: FakeChannel) -> tuple[Displays, TextPipe]:
    pipe = TextPipe()
    os.set_blocking(pipe.read_end, False)
    return Displays(1, cast("Any", channel), pipe), pipe


def test_each_output_is_sent_and_marked_with_its_number() -> None:
    channel = FakeChannel()
    displays, pipe = _displays(channel)
    displays.display({"text/html": "x"}, None, "id", update=True)
    displays.clear_output(wait=True)
    assert channel.sent == [
        DisplayData(
            rank=1, mark=1, data={"text/html": "x"}, metadata={}, display_id="id", update=True
        ),
        ClearOutput(rank=1, mark=2, wait=True),
    ]
    assert os.read(pipe.read_end, 1000) == f"{pipe.marker}1\a{pipe.marker}2\a".encode()


def test_an_image_is_sent_as_base64() -> None:
    """A PIL image gives bytes; matplotlib's figures, and text, are as they are to be."""
    channel = FakeChannel()
    displays, _ = _displays(channel)
    data = {"image/png": b"\x89PNG", "image/svg+xml": "<svg>"}
    displays.display(data, None, None, update=False)
    (event,) = channel.sent
    assert cast("DisplayData", event).data == {"image/png": "iVBORw==", "image/svg+xml": "<svg>"}


def test_what_could_not_be_sent_is_not_marked() -> None:
    """The kernel would wait for it."""
    displays, pipe = _displays(FakeChannel(open_=False))
    displays.display({"text/html": "x"}, None, None, update=False)
    os.write(pipe._write_end, b"end")
    assert os.read(pipe.read_end, 1000) == b"end"


def test_a_forked_child_is_not_connected() -> None:
    """Its channel was closed at the fork."""
    assert _displays(FakeChannel())[0].connected
    assert not _displays(FakeChannel(open_=False))[0].connected
