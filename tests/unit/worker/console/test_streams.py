"""The text of a rank: its pipe and its streams."""

from __future__ import annotations

import fcntl
import io
import os
import sys
from collections.abc import Iterator

import pytest

from ddp_magic.worker.console.streams import (
    HIGH_FD,
    PIPE_BYTES,
    TextPipe,
    Writes,
    flush,
    move_high,
    print_on_new_line,
    text_stream,
)


@pytest.fixture
def pipe() -> Iterator[TextPipe]:
    pipe = TextPipe()
    yield pipe
    pipe.close_read_end()
    os.close(pipe._write_end)


def _read(pipe: TextPipe) -> bytes:
    return os.read(pipe.read_end, 1000)


@pytest.mark.usefixtures("standard_descriptors")
def test_both_descriptors_write_to_the_pipe(
    pipe: TextPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's streams, and what C code and children write, in the order of writing."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    pipe.open_standard_streams()
    sys.stdout.write("a")
    os.write(2, b"b")
    sys.stderr.write("c")
    os.system("printf d")
    assert _read(pipe) == b"abcd"
    assert os.read(0, 10) == b""


@pytest.mark.usefixtures("standard_descriptors")
def test_streams_that_a_cell_has_closed_are_opened_again(
    pipe: TextPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the next cell of its session; descriptor 0 too."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    pipe.open_standard_streams()
    sys.stdout.close()
    os.close(0)
    os.close(1)
    pipe.open_standard_streams()
    sys.stdout.write("again")
    assert _read(pipe) == b"again"
    assert os.read(0, 10) == b""


def test_a_mark_has_the_marker_and_its_number(pipe: TextPipe) -> None:
    pipe.write_mark(12)
    assert _read(pipe) == f"{pipe.marker}12\a".encode()


def test_no_two_ranks_have_the_same_marker(pipe: TextPipe) -> None:
    other = TextPipe()
    assert other.marker != pipe.marker
    for fd in (other.read_end, other._write_end):
        os.close(fd)


def test_the_pipe_is_large_and_out_of_the_way(pipe: TextPipe) -> None:
    """What a rank writes while its kernel is busy must fit."""
    assert fcntl.fcntl(pipe._write_end, fcntl.F_GETPIPE_SZ) in (PIPE_BYTES, 65536)
    assert min(pipe.read_end, pipe._write_end) > 100
    assert not os.get_inheritable(pipe._write_end)


def test_text_is_written_at_once_and_never_refused() -> None:
    """Half a character of UTF-16 too."""
    read, write = os.pipe()
    stream = text_stream(write, Writes("M;"))
    stream.write("x\ud83dé")
    assert os.read(read, 100) == "x\\ud83dé".encode()
    stream.close()
    os.write(write, b"the descriptor stays open")
    os.close(read)
    os.close(write)


def test_a_descriptor_is_moved_and_the_old_one_closed() -> None:
    read, write = os.pipe()
    moved = move_high(write)
    assert moved > write
    assert moved >= min(HIGH_FD, 200)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)
    os.write(moved, b"x")
    assert os.read(read, 10) == b"x"
    os.close(read)
    os.close(moved)


def test_flushing_survives_what_a_cell_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed, replaced by something without `flush`, or removed."""
    closed = io.StringIO()
    closed.close()
    for stream in (closed, object(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        flush()


def test_writes_beside_a_bar_are_marked() -> None:
    """When the bar has ended, no write is; text is marked only where a bar is in its way."""
    writes = Writes("M;")
    assert writes.marked(2, b"text\n") == b"text\n"
    assert writes.marked(2, b"\r10%") == b"M;w2\a\r10%M;w0\a"
    assert writes.marked(1, b"text\n") == b"text\n"
    assert writes.marked(2, b"text") == b"M;w2\atextM;w0\a"
    assert writes.marked(2, b"\n") == b"M;w2\a\nM;w0\a"
    assert writes.marked(2, b"text\n") == b"text\n"
    assert writes.marked(1, b"\r10%") == b"M;w1\a\r10%M;w0\a"
    assert writes.marked(2, b"text\n") == b"M;w2\atext\nM;w0\a"
    assert writes.marked(1, b"text\n") == b"M;w1\atext\nM;w0\a"
    assert writes.marked(2, b"text\n") == b"text\n"


@pytest.mark.parametrize(
    "pieces", [(b"50%", b"\r", b"100%\r", b"done", b"\n"), (b"a\r\n",), (b"\x1b[31mred\x1b[0m\n",)]
)
def test_other_text_is_not_marked(pieces: tuple[bytes, ...]) -> None:
    """A return after text belongs to that text; colors do not move the cursor."""
    writes = Writes("M;")
    assert tuple(writes.marked(2, piece) for piece in pieces) == pieces


@pytest.mark.parametrize(
    ("pieces", "has_open_line"),
    [
        ([], False),
        ([(1, b"a")], True),
        ([(1, b"a"), (1, b"\n")], False),
        ([(2, b"a")], True),
        ([(1, b"a"), (2, b"b\n")], False),
        ([(1, b"a\nb")], True),
        ([(1, b"50%\r")], True),  # a value would be written over it
        ([(1, b"\r50%")], False),  # a bar, beside which text is a line of its own
        ([(2, b"\r50%")], False),
        ([(2, b"\r50%"), (1, b"a")], True),
        ([(1, b"a"), (2, b"\r50%")], True),
    ],
)
def test_a_value_begins_a_line(pieces: list[tuple[int, bytes]], has_open_line: bool) -> None:
    """`print("a", end=""); display(1)` shows two lines, as in a notebook."""
    writes = Writes("M;")
    for fd, piece in pieces:
        writes.marked(fd, piece)
    assert writes.on_new_line("1") == ("\n1" if has_open_line else "1")


def test_a_value_goes_where_the_cell_sends_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """`contextlib.redirect_stdout`."""
    caught = io.StringIO()
    monkeypatch.setattr(sys, "stdout", caught)
    print("a", end="")
    print_on_new_line("1")
    assert caught.getvalue() == "a1\n"
