"""The near relay: stands for the agents and ranks of other nodes, in the kernel's process.

It carries frames between the kernel's own socket and the streams of a job (`Job`), at whose other
ends are the far relays (`node.far_relay`). `wire.relay_frames` takes apart what they say. The
kernel's side cannot tell that it comes from afar.

Two threads: one starts the job, reads what comes from the nodes, and passes it on (`from_nodes`);
one gives the nodes what the kernel sends (`to_nodes`). Neither waits for the other, so no stream
fills up for good.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ddp_magic.engines import Job
from ddp_magic.engines.from_nodes import FromNodes
from ddp_magic.engines.nodes import GAP_S, Nodes
from ddp_magic.engines.to_nodes import ToNodes
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.relay_frames import (
    ALL,
    PIECE_BYTES,
    Frame,
    FrameReader,
    Kind,
    LineReader,
    NodeEnd,
)
from ddp_magic.wire.specs import AgentSpec

SILENT_S = 30.0


class NearRelay:
    """Carries frames between the kernel's socket and the nodes.

    Args:
        spec: What the agents are to run.
        start: What the far relays are told beside that.
        launch: Starts the job.
        silent_s: How long a node may say nothing while others do, and the job may last when all
            have ended, in seconds.

    Attributes:
        job: The job; None before it has been started.
        nodes: What is known of the nodes.
        error: Why the streams cannot be read any more; empty if they can.
        cancelled: Whether the kernel has ended the job.
        broke: When the streams ended, or could not be read any more, in seconds since the epoch.
        ended: Set at the end, when everything has been carried.
    """

    def __init__(
        self,
        spec: AgentSpec,
        start: dict[str, object],
        launch: Callable[[], Job],
        silent_s: float = SILENT_S,
    ) -> None:
        self._silent_s = silent_s
        self._looked = time.monotonic()
        self._directory = RunDirectory(Path(spec.worker.directory))
        self._launch = launch
        self._lines = LineReader()
        self._readers: dict[int, FrameReader] = {}
        folders = {"": self._directory.path}
        self._to_nodes = ToNodes(folders)
        self._from_nodes = FromNodes(spec.worker.socket, folders, self._to_nodes)
        self._lock = threading.Lock()
        self.job: Job | None = None
        self.nodes = Nodes()
        self.error = ""
        self.cancelled = False
        self.broke = 0.0
        self.ended = threading.Event()
        payload = json.dumps({**start, "spec": spec.to_json()}).encode()
        self._to_nodes.put(Frame(ALL, Kind.START, 0, payload))
        self._up = threading.Thread(target=self._carry_up, name="ddp_magic-relay", daemon=True)
        self._up.start()

    def cancel(self) -> None:
        """End the job, or do not start it."""
        self.cancelled = True
        with self._lock:
            self._launch = _not_launched
            job = self.job
        if job is not None:
            job.cancel()

    # --- from the nodes -----------------------------------------------------------------------

    def _carry_up(self) -> None:
        """Start the job and carry what comes from it, to its end. It ends with this thread."""
        try:
            with self._lock:
                self.job = job = self._launch()
        except Exception as error:  # noqa: BLE001 -- whatever it is, nobody waits for ever
            self.error = str(error)
            self._to_nodes.close()
            self.ended.set()
            return
        down = threading.Thread(
            target=self._carry_down, args=(job,), name="ddp_magic-relay-down", daemon=True
        )
        down.start()
        try:
            while data := os.read(job.stdout, PIECE_BYTES):
                for node, piece in self._lines.feed(data):
                    if node is None:
                        self._directory.log_agent(piece)
                    else:
                        self._take_stream(node, piece)
        except Exception as error:  # noqa: BLE001 -- whatever it is, as above
            self._fail(error)
        finally:
            self.broke = self.broke or time.time()
            self._directory.log_agent(self._lines.end())
            job.wait()
            self._end(down)

    def _carry_down(self, job: Job) -> None:
        try:
            self._to_nodes.carry(job.stdin)
        except Exception as error:  # noqa: BLE001 -- as above
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = str(error) or type(error).__name__
        self.broke = time.time()
        self.cancel()

    def _end(self, down: threading.Thread) -> None:
        self._to_nodes.end()
        down.join()
        self._from_nodes.close()
        self._to_nodes.close()
        self.ended.set()

    def look(self) -> None:
        """End the job if a node is gone, or if all have ended: srun notices it late, or never."""
        now = time.monotonic()
        if now - self._looked > GAP_S:
            self.nodes.missed(now - self._looked)  # this process may have been suspended
        self._looked = now
        if self.nodes.over_s(now) > self._silent_s and not self.cancelled:
            self.cancel()
        node = self.nodes.silent(now, self._silent_s)
        if node is not None and not self.error:
            words = f"has said nothing for {self._silent_s:g} s"
            self.nodes.lose(node, f"it {words}")
            self._fail(TimeoutError(f"{self.nodes.name(node)} {words}"))

    def _take_stream(self, node: int, piece: bytes) -> None:
        self.nodes.hear(node, time.monotonic())
        for frame in self._readers.setdefault(node, FrameReader()).feed(piece):
            self._take(node, frame)

    def _take(self, node: int, frame: Frame) -> None:
        match frame.kind:
            case Kind.NODE | Kind.ENDED | Kind.SIGNALED:
                self._take_news(node, frame)
            case Kind.HEAD:
                self._to_nodes.put(Frame(ALL, Kind.HEAD, 0, frame.payload))
            case Kind.LOG:
                self._directory.log_agent(frame.payload)
            case _:
                if frame.kind is Kind.CLOSED and self._from_nodes.is_agent(node, frame.connection):
                    self._lose_agent(node)
                self._from_nodes.take(node, frame)

    def _lose_agent(self, node: int) -> None:
        """Note that an agent has died, unless the job is being ended or another node was lost."""
        if self.job is not None and not self.job.lost() and self.nodes.signaled is None:
            self.nodes.lose(node, "its agent ended without a report")

    def _take_news(self, node: int, frame: Frame) -> None:
        if frame.kind is Kind.ENDED:
            self.nodes.ended[node] = NodeEnd(frame.connection)
            return
        if frame.kind is Kind.SIGNALED:
            if not self.cancelled:
                self.nodes.note_signal(frame.connection)
            return
        said = json.loads(frame.payload)
        if self.job is not None:
            self.job.running(said["job"])
        self.nodes.count, self.nodes.names[node] = said["nodes"], said["name"]
        self.nodes.hosts[node] = said["host"]


def _not_launched() -> Job:
    raise OSError("it was ended before it was started")
