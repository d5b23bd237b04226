"""Where the time of a run went: a table of its ranks, its lines, and what limits it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_magic.display.profiles.bottleneck import MIN_SAMPLES, judge
from ddp_magic.display.profiles.facts import Bottleneck, Machine, Traffic
from ddp_magic.display.profiles.notes import notes
from ddp_magic.display.profiles.rank_times import (
    LineTime,
    RankTimes,
    Window,
    line_times,
    line_times_by_kind,
    loop_of,
    rank_times,
)
from ddp_magic.display.profiles.waits import Waits
from ddp_magic.display.rank_names import on_nodes
from ddp_magic.wire.profile import Place, RankProfile

SHOWN_LINES = 5
_MAX_SOURCE = 60
_SHARDED = 0.1  # of the bytes are gathered or scattered: not only a metric, so as in FSDP

# (head of the column, attributes of `RankTimes` that it adds up)
COLUMNS = (
    ("compute", ("compute_s",)),
    ("waiting for the GPU", ("device_s",)),
    ("waiting for ranks", ("waiting_s",)),
    ("moving data", ("moving_s",)),
    ("collectives", ("untold_s",)),
    ("data loader", ("loading_s",)),
    ("reading files", ("reading_s",)),
    ("saving, printing", ("saving_s", "printing_s")),
    ("idle", ("idle_s",)),
)


@dataclass(frozen=True, kw_only=True)
class Code:
    """What the files of the user's code are called, and their text.

    Attributes:
        labels: Names of cells, by file: `Cell In[3]`; empty for the cell itself.
        sources: Text of the cells, by file.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def name(self, line: LineTime) -> str:
        """Return a line as a person reads it: ``line 3 (`loss.backward()`)``."""
        return self.line(line.place)

    def line(self, place: Place) -> str:
        """Return a line as a person reads it, by its place."""
        source = self.source(place)
        return self.where(place) + (f" (`{source}`)" if source else "")

    def where(self, place: Place) -> str:
        """Return `line 3`, `Cell In[2], line 3`, or `data.py, line 3`."""
        file = self.labels.get(place.file, Path(place.file).name)
        return ", ".join(filter(None, [file, f"line {place.line}"]))

    def source(self, place: Place) -> str:
        """Return the text of a line of a cell; empty if it is not known."""
        lines = self.sources.get(place.file, "").splitlines()
        text = lines[place.line - 1].strip() if 0 < place.line <= len(lines) else ""
        return text if len(text) <= _MAX_SOURCE else text[: _MAX_SOURCE - 3] + "..."


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of a run went.

    Attributes:
        ranks: The times of each rank, over the whole cell.
        lines: The lines of the user's code, the most expensive first.
        verdict: What limits the run.
        why: What that is concluded from.
        advice: The change to try next, and what it can save at most.
        notes: What is not known, and why.
    """

    ranks: tuple[RankTimes, ...]
    lines: tuple[LineTime, ...]
    verdict: str
    why: str
    advice: str
    notes: tuple[str, ...] = ()
    code: Code = field(default_factory=Code, repr=False)

    @property
    def text(self) -> str:
        """All of it, as it is shown."""
        lines = [_headline(self.ranks), *_table(self.ranks)]
        if self.lines:
            lines += ["", "most expensive lines, mean of the ranks:", *self._lines()]
        found = Bottleneck(self.verdict, self.why, self.advice)
        words = [*found.lines, *(f"note: {note}" for note in self.notes)]
        nodes = {t.rank: t.node for t in self.ranks}
        return "\n".join([*lines, "", *(on_nodes(line, nodes) for line in words)])

    def _lines(self) -> list[str]:
        rows = []
        for line in self.lines[:SHOWN_LINES]:
            most = max(line.by_rank, key=lambda rank: line.by_rank[rank])
            uneven = len(line.by_rank) > 1 and line.by_rank[most] > 1.5 * line.share
            share = f"{100 * line.share:.0f} %"
            row = (share, _duration(line.seconds), self.code.where(line.place))
            of_rank = f" (rank {most}: {100 * line.by_rank[most]:.0f} %)" if uneven else ""
            rows.append((*row, line.spent.value, self.code.source(line.place) + of_rank))
        return _aligned(rows, right=2)

    def __repr__(self) -> str:
        return self.text

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # noqa: ANN401 -- IPython's protocol
        printer.text(self.text)


def summarize(profiles: Sequence[RankProfile], nproc: int, code: Code) -> Profile | None:
    """Return where the time of a run went; None if no rank has measured anything.

    Args:
        profiles: What ranks have measured, in the order of the ranks.
        nproc: Number of ranks.
        code: The names of files.
    """
    measured, profiles = profiles, [profile for profile in profiles if profile.samples]
    if not profiles:
        return None
    waits = Waits(measured)
    ranks = [rank_times(profile, waits) for profile in profiles]
    windows = {p.rank: window for p in profiles if (window := loop_of(p)) is not None}
    loop = _loop_of_all(list(windows.values()))
    judged = [rank_times(profile, waits, loop) for profile in profiles]
    if loop is None or max(times.samples for times in judged) < MIN_SAMPLES:
        loop, windows, judged = None, {}, ranks
    for whole, profile in zip(ranks, profiles, strict=True):
        own = windows.get(profile.rank)
        whole.own_step_s = rank_times(profile, waits, own).own_step_s if own else None
    machine = Machine(_processors(profiles), max(profile.threads for profile in profiles))
    found = judge(
        judged,
        line_times_by_kind(profiles, loop),
        code.name,
        _traffic(profiles, windows),
        machine,
    )
    return Profile(
        ranks=tuple(ranks),
        lines=tuple(line_times(profiles)),
        verdict=found.verdict + _of_loop(ranks, judged),
        why=found.why,
        advice=found.advice,
        notes=tuple(notes(measured, ranks, nproc, machine, found.verdict, code.line)),
        code=code,
    )


def _processors(profiles: Sequence[RankProfile]) -> int:
    """Return the number of processors of all nodes together."""
    of_nodes: dict[str, int] = {}
    for profile in profiles:
        of_nodes[profile.node] = max(of_nodes.get(profile.node, 0), profile.processors)
    return sum(of_nodes.values())


def _loop_of_all(windows: Sequence[Window]) -> Window | None:
    """Return the time from the first step of any rank to the last.

    A rank that has made its steps waits for those with more of them.
    """
    if not windows:
        return None
    return min(begin for begin, _ in windows), max(end for _, end in windows)


def _of_loop(ranks: Sequence[RankTimes], judged: Sequence[RankTimes]) -> str:
    """Return which part of the cell is judged, if it is not nearly all."""
    whole, part = (statistics.fmean(t.total_s for t in times) for times in (ranks, judged))
    if part > 0.9 * whole:
        return ""
    return f" (in the {_duration(part)} from the first to the last step)"


def _traffic(profiles: Sequence[RankProfile], windows: Mapping[int, Window]) -> Traffic:
    profile = max(profiles, key=lambda profile: len(profile.calls))
    window = windows.get(profile.rank, (0.0, float("inf")))
    calls = [call for call in profile.calls if window[0] < call.created <= window[1]]
    if not calls:
        return Traffic()
    per_step = None
    numbers = [call.number for call in calls if call.group == calls[-1].group]
    if len(profile.steps) > 1 and profile.rank in windows:
        # Numbers tell how many there were, also of those whose record is lost.
        seconds = window[1] - window[0]
        seen_s = calls[-1].created - calls[0].created
        in_loop = (max(numbers) - min(numbers)) * seconds / seen_s if seen_s else len(calls)
        per_step = in_loop / (len(profile.steps) - 1)
    return Traffic(
        per_step=per_step,
        mean_bytes=statistics.fmean(call.bytes for call in calls),
        sharded=_SHARDED * sum(call.bytes for call in calls)
        < sum(c.bytes for c in calls if "all_gather" in c.name or "reduce_scatter" in c.name),
    )


# --- text -----------------------------------------------------------------------------------------


def _headline(ranks: Sequence[RankTimes]) -> str:
    count = len(ranks)
    words = [f"profile of {count} rank{'s' if count > 1 else ''}"]
    timed = [t for t in ranks if t.step_s is not None]
    if not timed:
        made = max(t.steps for t in ranks)
        steps = "no step" if not made else f"{made} step{'s' if made > 1 else ''}"
        return f"{words[0]} · step time unknown: {steps} of a torch.optim optimizer was seen"
    medians = [t.step_s for t in timed if t.step_s is not None]
    slow = max(t.slow_step_s or 0.0 for t in timed)
    fewest, most_steps = min(t.steps for t in timed), max(t.steps for t in timed)
    words.append(f"{f'{fewest} to ' if fewest < most_steps else ''}{most_steps} steps")
    words.append(f"{_span(medians)} a step (median; 90 % take at most {_duration(slow)})")
    own = {t.rank: t.own_step_s for t in timed if t.own_step_s is not None}
    if len(own) > 1:
        last = max(own, key=lambda rank: own[rank])
        most = f" (most: rank {last})" if own[last] > 1.1 * min(own.values()) else ""
        words.append(f"without waiting for ranks {_span(list(own.values()))}{most}")
    return " · ".join(words)


def _span(seconds: Sequence[float]) -> str:
    low, high = _duration(min(seconds)), _duration(max(seconds))
    return low if low == high else f"{low} to {high}"


def _table(ranks: Sequence[RankTimes]) -> list[str]:
    columns = [(head, names) for head, names in COLUMNS if any(part_s(t, names) for t in ranks)]
    where = ["node"] if any(t.node for t in ranks) else []
    rows: list[tuple[str, ...]] = [("rank", *where, "total", *(head for head, _ in columns))]
    for t in ranks:
        parts = [
            (seconds, t.share(seconds)) for _, names in columns for seconds in [part_s(t, names)]
        ]
        shown = (f"{_duration(s)} {100 * share:3.0f} %" if s else "-" for s, share in parts)
        rows.append((str(t.rank), *(t.node for _ in where), _duration(t.total_s), *shown))
    return _aligned(rows, right=len(rows[0]))


def part_s(times: RankTimes, names: Sequence[str]) -> float:
    """Return the seconds of a column of `COLUMNS`."""
    untold_s = times.collective_s if times.waiting_s is None else 0.0
    return sum((untold_s if name == "untold_s" else getattr(times, name)) or 0.0 for name in names)


def _aligned(rows: Sequence[tuple[str, ...]], right: int) -> list[str]:
    """Align columns, the first ones to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i < right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _duration(seconds: float) -> str:
    if seconds < 1.0:
        return f"{1000 * seconds:.3g} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
