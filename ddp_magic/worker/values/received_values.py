"""Reads the notebook's values, in a rank and in its `multiprocessing` children."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ddp_magic.errors import CaptureError
from ddp_magic.wire.commands import Captured
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.pickling import load, problem


def receive(command: Captured, segments: Mapping[int, Segment], namespace: dict[str, Any]) -> None:
    """Put the captured values into `namespace`, which their functions read.

    Args:
        command: The kernel's command.
        segments: Shared memory, by number.
        namespace: The cell's.

    Raises:
        CaptureError: A value cannot be read in this process.
    """
    views = {number: segments[number].views() for number in {p[0] for p in command.parts}}
    stream = segments[command.stream].views()[0]
    buffers = [
        view
        for number, first, count in command.parts
        for view in views[number][first : first + count]
    ]
    values = load(stream, buffers, namespace)
    for name in command.names:
        try:
            # Each at once: code of the next one, such as its `__setstate__`, may read it.
            _, namespace[name] = next(values)
        except Exception as error:
            raise CaptureError(
                f"cannot read `{name}` of the notebook in this rank: {problem(error)}"
            ) from error


def for_children(command: Captured, segments: Mapping[int, Segment]) -> dict[str, Any]:
    """Describe where a `multiprocessing` child of this rank finds the same values.

    Args:
        command: The kernel's command.
        segments: Shared memory, by number, which this process keeps open.
    """
    numbers = sorted({command.stream, *(part[0] for part in command.parts)})
    own = f"/proc/{os.getpid()}/fd"
    return {
        "command": dataclasses.asdict(command),
        "segments": numbers,
        "places": [[f"{own}/{segments[n].fd}", segments[n].sizes] for n in numbers],
    }


def receive_as_child(described: Mapping[str, Any], namespace: dict[str, Any]) -> None:
    """Do the same in a child, for what `for_children` has described in its parent.

    Raises:
        CaptureError: A value cannot be read in this process.
        OSError: The parent has ended.
    """
    segments = {
        number: Segment(os.open(place, os.O_RDONLY), sizes)
        for number, (place, sizes) in zip(described["segments"], described["places"], strict=True)
    }
    receive(Captured(**described["command"]), segments, namespace)
