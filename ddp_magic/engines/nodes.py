"""What is known of the nodes of a job, from what their relays have said."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ddp_magic.system.processes import signal_name
from ddp_magic.wire.relay_frames import NodeEnd

GAP_S = 3.0  # a relay says something every second


@dataclass
class Nodes:
    """What the nodes have said of themselves.

    Attributes:
        count: How many there are; 0 before the first has said so.
        hosts: Their host names, by number.
        names: What the cluster calls them, by number.
        lost: The node that was lost first, as the cluster calls it; empty if none was.
        lost_how: How, in a sentence.
        lost_at: When, in seconds since the epoch.
        ended: Those whose agent has ended, and how.
        heard: When each last said something, on the monotonic clock, s, as far as this process
            listened.
        signaled: The first signal that a relay got before an agent had ended: its number, and when
            that was said, in seconds since the epoch; None if none did.
    """

    count: int = 0
    hosts: dict[int, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    lost: str = ""
    lost_how: str = ""
    lost_at: float = 0.0
    ended: dict[int, NodeEnd] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    signaled: tuple[int, float] | None = None

    def name(self, node: int) -> str:
        """Return the name of a node, or its number if that is not known."""
        return self.hosts.get(node, f"node {node}")

    def hear(self, node: int, now: float) -> None:
        """Note that a node has said something.

        Args:
            node: Which.
            now: On the monotonic clock, s.
        """
        latest = max(self.heard.values(), default=now)
        if now - latest > GAP_S:  # all at once: it was this process that did not listen
            self.missed(now - latest)
        self.heard[node] = now

    def silent(self, now: float, silent_s: float) -> int | None:
        """Return a node that has said nothing for a while, though another has; None if none has.

        If all are silent, the job may be suspended; not if a node has ended, which ends the job.

        Args:
            now: On the monotonic clock, s.
            silent_s: How long, in seconds.
        """
        heard = {n: at for n, at in list(self.heard.items()) if n not in self.ended}
        if not heard or now - min(heard.values()) < silent_s:
            return None
        if now - max(heard.values()) > GAP_S and not self.ended:
            return None
        return min(heard, key=heard.__getitem__)

    def over_s(self, now: float) -> float:
        """Return for how long all nodes have ended, in seconds; 0 if one has not."""
        is_over = bool(self.count) and len(self.ended) == self.count
        return now - max(self.heard.values()) if is_over else 0.0

    def missed(self, gap_s: float) -> None:
        """Note that this process did not listen for a while, in seconds: that is no silence."""
        for each in self.heard:
            self.heard[each] += gap_s

    def quiet_words(self, now: float, quiet_s: float) -> str:
        """Return which node has not answered for a while, for the table; empty if all have."""
        if (node := self.silent(now, quiet_s)) is not None:
            return f"{self.name(node)} has not answered for {now - self.heard[node]:.0f} s"
        heard = [at for node, at in list(self.heard.items()) if node not in self.ended]
        if heard and now - max(heard) > quiet_s:
            return f"no node has answered for {now - max(heard):.0f} s: the job may be suspended"
        return ""

    def lose(self, node: int, why: str) -> None:
        """Note that a node is lost; what becomes of others later follows from that."""
        if not self.lost:
            self.lost = self.names.get(node, self.name(node))
            self.lost_how = f"{self.name(node)} was lost: {why}"
            self.lost_at = time.time()

    def without_an_end(self) -> list[int]:
        """Return the nodes that have not said their end, if others have or none got a signal."""
        left = [node for node in sorted(self.hosts) if node not in self.ended]
        return [] if self.signaled is not None and len(left) == len(self.hosts) else left

    def note_signal(self, number: int) -> None:
        """Note that a relay got a signal."""
        if self.signaled is None and not self.ended:
            self.signaled = number, time.time()

    def outside_words(self) -> str:
        """Return how they were ended from outside, at the end; empty if they were not."""
        if self.signaled is not None:
            return f"was ended from outside, by {signal_name(self.signaled[0])}"
        lost = [self.hosts[node] for node in sorted(self.hosts) if node not in self.ended]
        if lost:
            return f"lost its relay{'s' * (len(lost) > 1)} on {', '.join(lost)}"
        if not self.ended or any(how is not NodeEnd.TOLD for how in self.ended.values()):
            return ""
        if never := [f"node {n}" for n in range(self.count) if n not in self.hosts]:
            return f"lost {', '.join(never)} of {self.count} before it was up"
        return "was ended from outside"
