"""Looks at the waits of a run, with processes that are real."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from ddp_magic.display.rank import Rank
from ddp_magic.kernel.watch.hang_watch import HangWatch
from ddp_magic.wire.collectives import GroupRecord, Operation
from ddp_magic.wire.worker_events import Collectives
from tests.limits import HANG_S, within


def _waiting() -> Rank:
    now = time.time()
    operation = Operation(number=1, name="barrier", created=now - 9, done=False)
    group = GroupRecord(
        name="0",
        backend="gloo",
        title="default_pg",
        ranks=(0, 1),
        enqueued=1,
        completed=0,
        operations=(operation,),
    )
    rank = Rank(rank=0, pid=1, line=5, still_s=9.0, heard=now)
    rank.collectives = Collectives(rank=0, time=now, groups=(group,))
    return rank


def test_a_process_that_was_busy_a_moment_ago_still_is() -> None:
    """Two looks may be so close that the system has counted nothing between them."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        silent = Rank(rank=1, pid=process.pid, device="cpu", heard=time.time() - 9)
        watch, began = HangWatch(1.0), time.monotonic()
        holds = "holds the interpreter lock in C code"
        while holds not in " ".join(watch.sentences) and within(time.monotonic() - began, HANG_S):
            watch.look([_waiting(), silent])
            time.sleep(0.01)
        said = [watch.recent([_waiting(), silent]) for _ in range(5)]
        process.kill()
    assert all(holds in " ".join(sentences) for sentences in said)


def test_a_process_of_another_node_is_not_looked_for_here() -> None:
    """Its number is another process's on this machine."""
    with subprocess.Popen(["sleep", str(2 * HANG_S)]) as process:
        process.send_signal(signal.SIGSTOP)
        watch = HangWatch(1.0)
        silent = Rank(rank=1, pid=process.pid, node="n2", device="cpu", heard=time.time() - 9)
        (said,) = watch.recent([_waiting(), silent])
        process.kill()
    assert "rank 1 on n2 has been silent for 9 s and does not respond" in said
