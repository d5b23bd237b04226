"""64 nodes with 8 ranks each, without nodes and ranks: `python -m tests.benchmarks.many_nodes`.

One process stands for all nodes: it says what their relays would say of ranks that each print ten
lines a second. Measured are the kernel's processor time and memory, the delay of the lines that the
front end gets, and whether every line is in its rank's log. This module is also the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ddp_magic.engines.program import Program
from ddp_magic.wire.codec import encode, type_name
from ddp_magic.wire.events import AgentDone, AgentHello, Event, WorkerExited
from ddp_magic.wire.relay_frames import Frame, FrameReader, Kind, LineWriter, write_all
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import (
    CellNames,
    Finished,
    Heartbeat,
    Results,
    WorkerHello,
    WorkerReady,
)
from tests.integration.kernel import Kernel
from tests.limits import LONG_S

START: dict[str, object] = {"node_name_variable": "", "toward": "", "job_variables": []}
EACH_S = 0.1  # between two lines of a rank
BEAT_S = 1.0
MODULE = "tests.benchmarks.many_nodes"
ROOT = Path(__file__).parents[2]


class FakeJob(Program):
    """The process that stands for the nodes."""

    def running(self, job: str) -> None:
        self.name = f"no job{job}"


def problem() -> str:
    return ""


def problem_of(arguments: Sequence[str]) -> str:
    return "" if len(arguments) == 1 else "say for how long the ranks print, in seconds"


def launch(
    agent: Sequence[str],
    *,
    nnodes: int,
    nproc: int,
    arguments: Sequence[str],
    env: Mapping[str, str],
    log: Callable[[bytes], None],
) -> FakeJob:
    words = [str(nnodes), str(nproc), *arguments]
    return FakeJob([*agent[:1], "-m", __name__, "--be", *words], dict(env), log)


class Nodes:
    """All nodes.

    Args:
        nnodes: How many there are.
        nproc: Number of ranks on each.
        seconds: For how long the ranks print.
    """

    def __init__(self, nnodes: int, nproc: int, seconds: float) -> None:
        self._nnodes, self._nproc, self._seconds = nnodes, nproc, seconds
        self._writers = [LineWriter(node) for node in range(nnodes)]
        self._reader = FrameReader()
        self._started: set[int] = set()
        self._left: dict[int, set[int]] = {node: set(range(nproc)) for node in range(nnodes)}

    def run(self) -> None:
        """Be the nodes: wait for the cell on all ranks, print, and end."""
        while len(self._started) < self._nnodes * self._nproc:
            self._obey(wait_s=1.0)
        began = time.monotonic()
        for number in range(round(self._seconds / EACH_S)):
            for node in range(self._nnodes):
                at = began + (number + node / self._nnodes) * EACH_S
                self._obey(wait_s=max(at - time.monotonic(), 0.0))
                self._print(node, number)
        for rank in range(self._nnodes * self._nproc):
            self._finish(rank)
            self._exit(rank // self._nproc, rank)

    def _obey(self, wait_s: float) -> None:
        if not select.select([0], [], [], wait_s)[0]:
            return
        data = os.read(0, 2**18)
        if not data:
            sys.exit(1)
        for frame in self._reader.feed(data):
            match frame.kind:
                case Kind.START:
                    self._say(0, Frame(0, Kind.HEAD, 0, b'{"address": "", "port": 0}'))
                    for node in range(self._nnodes):
                        self._begin(node)
                case Kind.MESSAGE if type_name(frame.payload) == "RunCell":
                    self._started.add(self._rank(frame))

    def _begin(self, node: int) -> None:
        name = f"n{node}"
        where = {"host": name, "name": name, "job": "", "nodes": self._nnodes}
        frames = [Frame(node, Kind.NODE, 0, json.dumps(where).encode())]
        frames.append(self._message(node, 1, AgentHello()))
        for rank in self._ranks(node):
            hello = WorkerHello(rank=rank, pid=10_000 + rank, marker="\x1b]mark", node=name)
            frames.append(self._message(node, self._number(rank), hello))
            ready = WorkerReady(rank=rank, time=time.time(), device="cpu")
            frames.append(self._message(node, self._number(rank), ready))
        self._say(node, *frames)

    def _print(self, node: int, number: int) -> None:
        frames = []
        for rank in self._ranks(node):
            text = f"line {number} of rank {rank} t={time.time():.4f};\n".encode()
            frames.append(Frame(node, Kind.TEXT, self._number(rank), text))
            if number % round(BEAT_S / EACH_S) == 0:
                beat = Heartbeat(
                    rank=rank, time=time.time(), phase=Phase.RUNNING, line=1, rss_mib=200.0
                )
                frames.append(self._message(node, self._number(rank), beat))
        self._say(node, *frames)

    def _finish(self, rank: int) -> None:
        node, events = rank // self._nproc, [Finished(rank=rank, time=time.time())]
        more: list[Event] = [CellNames(rank=0, names=())] if rank == 0 else []
        more.append(Results(rank=rank))
        self._say(
            node, *(self._message(node, self._number(rank), each) for each in [*events, *more])
        )

    def _exit(self, node: int, rank: int) -> None:
        number = self._number(rank)
        ended = WorkerExited(rank=rank, time=time.time(), code=0)
        frames = [Frame(node, Kind.TEXT_ENDED, number), Frame(node, Kind.CLOSED, number)]
        frames.append(self._message(node, 1, ended))
        self._left[node].discard(rank % self._nproc)
        if not self._left[node]:
            frames += [self._message(node, 1, AgentDone()), Frame(node, Kind.CLOSED, 1)]
            frames.append(Frame(node, Kind.ENDED, 1))
        self._say(node, *frames)

    def _ranks(self, node: int) -> range:
        return range(node * self._nproc, (node + 1) * self._nproc)

    def _number(self, rank: int) -> int:
        return 2 + rank % self._nproc

    def _rank(self, frame: Frame) -> int:
        return frame.node * self._nproc + frame.connection - 2

    def _message(self, node: int, number: int, event: Event) -> Frame:
        return Frame(node, Kind.MESSAGE, number, encode(event))

    def _say(self, node: int, *frames: Frame) -> None:
        write_all(1, self._writers[node].lines(b"".join(frame.encode() for frame in frames)))


@dataclass
class Seen:
    """What the front end has seen of a cell, and what the kernel has used for it."""

    delays: list[float] = field(default_factory=list)
    shown_bytes: int = 0
    loads: list[float] = field(default_factory=list)
    most_mib: float = 0.0


def _measure(nnodes: int, nproc: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        info = folder / "many_nodes-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: many-nodes\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[ddp_magic.engines]\nmany = " + MODULE + "\n")
        kernel = Kernel(folder, {"PYTHONPATH": f"{folder}:{ROOT}"})
        try:
            kernel.run("%load_ext ddp_magic")
            before_mib = psutil.Process(kernel.pid).memory_info().rss / 2**20
            seen = _see(
                kernel,
                f"%%ddp -n {nproc} -N {nnodes} --engine many --engine-args {seconds} -g none "
                "-o run\npass",
            )
            lines = kernel.value("sorted({r.stdout.count(chr(10)) for r in run.ranks})")
        finally:
            kernel.stop()
    delays = sorted(seen.delays)
    busy = sorted(seen.loads)[len(seen.loads) // 2 :]
    wanted = round(seconds / EACH_S)
    print(
        f"{nnodes} nodes x {nproc} ranks, {wanted} lines each in {seconds:g} s: the kernel uses "
        f"{statistics.median(busy):.2f} processors (most {max(busy):.2f}), "
        f"{seen.most_mib - before_mib:.0f} MiB more than before; delay of the {len(delays)} lines "
        f"shown {1000 * statistics.median(delays):.0f} ms (95 %: "
        f"{1000 * delays[int(0.95 * len(delays))]:.0f} ms); lines in each log: "
        f"{', '.join(map(str, lines))} of {wanted}; {seen.shown_bytes / 2**20:.1f} MiB shown",
        flush=True,
    )


def _see(kernel: Kernel, cell: str) -> Seen:
    """Run a cell, and watch the kernel meanwhile."""
    seen, ended = Seen(), threading.Event()
    process = psutil.Process(kernel.pid)

    def watch() -> None:
        process.cpu_percent()
        while not ended.wait(1.0):
            seen.loads.append(process.cpu_percent() / 100)
            seen.most_mib = max(seen.most_mib, process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=watch)
    message = kernel.start(cell)
    watcher.start()
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        said = kernel.client.get_iopub_msg(timeout=LONG_S)
        now, content = time.time(), said["content"]
        if said["parent_header"].get("msg_id") != message:
            continue
        if content.get("execution_state") == "idle":
            break
        if said["msg_type"] == "error":
            sys.exit(str(content["evalue"]))
        text = content.get("text", "")
        seen.shown_bytes += len(text)
        seen.delays += [now - float(t) for t in re.findall(r"t=([\d.]+);", text)]
    ended.set()
    watcher.join()
    return seen


if __name__ == "__main__":
    if "--be" in sys.argv:
        count, each, length = sys.argv[sys.argv.index("--be") + 1 :]
        Nodes(int(count), int(each), float(length)).run()
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--nodes", type=int, nargs="*", default=[8, 64])
        parser.add_argument("--seconds", type=float, default=20.0)
        asked = parser.parse_args()
        for number in asked.nodes:
            _measure(number, 8, asked.seconds)
