"""What to preload, and what earlier forkservers have shown of it. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass

from ddp_magic.system.processes import exit_words
from ddp_magic.wire.events import SOME_LIBRARY, ForkObstacle, Preloaded

MAX_DEATHS = 3  # in a row, before there is no other forkserver
MAX_CULPRITS = 4  # libraries that have each cost a forkserver; after that, only torch is imported


@dataclass(frozen=True, kw_only=True)
class Death:
    """What the end of a forkserver means.

    Attributes:
        reason: Why it ended, for the user.
        final: Whether there must not be another one.
        first: Whether the user is to be told: it died by itself, for the first time in a row.
    """

    reason: str
    final: bool = False
    first: bool = False


class PreloadRecord:
    """The libraries to preload, kept from one forkserver to the next.

    A library whose import ends a forkserver, or makes it unsafe to fork, does so once: the next
    forkserver first tries every library that is not trusted, in a process of its own
    (`node.trial`). A library that costs a forkserver nevertheless is left to the ranks.

    Attributes:
        wanted: The libraries to import, in this order.
        left_out: Why a library is not imported, by name.
    """

    def __init__(self) -> None:
        self.wanted: dict[str, None] = {}
        self.left_out: dict[str, str] = {}
        self._trusted: set[str] = set()
        self._culprits: list[str] = []
        self._deaths = 0  # in a row

    def want(self, modules: Iterable[str]) -> list[str]:
        """Add libraries; return those that are new."""
        new = [m for m in modules if m not in self.wanted]
        self.wanted.update(dict.fromkeys(new))
        return new

    @property
    def trusted(self) -> list[str] | None:
        """The libraries that need no trial; None if none does, because none has done harm yet."""
        return sorted(self._trusted) if self._culprits else None

    @property
    def only_torch(self) -> bool:
        """Whether no library but torch is imported any more."""
        return len(self._culprits) > MAX_CULPRITS

    def trust(self, module: str) -> None:
        """Note that a library's import has done no harm."""
        self._trusted.add(module)

    def update(self, report: Preloaded) -> None:
        """Note what a forkserver reports."""
        self._deaths = 0
        self.left_out |= report.left_out
        self._trusted -= report.left_out.keys()
        # The next forkserver does not try what is left out, and so imports these by themselves.
        self._trusted |= set(report.good)
        self.want(report.good)

    def add_obstacle(self, obstacle: ForkObstacle) -> Death:
        """Note that a forkserver has ended because it cannot be forked safely."""
        if obstacle.module:
            self._blame(obstacle.module, obstacle.reason)
        reason = f"the forkserver cannot be used: {obstacle.reason}"
        return Death(reason=reason, final=not obstacle.module or self._lost_without_a_library)

    def add_death(self, importing: str, code: int) -> Death:
        """Note that a forkserver has died.

        Args:
            importing: The module that it was importing; empty if none.
            code: Its exit code.
        """
        self._deaths += 1
        reason = f"the forkserver died ({exit_words(code)})"
        if self._deaths > MAX_DEATHS:
            return Death(reason=f"{reason} {self._deaths} times", final=True)
        # The first time, a kill from outside is not blamed on the library.
        if importing and (self._deaths > 1 or code != -signal.SIGKILL):
            self._blame(importing, f"its import ended the process: {reason}")
        return Death(reason=reason, final=self._lost_without_a_library, first=self._deaths == 1)

    @property
    def _lost_without_a_library(self) -> bool:
        """Whether libraries cost a forkserver although it was to import none."""
        return len(self._culprits) > MAX_CULPRITS + 1

    def _blame(self, module: str, reason: str) -> None:
        """Note that a library has cost a forkserver: the next one tries it first."""
        if module in self._culprits:
            self.left_out[module] = reason  # the trial was in vain
        if module == SOME_LIBRARY:
            self._trusted.clear()
        else:
            self.want([module])  # some of what it imports may still be preloaded
        self._trusted.discard(module)
        self._culprits.append(module)
        if self.only_torch:
            self.left_out["*"] = "too many libraries cannot be preloaded: only torch is"

    def forgive(self) -> None:
        """Forget the deaths, and which libraries have cost a forkserver."""
        self._deaths = 0
        self._culprits = []
