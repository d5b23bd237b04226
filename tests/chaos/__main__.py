"""Random faults in real kernels: `python -m tests.chaos --seed 1 --count 300`.

It prints a line for each fault, and at the end a table. It fails if a promise was broken: 0
processes left after 3 s, 0 cells that do not end, 0 wrong culprits, 0 frames of ddp_magic in what a
user sees, and the next cell works. `--only N` plays one fault of a seed again.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.check import KINDS, Violation, shown, violations
from tests.chaos.draw import Draw, draw
from tests.chaos.notebook import Notebook
from tests.chaos.play import Seen, play

LINES = 80  # of what is printed of a violation
Played = tuple[Draw, Seen, list[Violation]]


class Series:
    """Plays faults, several at a time, each player with two notebooks of its own.

    Args:
        draws: The faults.
        verbose: Whether to print all that a user sees.
    """

    def __init__(self, draws: Sequence[Draw], *, verbose: bool = False) -> None:
        self.played: list[Played] = []
        self._verbose = verbose
        self._lock = threading.Lock()
        self._todo: queue.SimpleQueue[Draw] = queue.SimpleQueue()
        for one in draws:
            self._todo.put(one)

    def run(self, jobs: int) -> None:
        """Play them all."""
        players = [threading.Thread(target=self._play_all) for _ in range(jobs)]
        for player in players:
            player.start()
        try:
            for player in players:
                player.join()
        except KeyboardInterrupt:  # the faults that are being played come to their end
            while not self._todo.empty():
                self._todo.get_nowait()
            for player in players:
                player.join()

    def _play_all(self) -> None:
        with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
            notebook, other = Notebook(Path(folder, "1")), Notebook(Path(folder, "2"))
            try:
                while True:
                    self._play_one(self._todo.get_nowait(), notebook, other)
            except queue.Empty:
                pass
            finally:
                notebook.discard()
                other.discard()

    def _play_one(self, one: Draw, notebook: Notebook, other: Notebook) -> None:
        began = time.monotonic()
        try:
            seen = play(one, notebook, other)
            found = violations(one, seen)
        except Exception as error:  # noqa: BLE001 -- the other faults are played all the same
            seen, found = Seen(), [Violation("hung", f"the suite failed: {error!r}")]
        if found:
            notebook.discard()  # the next fault does not inherit it
        with self._lock:
            self.played.append((one, seen, found))
            self._report(one, seen, found, time.monotonic() - began)

    def _report(self, one: Draw, seen: Seen, found: Sequence[Violation], took_s: float) -> None:
        verdict = "VIOLATION" if found else "ok" if seen.played else f"not played: {seen.why_not}"
        times = f"end {seen.late_s:.1f} s after it, {took_s:.0f} s in all"
        print(f"{one} · {times} · {verdict}", flush=True)
        for violation in found:
            print(_cut(str(violation)), flush=True)
        if found:
            print(f"    again: python -m tests.chaos --seed {one.seed} --only {one.number}")
        if self._verbose:
            print(
                one.cell, shown(seen.result), shown(seen.next) if seen.next else "", sep="\n---\n"
            )


def _cut(text: str) -> str:
    """Return a text of many lines indented, its head and tail only."""
    lines = text.splitlines()
    if len(lines) > LINES:
        lines[LINES // 2 : -LINES // 2] = ["..."]
    return "\n".join("    " + line for line in lines)


def table(played: Sequence[Played]) -> str:
    """Return the table: for each kind of fault, how many, and the promises that were broken."""
    rows: dict[str, list[Played]] = defaultdict(list)
    for one in played:
        rows[one[0].fault].append(one)
    rows["**all**"] = list(played)
    lines = [
        f"| fault | played | slowest end, s | {' | '.join(KINDS)} |",
        "| --- " * (3 + len(KINDS)) + "|",
    ]
    for name, ones in rows.items():
        kinds = Counter(kind for _, _, found in ones for kind in {v.kind for v in found})
        hits = sum(seen.played for _, seen, _ in ones)
        slowest = max(seen.late_s for _, seen, _ in ones)
        numbers = " | ".join(str(kinds[kind]) for kind in KINDS)
        lines.append(f"| {name} | {hits} of {len(ones)} | {slowest:.1f} | {numbers} |")
    return "\n".join(lines)


def main() -> int:
    """Play the faults; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--only", type=int, help="the number of a single fault")
    parser.add_argument("--fault", default="", help="part of a kind's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="print what a user sees")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else [options.only]
    began = time.monotonic()
    draws = [one for n in numbers if options.fault in (one := draw(options.seed, n)).fault]
    series = Series(draws, verbose=options.verbose)
    series.run(min(options.jobs, len(draws)))
    print("\n" + table(sorted(series.played, key=lambda one: one[0].fault)))
    broken = sum(bool(found) for _, _, found in series.played)
    print(
        f"\n{len(series.played)} faults, {broken} broke a promise, {time.monotonic() - began:.0f} s"
    )
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
