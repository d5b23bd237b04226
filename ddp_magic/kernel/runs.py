"""The runs of this kernel: the newest ones, found by their ids, for the threads that ask."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterator

from ddp_magic.kernel.execution.run import Run

KEEP_RUNS = 200


class Runs:
    """The runs of this kernel, newest first. Several threads may add to them."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque(maxlen=KEEP_RUNS)
        self._lock = threading.Lock()

    def add(self, run: Run) -> None:
        """Add a run."""
        with self._lock:
            self._runs.appendleft(run)

    def __iter__(self) -> Iterator[Run]:
        with self._lock:
            return iter(list(self._runs))

    def without_results(self, run: Run) -> None:
        """Drop the results of the stored run; the caller's own `Run` keeps them."""
        kept = copy.copy(run)
        kept.results = {}
        with self._lock:  # other threads' runs move it
            place = next((i for i, stored in enumerate(self._runs) if stored is run), None)
            if place is not None:
                self._runs[place] = kept

    def last_binding(self, name: str) -> Run | None:
        """Return the newest run whose cell assigned this name; None if there is none."""
        return next((run for run in self if name in run.bound), None)

    def find(self, run_id: str) -> Run | None:
        """Return the newest run whose id ends with `run_id`; None if there is none."""
        return next((run for run in self if run.id.endswith(run_id)), None)
