"""Frames between two relays, and the lines in which they come from the nodes."""

from __future__ import annotations

import random

import pytest

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.relay_frames import LINE_BYTES, Frame, FrameReader, Kind, LineReader, LineWriter

FRAMES = [
    Frame(3, Kind.START, 0, b"{}"),
    Frame(0, Kind.TEXT, 7, bytes(range(256)) * 20),
    Frame(0, Kind.CLOSED, 2**32 - 1),
]


def _cut(data: bytes, seed: int) -> list[bytes]:
    cuts = sorted(random.Random(seed).choices(range(len(data) + 1), k=20))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize("seed", range(10))
def test_frames_cut_anywhere(seed: int) -> None:
    reader = FrameReader()
    stream = b"".join(frame.encode() for frame in FRAMES)
    assert [f for piece in _cut(stream, seed) for f in reader.feed(piece)] == FRAMES


@pytest.mark.parametrize("head", [b"\0\0\xff\0\0\0\0\0\0\0\0", b"\0\0\1\0\0\0\0\xff\xff\xff\xff"])
def test_what_is_no_frame(head: bytes) -> None:
    """An unknown kind, a huge length."""
    with pytest.raises(ProtocolError, match="invalid frame"):
        list(FrameReader().feed(head))


def test_no_line_is_too_long_for_srun() -> None:
    """Not for the last of many nodes, nor after days of output."""
    writer = LineWriter(4095)
    writer._number = 16**10
    lines = writer.lines(random.Random(0).randbytes(100_000)).splitlines(keepends=True)
    assert max(map(len, lines)) <= LINE_BYTES


@pytest.mark.parametrize("seed", range(10))
def test_lines_of_several_nodes_cut_anywhere(seed: int) -> None:
    """With srun's labels, and among what a site's own scripts write."""
    rng = random.Random(seed)
    sent = {node: rng.randbytes(5000) for node in range(3)}
    queues = {
        node: LineWriter(node).lines(data).splitlines(keepends=True) for node, data in sent.items()
    }
    wire, words = b"Welcome to the cluster, no newline:", 0
    while any(queues.values()):
        node = rng.choice([n for n, lines in queues.items() if lines])
        wire += rng.choice([b"", b" %d: " % node]) + queues[node].pop(0)
        if rng.random() < 0.2:
            wire, words = wire + b"module load cuda\n", words + 1
    reader = LineReader()
    pieces = [each for piece in _cut(wire, seed) for each in reader.feed(piece)]
    for node, data in sent.items():
        assert b"".join(piece for n, piece in pieces if n == node) == data
    text = b"".join(piece for n, piece in pieces if n is None)
    assert text.count(b"module load cuda\n") == words
    assert text.startswith(b"Welcome to the cluster")
    assert reader.end() == b""


@pytest.mark.parametrize("damage", ["lost", "twice", "torn", "base64"])
def test_a_stream_that_is_not_whole(damage: str) -> None:
    """It is never taken for one that is."""
    lines = LineWriter(1).lines(bytes(3000)).splitlines(keepends=True)
    match damage:
        case "lost":
            del lines[1]
        case "twice":
            lines.insert(1, lines[1])
        case "torn":  # as by `srun -u`
            lines[1] = lines[1][:500] + b"\n" + lines[1][500:]
        case _:
            lines[1] = lines[1].replace(b"AAAA", b"A?AA")
    with pytest.raises(ProtocolError, match="arrives incomplete"):
        list(LineReader().feed(b"".join(lines)))


def test_endless_text_is_not_kept() -> None:
    """Of a program that writes no newline."""
    reader = LineReader()
    found = [piece for _ in range(100) for _, piece in reader.feed(b"." * 10_000)]
    assert sum(map(len, found)) + len(reader.end()) == 1_000_000
    assert found
