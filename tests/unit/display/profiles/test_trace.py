"""A trace in Chrome's Trace Event Format."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from ddp_magic.display.profiles.trace import trace_of
from ddp_magic.wire.profile import Spent
from tests.unit.display.profiles.examples import CODE, made

COMPUTE, WAIT, LOAD = Spent.COMPUTE, Spent.COLLECTIVE, Spent.LOADING


def _events() -> list[dict[str, Any]]:
    works = [(COMPUTE, 0.3), (WAIT, 0.7), (LOAD, 0.1), (COMPUTE, 0.3), (WAIT, 0.6)]
    late = [(COMPUTE, 0.5), (WAIT, 0.5), (COMPUTE, 0.8), (WAIT, 0.2)]
    trace = trace_of([made(0, works), made(1, late)], CODE, "Cell In[3]")
    events: list[dict[str, Any]] = json.loads(json.dumps(trace))["traceEvents"]
    return events


def test_each_rank_is_a_process_with_named_threads() -> None:
    names = [
        (e["name"], e["pid"], e["args"]["name"]) for e in _events() if e["name"].endswith("_name")
    ]
    assert ("process_name", 0, "rank 0 (cpu)") in names
    assert ("process_name", 1, "rank 1 (cpu)") in names
    assert names.count(("thread_name", 1, "main thread")) == 1
    assert ("thread_name", 1, "collectives of default_pg") in names


def test_every_event_has_the_fields_of_its_phase() -> None:
    for event in _events():
        assert event["ph"] in "MXsf"
        assert {"name", "pid", "tid", "ts"} <= event.keys()
        assert event["ts"] >= 0
        assert event["ph"] != "X" or (event["dur"] >= 0 and event["cat"])
        assert event["ph"] not in "sf" or {"id", "cat"} <= event.keys()


def test_slices_of_a_thread_nest_or_follow_each_other() -> None:
    """Perfetto shows nothing else."""
    threads: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in _events():
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], -event["dur"]))
    assert len(threads) == 4
    for slices in threads.values():
        open_ends: list[int] = []
        for begin, minus in sorted(slices):
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            assert not open_ends or begin - minus <= open_ends[-1]
            open_ends.append(begin - minus)


def test_lines_are_inside_of_what_the_thread_does() -> None:
    slices = [(e["name"], e["ts"], e["dur"]) for e in _events() if e["ph"] == "X" and not e["pid"]]
    assert ("compute", 0, 300_000) in slices
    assert ("line 1", 0, 300_000) in slices
    assert ("data loader", 1_000_000, 100_000) in slices
    assert ("line 3", 1_000_000, 100_000) in slices


def test_an_arrow_leads_from_the_last_rank_to_one_that_waited() -> None:
    arrows = [e for e in _events() if e["ph"] in "sf"]
    assert [(e["ph"], e["pid"], e["ts"]) for e in arrows[:2]] == [
        ("s", 1, 500_000),
        ("f", 0, 500_000),
    ]
    assert arrows[0]["id"] == arrows[1]["id"] != arrows[2]["id"]
    waiting = next(e for e in _events() if e["name"] == "all_reduce" and e["pid"] == 0)
    assert waiting["args"]["waited_us"] == 200_000
    assert waiting["ts"] <= 500_000 <= waiting["ts"] + waiting["dur"]
