"""The live table of a run: a headline, who waits for whom, a row for each rank and bar. Pure."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence

from ddp_magic.display.grid import grid, html_grid, html_line
from ddp_magic.display.labels import css_color
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.display.run_words import (
    FINISHED,
    OUTCOMES,
    attempt_words,
    clock,
    rank_cells,
    rank_memory,
)
from ddp_magic.display.text.bar_text import percent_done, shorten_bar
from ddp_magic.wire.states import Phase

MAX_ROWS = 8
MAX_BARS = 6  # of one rank
BAR_CHARS = 100
# The cell blocks the notebook: these answer nevertheless.
STACKS_COMMAND = "`ddp-magic stacks` in a terminal, or %ddp_status --stacks in a subshell console"

_COLUMNS = ("rank", "pid", "device", "state", "line", "memory", "progress")
_SHARED = {"device": 2, "state": 3, "line": 4}  # what can be the same for all ranks, and where
_NUMBERS = re.compile(r"[\d,]+")

Row = tuple[str, ...]


class LiveTable:
    """The table of a run, as text and as HTML.

    A column that says the same for all ranks goes into the headline. One that has ever differed
    stays a column: a table that changes its form is hard to read.
    """

    def __init__(self) -> None:
        self._differed: set[str] = set()

    def render(self, run: RunRecord) -> tuple[str, str]:
        """Return the table as text and as HTML."""
        now = time.time() if run.ended is None else run.ended
        rows = [_row(rank, run, now) for rank in run.ranks]
        same = self._same_for_all(rows)
        lines = [headline(run, same), *run.waits]
        if run.waits:
            lines.append(f"stacks of all ranks: {STACKS_COMMAND}")
        if len(rows) > MAX_ROWS:
            rows = _those_that_differ(run, rows)
        rows = [_without(row, same) for row in rows]
        rows = [row for first in rows for row in (first, *_inner_rows(first, run))]
        if not any(cell for row in rows for cell in row[1:]):
            rows = []  # no rank has begun
        colors = [css_color(int(row[0])) if row[0].isdigit() else "" for row in rows]
        text, markup = "\n".join(lines), "".join(map(html_line, lines))
        if not rows:
            return text, markup
        text = "\n".join([text, *grid(_COLUMNS, rows)])
        return text, markup + html_grid(_COLUMNS, rows, colors)

    def _same_for_all(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return the columns that have the same content in all rows, and that content."""
        same = {}
        for name, place in _SHARED.items():
            contents = {row[place] for row in rows}
            if len(contents - {""}) > 1 or (name != "device" and len(contents) > 1):
                self._differed.add(name)
            elif len(rows) > 1 and name not in self._differed and "" not in contents:
                same[name] = rows[0][place]
        return same


def headline(run: RunRecord, same: dict[str, str]) -> str:
    """Return the first line of the table.

    Args:
        run: The run.
        same: What is the same for all ranks: `state`, `line`. The line says the devices anyway.
    """
    words = [run.devices, run.doing or OUTCOMES[run.state]]
    state = same.get("state")
    if state and state not in (*words, Phase.WAITING.value):
        words.append(f"all ranks: {state}")
    if "line" in same:
        cell, _, line = same["line"].rpartition(":")
        words.append(f"all at Cell {cell}, line {line}" if cell else f"all at line {line}")
    words += [*attempt_words(run), f"{run.elapsed_s:.0f} s", f"since {clock(run.started)}"]
    return " · ".join(words)


def status_line(run: RunRecord, chars: int) -> str:
    """Return what a run does in one line of a terminal, of so many characters at most."""
    words = [run.doing or OUTCOMES[run.state], *attempt_words(run), f"{run.elapsed_s:.0f} s"]
    bars = {rank: found for rank, found in run.progress.items() if found}
    if run.waits:
        words.append(run.waits[0])
    elif bars:
        slowest = min(bars, key=lambda rank: (*map(_done, bars[rank]), rank))
        start = " · ".join([*words, f"rank {slowest}: "])
        each = (chars - len(start)) // len(bars[slowest]) - 3
        return (start + " · ".join(shorten_bar(b, max(10, each)) for b in bars[slowest]))[:chars]
    else:
        now = time.time() if run.ended is None else run.ended
        states = Counter(_row(rank, run, now)[3] for rank in run.ranks)
        if len(states) > 1:
            words += [f"{count} {state}" for state, count in states.most_common()]
    return " · ".join(words)[:chars]


def _row(rank: Rank, run: RunRecord, now: float) -> Row:
    bar = next(iter(run.progress.get(rank.rank, ())), "")
    return (*rank_cells(rank, now), rank_memory(rank), shorten_bar(bar, BAR_CHARS))


def _inner_rows(row: Row, run: RunRecord) -> list[Row]:
    """Return the rows of the bars that stand within the rank's first one."""
    bars = run.progress.get(int(row[0]), ()) if row[0].isdigit() else ()
    shown = list(bars[1:MAX_BARS])
    if len(bars) > MAX_BARS:
        shown[-1] = f"... {len(bars) - MAX_BARS + 1} more bars"
    return [("",) * (len(_COLUMNS) - 1) + (shorten_bar(bar, BAR_CHARS),) for bar in shown]


def _without(row: Row, columns: dict[str, str]) -> Row:
    gone = {_SHARED[name] for name in columns}
    return tuple("" if place in gone else cell for place, cell in enumerate(row))


def _those_that_differ(run: RunRecord, rows: list[Row]) -> list[Row]:
    """Return the rows of the ranks to look at, and one for all others.

    These have failed, are the slowest or the fastest, or do something else than most; to have
    finished is nothing to look at.
    """
    states = {rank.rank: row[3] for rank, row in zip(run.ranks, rows, strict=True)}
    usual = Counter(states.values()).most_common(1)[0][0]
    failed = [rank.rank for rank in run.ranks if rank.failure is not None]
    others = [rank for rank, state in states.items() if state not in (usual, FINISHED)]
    far = {r.rank: _advance(run, r) for r in run.ranks if states[r.rank] != FINISHED}
    order = sorted(far, key=far.__getitem__)
    extremes = [order[0], order[-1]] if order and far[order[0]] != far[order[-1]] else []
    chosen = sorted(list(dict.fromkeys([*failed, *extremes, *others]))[:MAX_ROWS])
    rest = [row for rank, row in enumerate(rows) if rank not in chosen]
    return [
        *(rows[rank] for rank in chosen),
        *([_summed_up(rest, "others" if chosen else "ranks")] if rest else []),
    ]


def _advance(run: RunRecord, rank: Rank) -> tuple[tuple[float, ...], int]:
    """Return how far a rank is: by its bars, by the collectives it has called."""
    return tuple(map(_done, run.progress.get(rank.rank, ()))), sum(rank.enqueued.values())


def _done(bar: str) -> float:
    done = percent_done(bar)
    return -1.0 if done is None else done


def _summed_up(rows: Sequence[Row], name: str) -> Row:
    """Return one row for these ranks: `10 others`."""
    columns = list(zip(*rows, strict=True))
    states = [f"{count} {state}" for state, count in Counter(columns[3]).most_common(3)]
    state = columns[3][0] if len(set(columns[3])) == 1 else ", ".join(states)
    done = [percent for bar in columns[6] if (percent := percent_done(bar)) is not None]
    bar = _span([f"{percent:.0f}" for percent in done], " %")
    memory = _span([found[0] for cell in columns[5] if (found := _NUMBERS.match(cell))], " MiB")
    devices = columns[2][0] if len(set(columns[2])) == 1 else ""
    return (f"{len(rows)} {name}", "", devices, state, _lines(columns[4]), memory, bar)


def _lines(cells: Sequence[str]) -> str:
    """Return the first and the last of lines of one cell; empty if they are of several cells."""
    cell, _, _ = cells[0].rpartition(":")
    numbers = [text.removeprefix(f"{cell}:") for text in cells]
    if not all(number.isdigit() for number in filter(None, numbers)):
        return ""
    span = _span(numbers)
    return f"{cell}:{span}" if cell and span else span


def _span(numbers: Sequence[str], unit: str = "") -> str:
    """Return the smallest and the largest of numbers, `3-12`; empty if there are none."""
    ordered = sorted(filter(None, numbers), key=lambda text: int(text.replace(",", "")))
    if not ordered:
        return ""
    return (ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]}-{ordered[-1]}") + unit
