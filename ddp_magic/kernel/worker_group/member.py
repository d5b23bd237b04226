"""One connected rank: connection, process and log, and its text and figures in their order."""

from __future__ import annotations

import codecs
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ddp_magic.display.text.log_text import LogText
from ddp_magic.kernel.worker_group.admission import take_buffers, take_pipe
from ddp_magic.system import processes
from ddp_magic.system.run_directory import append
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.kernel_events import PulledValues, Rejoined, RunEvent, Stream
from ddp_magic.wire.marks import MarkSplitter, Writer
from ddp_magic.wire.worker_events import (
    ClearOutput,
    DisplayData,
    Question,
    Results,
    WorkerEvent,
    WorkerHello,
    WorkerReady,
)


def _utf8() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass
class Member:
    """A rank's end of its group.

    Attributes:
        pipe: Read end of its stdout and stderr; -1 once closed.
        process: None where the process that connected is not ours to signal.
        pid: What the rank calls its process; on another node it is of no use here.
        node: Name of that node; empty for this machine.
        device: What it computes on; empty until it has said so.
        written: Bytes in its log.
        log_error: Why its text could not be logged.
        unconnected_since: When its connection ended, on the monotonic clock, s.
    """

    rank: int
    channel: Channel
    pipe: int
    process: psutil.Process | None
    splitter: MarkSplitter
    log: Path
    pid: int | None = None
    node: str = ""
    device: str = ""
    written: int = 0
    log_error: OSError | None = None
    unconnected_since: float | None = None
    _decoder: codecs.IncrementalDecoder = field(default_factory=_utf8)
    _text: deque[tuple[bytes, int] | int | Writer] = field(default_factory=deque)
    _outputs: dict[int, DisplayData | ClearOutput | Question] = field(default_factory=dict)
    _last_mark: int = 0  # of the outputs that have come, which come in their order
    _log_text: LogText = field(default_factory=LogText)
    _log_writer: Writer = Writer.ANYBODY
    _log_begins: bool = False
    _writer: Writer = Writer.ANYBODY
    _begins: bool = False  # whether the next text is the beginning of a write

    @classmethod
    def of(cls, hello: WorkerHello, channel: Channel, log: Path) -> Member:
        """Return the rank that has said hello on a connection.

        Raises:
            ProtocolError: The read end of its stdout and stderr did not come with the message.
        """
        pipe = take_pipe(channel)
        os.set_blocking(pipe, False)
        process = None
        # Else it is not ours to signal: on another node the pid is another process's here.
        if channel.peer_pid() in (None, hello.pid) and not hello.node:
            try:
                process = psutil.Process(hello.pid)
            except psutil.NoSuchProcess:
                pass
        splitter = MarkSplitter(hello.marker.encode())
        return cls(hello.rank, channel, pipe, process, splitter, log, hello.pid, hello.node)

    def lives(self) -> bool:
        """Return whether its process has not ended, as far as that can be seen."""
        try:
            return self.process is None or self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def dump_stack(self) -> bool:
        """Let it write its stack to its file; return whether its process is ours to signal."""
        if self.process is None:
            return False
        processes.kill(self.process, signal.SIGUSR1)
        return True

    def rejoined(self) -> Rejoined:
        """Return that another cell of its session begins."""
        return Rejoined(
            rank=self.rank,
            pid=self.pid,
            node=self.node,
            device=self.device,
            log_bytes=self.written,
        )

    def take_text(self, data: bytes) -> Iterator[RunEvent]:
        """Log what the rank wrote, and yield what is complete."""
        self._add(self.splitter.feed(data))
        return self.ordered()

    def take_end(self) -> Iterator[RunEvent]:
        """Yield all that is left: nothing more will come."""
        if rest := self.splitter.end():
            self._add([rest])
        yield from self.ordered(final=True)
        yield from self.end_log()

    def end_log(self) -> Iterator[RunEvent]:
        """Log what is unfinished, such as a bar: a cell has ended, or the rank."""
        if rest := self._log_text.end():
            self._append(rest)
            yield Stream(rank=self.rank, text="", log_bytes=self.written)

    def _add(self, items: Iterable[bytes | int | Writer]) -> None:
        """Log text, in one piece, and keep it until it is its turn."""
        pieces = [(item, self._logged(item)) for item in items]
        added = b"".join(logged for _, logged in pieces)
        self._append(added)
        # Not from its size before, which a rank of a second attempt does not know.
        size = max(0, self.written - len(added))
        for item, logged in pieces:
            size += len(logged)
            self._text.append((item, size) if isinstance(item, bytes) else item)

    def _logged(self, item: bytes | int | Writer) -> bytes:
        if isinstance(item, Writer):
            self._log_writer, self._log_begins = item, True
        if not isinstance(item, bytes):
            return b""
        begins, self._log_begins = self._log_begins, False
        return self._log_text.feed(item, self._log_writer.value, time.monotonic(), begins=begins)

    def _append(self, data: bytes) -> None:
        if not data:
            return
        try:
            self.written = append(self.log, data)
        except OSError as error:  # a full disk costs the log, not the run
            self.log_error = error

    def take(self, event: WorkerEvent) -> list[RunEvent]:
        """Take what it says, and return what is complete: outputs in order, values with memory.

        Raises:
            ProtocolError: Values did not come with the memory that holds them.
        """
        match event:
            case DisplayData() | ClearOutput() | Question():
                self._outputs[event.mark] = event
                self._last_mark = max(self._last_mark, event.mark)
                return [*self.ordered()]
            case Results():
                fd = take_buffers(self.channel, event.sizes) if event.names else None
                return [PulledValues(results=event, fd=fd)]
            case WorkerReady():
                self.device = event.device
            case _:
                pass
        return [event]

    def ordered(self, *, final: bool = False) -> Iterator[RunEvent]:
        """Yield text and rich outputs in the order in which the rank made them.

        Args:
            final: Nothing more will come: do not wait for the output that belongs to a mark.
        """
        while self._text:
            item = self._text[0]
            if isinstance(item, int):
                if item not in self._outputs and item > self._last_mark and not final:
                    return
                if item in self._outputs:
                    yield self._outputs.pop(item)
            elif isinstance(item, Writer):
                self._writer, self._begins = item, True
            elif text := self._decoder.decode(item[0]):
                yield self._stream(text, item[1])
            self._text.popleft()
        if final:
            if text := self._decoder.decode(b"", final=True):
                yield self._stream(text, self.written)
            yield from (self._outputs.pop(mark) for mark in sorted(self._outputs))

    def _stream(self, text: str, log_bytes: int) -> Stream:
        begins, self._begins = self._begins, False
        writer = self._writer.value
        return Stream(rank=self.rank, text=text, log_bytes=log_bytes, writer=writer, begins=begins)

    def close(self) -> None:
        """Close the connection and the pipe."""
        self.channel.close()
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
