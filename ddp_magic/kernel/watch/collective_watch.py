"""What is known of the ranks' collectives in one attempt of a run: who waits, and what differs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from ddp_magic.display.diagnosis import hangs
from ddp_magic.display.rank import Rank
from ddp_magic.display.rank_names import on_nodes, rank_names
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.watch.call_check import CallCheck
from ddp_magic.kernel.watch.hang_watch import HangWatch
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import Note
from ddp_magic.wire.states import State

_DEBUG = "TORCH_DISTRIBUTED_DEBUG"
LEFT_S = 1.0  # after a rank's cell, until the ranks that wait for it in a collective are stopped


class CollectiveWatch:
    """Explains the waits of ranks for each other, and compares their collectives (`--check`).

    Args:
        options: Of the run.
        directory: Of the run.
        hang_s: A shorter wait is not explained, in seconds.

    Attributes:
        mismatch: What `--check` found at the end; empty if it found nothing.
        checked: Number of collectives that all ranks have called alike; None without `--check`.
    """

    def __init__(self, options: Options, directory: RunDirectory, hang_s: float) -> None:
        self.mismatch = ""
        self.checked: int | None = None
        self._spelled = options.spelled("check")
        self._advice = "" if options.check else self._spelled  # to those who do not have it
        self._hangs = HangWatch(hang_s, self._advice)
        self._check = CallCheck(directory, options.nproc) if options.check else None
        self._last_waits: tuple[str, ...] = ()  # when the first rank failed, or the run was ended

    @property
    def waits(self) -> tuple[str, ...]:
        """A sentence for each wait that lasts at the moment."""
        return self._hangs.sentences

    @property
    def mismatch_lines(self) -> Sequence[tuple[str, int]]:
        """(ranks, line of the cell) for each line that called what differs."""
        return self._check.lines if self._check else ()

    def look(self, ranks: Sequence[Rank]) -> bool:
        """Look at the waits again, if it is time; return whether they have changed."""
        return self._hangs.look(ranks)

    def differs(self, ranks: Sequence[Rank]) -> bool:
        """Whether ranks have called different collectives, so that the run is to be stopped."""
        return self._check is not None and self._check.look(_left(ranks))

    def remember_waits(self, ranks: Sequence[Rank]) -> None:
        """Note who waits for whom now, the first time that the run begins to end."""
        self._last_waits = self._last_waits or self._hangs.recent(ranks)

    def finish(self, ranks: Sequence[Rank]) -> list[Note]:
        """End the comparison of the collectives; return what to tell the user about it."""
        if self._check is None:
            return []
        # A rank that waits for one which has finished loses its connection to it.
        failures = [rank.failure for rank in ranks if not rank.succeeded]
        finished = all(failure is not None and failure.lost_its_peer for failure in failures)
        nodes = {rank.rank: rank.node for rank in ranks}
        self.mismatch = on_nodes(self._check.finish(finished=finished), nodes)
        self.checked = self._check.checked
        if not self._check.unread:
            return []
        text = f"warning: {self._spelled} did not compare all calls of "
        text += f"{rank_names(self._check.unread)}: they could not be written or read"
        return [Note(text=text)]

    def warnings(self, ranks: Sequence[Rank], state: State) -> list[Note]:
        """Return what was wrong with the collectives of a run that succeeded."""
        if state is not State.SUCCEEDED:
            return []
        return [Note(text=f"warning: {text}") for text in hangs.mismatches(ranks)]

    def reasons(self, ranks: Sequence[Rank]) -> tuple[str, ...]:
        """Return why the run failed, as far as its ranks' waits tell; empty if it did not."""
        if all(rank.succeeded for rank in ranks):  # it was ended while they exited
            return self._last_waits
        found = hangs.reasons(ranks, self._last_waits, self._advice)
        if os.environ.get(_DEBUG) == "DETAIL" and any(r.code == -signal.SIGSEGV for r in ranks):
            found.append(
                f"{_DEBUG}=DETAIL is set, with which DDP crashes in torch 2.13: unset it, and use "
                f"`{self._spelled}`, which compares the collectives too"
            )
        return tuple(found)

    def close(self) -> None:
        """Close the files of the comparison."""
        if self._check is not None:
            self._check.close()


def _left(ranks: Sequence[Rank]) -> list[int]:
    """Return the ranks that ended their cell well, so long ago that their calls are read."""
    now = time.time()
    ends = {r.rank: r.ended for r in ranks if r.ended is not None and r.failure is None}
    return [rank for rank, ended in ends.items() if now - ended > LEFT_S]
