"""The profile of one cell: a thread that samples, and a hook that notes the optimizer's steps.

It exists only while a cell with `--profile` or `--trace` runs.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from time import time as now  # bound here: a cell may replace the module's

import torch
from torch.optim import optimizer as torch_optimizer
from torch.utils.hooks import RemovableHandle

from ddp_magic.wire.profile import ProfileWriter
from ddp_magic.worker.watch.sampler import Sampler

_FLUSH_S = 0.5
_STOP_S = 5.0  # to wait for the thread, which may be writing to a slow disk


@contextlib.contextmanager
def profiled(path: Path | None, rank: int, device: str, node: str = "") -> Iterator[None]:
    """Measure what the main thread does here.

    Args:
        path: The file to write; None for no profile.
        rank: Which rank.
        device: `cpu`, or the name of its GPU.
        node: Name of its node; empty on the kernel's own machine.
    """
    if path is None:
        yield
        return
    profiler = Profiler(path, rank, device, node)
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()


class Profiler:
    """Measures one cell of this rank.

    Args:
        path: The file to write.
        rank: Which rank.
        device: `cpu`, or the name of its GPU.
        node: Name of its node; empty on the kernel's own machine.
    """

    def __init__(self, path: Path, rank: int, device: str, node: str) -> None:
        threads, processors = torch.get_num_threads(), len(os.sched_getaffinity(0))
        self._writer = ProfileWriter(
            path, rank, device, now(), threads=threads, node=node, processors=processors
        )
        self._sampler = Sampler(self._writer, on_gpu=device != "cpu")
        self._steps = Steps()
        self._running = threading.Lock()  # an Event takes the interpreter lock more often
        self._thread = threading.Thread(target=self._run, name="ddp_magic_profile", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self._running.acquire()
        self._steps.start()
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, and end; for the main thread, at the end of the cell."""
        self._steps.stop()
        self._running.release()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        # A full disk, or what the cell has made of Python's modules. The cell goes on, and the
        # kernel says that the profile ends early.
        with contextlib.suppress(Exception):
            self._measure()

    def _measure(self) -> None:
        flushed = monotonic()
        self._writer.flush()
        while not self._running.acquire(timeout=self._sampler.pause_s()):
            self._sampler.look()
            if monotonic() - flushed > _FLUSH_S:
                self._write_steps()
                self._writer.flush()
                flushed = monotonic()
        ended = now()
        self._write_steps()
        self._sampler.read_records()
        self._writer.end(
            ended,
            self._sampler.lost,
            self._sampler.last_numbers(),
            self._sampler.queued_s(),
            self._sampler.beside(),
        )
        self._sampler.close()

    def _write_steps(self) -> None:
        for time in self._steps.take():
            self._writer.step(time)


class Steps:
    """Notes when an optimizer has made a step, by torch's hook for all optimizers.

    Of several optimizers that take turns, one is enough for a step: it ends when an optimizer steps
    that has stepped since the last one.
    """

    def __init__(self) -> None:
        self._times: list[float] = []
        self._stepped: set[int] = set()
        self._hook: RemovableHandle | None = None

    def start(self) -> None:
        """Begin to note steps; an old torch has no such hook."""
        if hasattr(torch_optimizer, "register_optimizer_step_post_hook"):
            self._hook = torch_optimizer.register_optimizer_step_post_hook(self.note)

    def stop(self) -> None:
        """End noting steps."""
        if self._hook is not None:
            self._hook.remove()

    def note(self, optimizer: object, _args: object = None, _kwargs: object = None) -> None:
        """Note that an optimizer has made a step."""
        if not self._stepped or id(optimizer) in self._stepped:
            self._times.append(now())
            self._stepped.clear()
        self._stepped.add(id(optimizer))

    def take(self) -> list[float]:
        """Return the steps since the last time, in seconds since the epoch."""
        taken, self._times = self._times, []
        return taken
