"""The near relay: stands for the agents and ranks of other nodes, in the kernel's process.

For each of their connections it connects to the kernel's own socket, and carries frames between
that and the streams of a job (`Job`), at whose other ends are the far relays (`node.far_relay`).
`wire.relay_frames` takes apart what they say. A rank's text arrives through a pipe, values through
shared memory: the kernel's side cannot tell that they come from afar.

Two threads: one starts the job and takes what comes from the nodes; one gives the nodes what the
kernel sends. Neither waits for the other, so no stream fills up for good.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ddp_magic.engines import Job
from ddp_magic.engines.nodes import GAP_S, Nodes
from ddp_magic.engines.to_nodes import Far, ToNodes
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import connect
from ddp_magic.wire.codec import type_name
from ddp_magic.wire.memory import anonymous_file
from ddp_magic.wire.relay_frames import (
    ALL,
    PIECE_BYTES,
    Frame,
    FrameReader,
    Kind,
    LineReader,
    NodeEnd,
    write_all,
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
        self._spec = spec
        self._directory = RunDirectory(Path(spec.worker.directory))
        self._launch = launch
        self._lines = LineReader()
        self._readers: dict[int, FrameReader] = {}
        self._fars: dict[tuple[int, int], Far] = {}
        self._agents: set[tuple[int, int]] = set()  # connections of those that have not ended
        self._folders: dict[str, Path] = {"": self._directory.path}
        self._to_nodes = ToNodes(self._folders)
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
        for far in list(self._fars.values()):
            self._close(far)
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
            case Kind.MESSAGE:
                self._deliver(node, frame)
            case Kind.SEGMENT:
                self._keep_values(node, frame)
            case Kind.TEXT | Kind.TEXT_ENDED:
                self._write_text(node, frame)
            case Kind.CLOSED:
                if (node, frame.connection) in self._agents:
                    self._lose_agent(node)
                self._hang_up(self._fars.get((node, frame.connection)))
            case Kind.FILE:
                self._save(frame.payload)
            case Kind.LOG:
                self._directory.log_agent(frame.payload)
            case _:  # not from there
                pass

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

    def _far(self, node: int, number: int) -> Far | None:
        """Return a connection, made now if it is new; None if the kernel does not listen."""
        if (far := self._fars.get((node, number))) is not None:
            return far
        try:
            channel = connect(self._spec.worker.socket)
        except OSError:
            self._to_nodes.put(Frame(node, Kind.CLOSED, number))
            return None
        far = self._fars[node, number] = Far(node, number, channel)
        self._to_nodes.add(far)
        return far

    def _deliver(self, node: int, frame: Frame) -> None:
        far = self._far(node, frame.connection)
        if far is None:
            return
        match type_name(frame.payload):
            case "AgentHello":
                self._agents.add((node, frame.connection))
                far.channel.send_payload(frame.payload)
            case "AgentDone":
                self._agents.discard((node, frame.connection))
                far.channel.send_payload(frame.payload)
            case "WorkerHello":
                read_end, far.pipe = os.pipe()
                far.channel.send_payload(frame.payload, read_end)
                os.close(read_end)
            case "Results":
                far.channel.send_payload(
                    self._with_paths(frame.payload), None if far.values < 0 else far.values
                )
                if far.values >= 0:
                    os.close(far.values)
                    far.values = -1
            case _:
                far.channel.send_payload(frame.payload)

    def _with_paths(self, payload: bytes) -> bytes:
        """Name the files that a node has saved by their places here."""
        for folder, path in self._folders.items():
            there = f"<directory>/{folder}".rstrip("/").encode()
            if folder:
                payload = payload.replace(there, json.dumps(str(path)).strip('"').encode())
        return payload

    def _keep_values(self, node: int, frame: Frame) -> None:
        far = self._far(node, frame.connection)
        if far is None:
            return
        if far.values < 0:
            far.values = anonymous_file()
        write_all(far.values, frame.payload)

    def _write_text(self, node: int, frame: Frame) -> None:
        far = self._fars.get((node, frame.connection))
        if far is None or far.pipe < 0:
            return
        try:
            write_all(far.pipe, frame.payload)
        except OSError:  # the kernel reads it no more
            frame = Frame(node, Kind.TEXT_ENDED)
        if frame.kind is Kind.TEXT_ENDED:
            os.close(far.pipe)
            far.pipe = -1

    def _hang_up(self, far: Far | None) -> None:
        """End a connection toward the kernel; the text of its rank may still come."""
        if far is not None and not far.channel.closed:
            with contextlib.suppress(OSError):
                far.channel.shutdown()

    def _close(self, far: Far) -> None:
        self._hang_up(far)
        self._to_nodes.forget(far)
        far.channel.close()
        for fd in (far.pipe, far.values):
            if fd >= 0:
                os.close(fd)
        far.pipe = far.values = -1

    def _save(self, payload: bytes) -> None:
        """Write a file of the run to the place where somebody looks for it."""
        head, _, content = payload.partition(b"\0")
        names = json.loads(head)
        folder = self._folders.get(names["folder"])
        if folder is None or Path(names["name"]).name != names["name"]:
            return
        path, at = folder / names["name"], names.get("at", 0)
        with contextlib.suppress(OSError):  # a full disk costs the file, not the run
            if at < 0:
                path.unlink()
                return
            with path.open("r+b" if at else "wb") as file:  # what it continues may be gone
                file.seek(at)
                file.write(content)


def _not_launched() -> Job:
    raise OSError("it was ended before it was started")
