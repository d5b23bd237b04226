"""The profiles of all ranks as one trace in Chrome's Trace Event Format, for Perfetto. Pure.

A rank is a process of the trace. Its main thread has slices of what it was doing and, inside them,
of the lines; each process group has a thread with the collectives, in the order in which they run.
An arrow leads from the collective of the rank that came last to those that waited for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddp_magic.display.profiles.profile import Code
from ddp_magic.wire.profile import PEER, UNKNOWN, Call, Place, RankProfile, Sample, Spent

_MAIN = 1  # number of the thread with the samples; those of process groups follow
_ARROW_S = 0.001  # a shorter wait gets no arrow

Event = dict[str, Any]


def trace_of(profiles: Sequence[RankProfile], code: Code, title: str) -> dict[str, Any]:
    """Return a trace, to be written as JSON.

    Args:
        profiles: Those of all ranks.
        code: The names of files.
        title: What a person calls the run.
    """
    zero = min((profile.began for profile in profiles), default=0.0)
    events: list[Event] = []
    for profile in profiles:
        events += _names(profile)
        events += _slices(profile, code, zero)
    events += _collectives(profiles, zero)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"title": title, "began": zero},
    }


def _names(profile: RankProfile) -> Iterator[Event]:
    def meta(kind: str, tid: int, **args: object) -> Event:
        return {"ph": "M", "name": kind, "pid": profile.rank, "tid": tid, "ts": 0, "args": args}

    yield meta("process_name", 0, name=f"rank {profile.rank} ({profile.device})")
    yield meta("process_sort_index", 0, sort_index=profile.rank)
    yield meta("thread_name", _MAIN, name="main thread")
    yield meta("thread_sort_index", _MAIN, sort_index=_MAIN)
    for index, group in enumerate(profile.groups):
        if group.key.startswith(PEER):
            continue
        tid = _MAIN + 1 + index
        yield meta("thread_name", tid, name=f"collectives of {group.title or group.key}")
        yield meta("thread_sort_index", tid, sort_index=tid)


# --- samples --------------------------------------------------------------------------------------


def _slices(profile: RankProfile, code: Code, zero: float) -> Iterator[Event]:
    """Yield slices of what the main thread did, and those of lines inside them."""
    begin = profile.began  # a sample stands for the time since the one before
    for kind, samples in _runs(profile.samples):
        end = samples[-1].time
        yield _slice(kind.value, "main thread", profile.rank, _MAIN, begin - zero, end - zero)
        for place, inner in _runs_of_places(samples, profile.places):
            end = inner[-1].time
            if place.line:
                args = {"call": place.call, "source": code.source(place)}
                name = code.where(place) + (f": {place.call}" if place.call else "")
                yield _slice(name, kind.value, profile.rank, _MAIN, begin - zero, end - zero, args)
            begin = end


def _runs(samples: Sequence[Sample]) -> Iterator[tuple[Spent, list[Sample]]]:
    run: list[Sample] = []
    for sample in samples:
        if run and run[-1].spent is not sample.spent:
            yield run[-1].spent, run
            run = []
        run.append(sample)
    if run:
        yield run[-1].spent, run


def _runs_of_places(
    samples: Sequence[Sample], places: Sequence[Place]
) -> Iterator[tuple[Place, list[Sample]]]:
    run: list[Sample] = []
    for sample in samples:
        if run and run[-1].place != sample.place:
            yield places[run[-1].place], run
            run = []
        run.append(sample)
    if run:
        yield places[run[-1].place], run


# --- collectives ----------------------------------------------------------------------------------


def _collectives(profiles: Sequence[RankProfile], zero: float) -> Iterator[Event]:
    came: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for profile in profiles:
        for call in profile.calls:
            came[profile.groups[call.group].key, call.number][profile.rank] = call.created
    slices: dict[tuple[str, int], dict[int, Event]] = defaultdict(dict)
    for profile in profiles:
        free: dict[int, float] = defaultdict(
            float
        )  # when the group's last one ended, by index of the group
        ends = _last_seen(profile)
        for call in profile.calls:
            key = profile.groups[call.group].key, call.number
            last = max(came[key].values())
            begin = max(call.created, free[call.group])
            end = max(_end(call, last, ends), begin)
            free[call.group] = end
            args = {
                "number": call.number,
                "bytes": call.bytes,
                "called_us": round((call.created - zero) * 1e6),
                "waited_us": round((last - call.created) * 1e6),
                "end": "measured" if call.duration_s is not None else "from samples",
            }
            tid = _MAIN + 1 + call.group
            event = _slice(
                call.name, "collective", profile.rank, tid, begin - zero, end - zero, args
            )
            slices[key][profile.rank] = event
            yield event
    yield from _arrows(came, slices)


def _last_seen(profile: RankProfile) -> dict[tuple[int, int], float]:
    """Return when each collective was last seen to be pending, by group and number."""
    return {
        (sample.group, sample.number): sample.time
        for sample in profile.samples
        if sample.group != UNKNOWN
    }


def _end(call: Call, last: float, seen: dict[tuple[int, int], float]) -> float:
    if call.duration_s is not None:
        return call.created + call.duration_s
    return max(last, seen.get((call.group, call.number), 0.0), call.created)


def _arrows(
    came: dict[tuple[str, int], dict[int, float]],
    slices: dict[tuple[str, int], dict[int, Event]],
) -> Iterator[Event]:
    number = 0
    for key, times in came.items():
        last = max(times, key=lambda rank: times[rank])
        for rank, created in times.items():
            if rank == last or times[last] - created < _ARROW_S:
                continue
            number += 1
            came_us = slices[key][last]["ts"]
            for phase, of in (("s", last), ("f", rank)):
                at = slices[key][of]
                arrow: Event = {
                    "ph": phase,
                    "id": number,
                    "name": "came last",
                    "cat": "wait",
                    "pid": of,
                    "tid": at["tid"],
                    "ts": came_us if phase == "s" else min(came_us, at["ts"] + at["dur"]),
                }
                yield arrow if phase == "s" else {**arrow, "bp": "e"}


def _slice(
    name: str,
    category: str,
    pid: int,
    tid: int,
    begin_s: float,
    end_s: float,
    args: Mapping[str, object] | None = None,
) -> Event:
    # Whole microseconds: slices of a thread may nest or follow each other, but not overlap.
    begin_us = round(max(0.0, begin_s) * 1e6)
    event = {"ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid, "ts": begin_us}
    event["dur"] = max(0, round(end_s * 1e6) - begin_us)
    return event | ({"args": dict(args)} if args else {})
