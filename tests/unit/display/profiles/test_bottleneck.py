"""Verdict, Why and Next: what limits a run."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from ddp_magic.wire.profile import LOADER, LOADER_WORKERS, Spent
from tests.unit.display.profiles.examples import Work, made, summary

COMPUTE, WAIT, LOAD, SAVE, PRINT, IDLE, DEVICE, READ = (
    Spent.COMPUTE, Spent.COLLECTIVE, Spent.LOADING, Spent.SAVING, Spent.PRINTING, Spent.IDLE,
    Spent.DEVICE, Spent.READING,
)  # fmt: skip


def step(*works: Work, of_s: float = 1.0) -> list[Work]:
    """Ten steps that end in a collective for the rest of their time."""
    rest = of_s - sum(seconds for _, seconds in works)
    return [*works, (WAIT, rest)] * 10


CASES: dict[str, tuple[Sequence[Sequence[Work]], str, str]] = {
    "all load": (
        [step((LOAD, 0.4), (COMPUTE, 0.5))] * 2,
        r"partly input-bound: the ranks wait 40 % of their time for the DataLoader; the ranks "
        r"compute for 50 % of their time$",
        r"num_workers=2 or more .*: saves at most 40 % of the time",
    ),
    "one loads": (
        [step((COMPUTE, 0.3)), step((LOAD, 0.6), (COMPUTE, 0.3)), step((COMPUTE, 0.3))],
        r"input-bound on rank 1: it waits 60 % of its time for the DataLoader, and ranks 0, 2 wait "
        r"\d+ % of their time for it",
        r"look why the items of rank 1 take longer",
    ),
    "one computes": (
        [step((COMPUTE, 0.2)), step((COMPUTE, 0.2)), step((COMPUTE, 0.9))],
        r"straggler: ranks 0, 1 wait \d+ % of their time for rank 2, which computes",
        r"give rank 2 as much work as the others.*: saves at most \d+ % of the time",
    ),
    "one sleeps": (
        [step((COMPUTE, 0.2)), step((IDLE, 0.7), (COMPUTE, 0.2))],
        r"straggler: rank 0 waits \d+ % of its time for rank 1, which sleeps, or waits",
        r"shorten that wait",
    ),
    "in turns": (
        [
            [*step((COMPUTE, 0.9)), *step((COMPUTE, 0.2))],
            [*step((COMPUTE, 0.2)), *step((COMPUTE, 0.9))],
        ],
        r"uneven work: the ranks wait 3\d % of their time for each other, in turns",
        r"batches that cost the same",
    ),
    "moving data": (
        [step((COMPUTE, 0.5))] * 2,
        r"communication-bound: the ranks spend 50 % of their time in collectives, moving data",
        r"half precision .*: saves at most 50 %",
    ),
    "rank 0 saves": (
        [step((COMPUTE, 0.3), (SAVE, 0.6)), step((COMPUTE, 0.3))],
        r"saving-bound: rank 1 waits \d+ % of its time for rank 0, which saves for 60 % of",
        r"^save less often",
    ),
    "one reads files": (
        [step((READ, 0.6), (COMPUTE, 0.2)), step((COMPUTE, 0.2))],
        r"input-bound: rank 1 waits \d\d % of its time for rank 0, which reads files for 60 % of",
        r"^read it once and keep it, or read it in a DataLoader",
    ),
    "one saves, and computes afterwards, while the other waits": (
        [step((COMPUTE, 0.4)), step((SAVE, 0.4), (COMPUTE, 0.4))],
        r"partly saving-bound: rank 0 waits \d\d % of its time for rank 1, which saves for 40 % of",
        r"^save less often",
    ),
    "one saves, and computes longer": (
        [step((COMPUTE, 0.1)), step((SAVE, 0.1), (COMPUTE, 0.7))],
        r"straggler: rank 0 waits \d\d % of its time for rank 1, which computes",
        r"give rank 1 as much work",
    ),
    "one sleeps, and computes afterwards": (
        [step((COMPUTE, 0.3)), step((IDLE, 0.5), (COMPUTE, 0.3)), step((COMPUTE, 0.3))],
        r"straggler: ranks 0, 2 wait \d\d % of their time for rank 1, which sleeps, or waits",
        r"shorten that wait",
    ),
    "all save": (
        [step((COMPUTE, 0.5), (SAVE, 0.4))] * 2,
        r"partly saving-bound: the ranks save for 40 % of their time; the ranks compute for 50 %",
        r"^save on rank 0 alone, and less often, .*: saves at most 36 %",
    ),
    "all print": (
        [step((COMPUTE, 0.5), (PRINT, 0.4))] * 2,
        r"partly output-bound: the ranks print or display for 40 % of .*; .* compute for 50 %",
        r"print on one rank",
    ),
    "all sleep": (
        [step((COMPUTE, 0.3), (IDLE, 0.6))] * 2,
        r"idle: the ranks sleep, or wait for something .* for 60 % of their time",
        r"shorten",
    ),
    "all compute": (
        [step((COMPUTE, 0.96))] * 2,
        r"compute-bound: the ranks compute for 96 % of their time",
        r"all else together can save 4 % at most",
    ),
    "a little": (
        [step((LOAD, 0.14), (COMPUTE, 0.82))] * 2,
        r"somewhat input-bound: the ranks wait 14 % of their time .*; the ranks compute for 82 %",
        r"saves at most 14 %",
    ),
    "alone": (
        [[(LOAD, 3.0), (COMPUTE, 1.0)]],
        r"input-bound: the rank waits 75 % of its time for the DataLoader$",
        r"num_workers",
    ),
    "short": ([[(COMPUTE, 0.2)]] * 2, r"too short to say: .* 0.2 s, in 10 samples", r"longer run"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_named_by_what_limits_it(name: str) -> None:
    courses, verdict, advice = CASES[name]
    nproc = len(courses)
    profiles = [made(rank, works, nproc=nproc) for rank, works in enumerate(courses)]
    found = summary(*profiles)
    assert re.search(f"^{verdict}", found.verdict), found.verdict
    assert re.search(advice, found.advice), found.advice


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ({COMPUTE: 0.7, WAIT: 0.3}, r"partly communication-bound: .* 30 %.*; .* compute for 70 %"),
        ({COMPUTE: 0.64, LOAD: 0.36}, r"partly input-bound: .* 36 %.*; .* compute for 64 %"),
        ({COMPUTE: 0.3, WAIT: 0.7}, r"communication-bound: the ranks spend 70 %[^;]*$"),
        ({COMPUTE: 0.4, LOAD: 0.18, SAVE: 0.14, PRINT: 0.14, WAIT: 0.14}, r"somewhat input-bound"),
        ({COMPUTE: 0.86, WAIT: 0.14}, r"somewhat communication-bound: .*; .* compute for 86 %"),
        (
            {DEVICE: 0.6, COMPUTE: 0.1, LOAD: 0.3},
            r"partly input-bound: .*; the ranks wait 60 %.*GPU",
        ),
        ({COMPUTE: 0.92, WAIT: 0.08}, r"compute-bound: the ranks compute for 92 %"),
        ({COMPUTE: 0.7, IDLE: 0.3}, r"idle: the ranks sleep, .* for 30 %.*; .* compute for 70 %"),
    ],
)
def test_a_run_is_bound_by_what_takes_most_of_it(shares: dict[Spent, float], verdict: str) -> None:
    """What takes less than computing limits it in part."""
    works = [(kind, 10 * share) for kind, share in shares.items()]
    found = summary(*(made(rank, works) for rank in range(2)))
    assert re.match(verdict, found.verdict), found.verdict
    for kind, share in shares.items():  # nothing is larger than what is named
        if f"{100 * share:.0f} %" not in found.verdict:
            assert share <= max(int(n) for n in re.findall(r"(\d+) %", found.verdict)) / 100, kind


def test_no_cause_is_above_all_that_it_could_save() -> None:
    """What one cause costs can be saved at most, and not more than the whole time."""
    for courses, _, _ in CASES.values():
        profiles = [made(rank, c, nproc=len(courses)) for rank, c in enumerate(courses)]
        percents = [int(n) for n in re.findall(r"(\d+) %", summary(*profiles).advice)]
        assert all(percent <= 100 for percent in percents)


@pytest.mark.parametrize(
    ("loader", "why", "advice"),
    [
        (LOADER, "has no worker processes", "^num_workers=2 or more"),
        (LOADER_WORKERS, "has worker processes", "^more num_workers"),
    ],
)
def test_a_loader_with_workers_needs_other_advice(loader: str, why: str, advice: str) -> None:
    works = step((LOAD, 0.5), (COMPUTE, 0.4))
    found = summary(*(made(rank, works, call={LOAD: loader}) for rank in range(2)))
    assert why in found.why
    assert re.search(advice, found.advice)


def test_the_advice_on_collectives_follows_their_size_and_origin() -> None:
    works = step((COMPUTE, 0.5))
    small = summary(*(made(rank, works, size=16) for rank in range(2)))
    assert "combine small tensors" in small.advice
    backward = {WAIT: "Tensor.backward"}
    ddp = summary(*(made(rank, works, call=backward) for rank in range(2)))
    assert "no_sync()" in ddp.advice
    assert "saves at most 38 %" in ddp.advice  # three quarters of it


def test_a_metric_that_is_gathered_is_no_sharded_model() -> None:
    works = step((COMPUTE, 0.5), (WAIT, 0.5))
    ranks = [made(rank, works, call={WAIT: "Tensor.backward"}) for rank in range(2)]
    for profile in ranks:
        metric = [call._replace(name="all_gather", bytes=4) for call in profile.calls[::2]]
        profile.calls[::2] = metric
    assert "no_sync()" in summary(*ranks).advice
    for profile in ranks:
        profile.calls = [call._replace(name="all_gather") for call in profile.calls]
    assert "fully_shard" in summary(*ranks).advice


def test_why_names_the_line() -> None:
    found = summary(*(made(rank, step((LOAD, 0.5), (COMPUTE, 0.4))) for rank in range(2)))
    assert found.why.startswith("line 3 (`work_3()`); ")
    assert "data loader: rank 0 50 %, rank 1 50 %" in found.why


def test_only_the_loop_is_judged() -> None:
    """What comes before the first step, such as imports, is in the table alone."""
    works = [(IDLE, 5.0), *step((COMPUTE, 0.9))]
    steps = [5.0 + number for number in range(11)]
    found = summary(*(made(rank, works, steps=steps) for rank in range(2)))
    assert found.verdict.startswith("somewhat communication-bound")
    assert found.verdict.endswith("(in the 10.0 s from the first to the last step)")
    assert found.ranks[0].idle_s == pytest.approx(5.0)


def test_ranks_with_fewer_steps_wait_for_the_one_with_more() -> None:
    """Uneven data: what follows the last step of a rank, inside `Join`, is judged too."""
    few = [*[(COMPUTE, 0.4)] * 10, (WAIT, 8.0)]
    many = [(COMPUTE, 0.4)] * 30
    ends = [0.4 * number for number in range(1, 31)]
    found = summary(made(0, few, steps=ends[:10]), made(1, many, steps=ends, calls=[(1, 11.9)]))
    assert found.verdict.startswith("straggler: rank 0 waits 68 % of its time for rank 1")
    assert found.ranks[0].own_step_s == pytest.approx(0.4)  # of its own steps
    assert "· 10 to 30 steps ·" in found.text


def test_a_lack_of_processors_is_the_cause_if_nothing_else_is() -> None:
    works = step((COMPUTE, 0.96))
    found = summary(*(made(rank, works, queued_s=5.0) for rank in range(2)))
    assert found.verdict.startswith("short of processors: for 50 % of their time the ranks were")
    loading = step((LOAD, 0.5), (COMPUTE, 0.46))
    found = summary(*(made(rank, loading, queued_s=5.0) for rank in range(2)))
    assert found.verdict.startswith("input-bound")
    assert any("had no processor" in note for note in found.notes)
    # In a collective, the others wait for a rank that has none.
    some = step((COMPUTE, 0.7))
    found = summary(*(made(rank, some, queued_s=6.0) for rank in range(2)))
    assert found.verdict.startswith("short of processors: for 60 % of their time")
    most = step((COMPUTE, 0.2))
    found = summary(*(made(rank, most, queued_s=6.0) for rank in range(2)))
    assert found.verdict.startswith("communication-bound")


def test_a_straggler_that_lacks_a_processor_is_told_from_one_with_more_work() -> None:
    fast, slow = step((COMPUTE, 0.3)), step((COMPUTE, 0.9))
    found = summary(made(0, fast), made(1, slow, queued_s=6.0))
    assert "processors of its own for rank 1" in found.advice
    found = summary(made(0, fast), made(1, slow, queued_s=0.5))
    assert "give rank 1 as much work" in found.advice


@pytest.mark.parametrize(
    ("beside", "queued_s", "verdict", "noted"),
    [
        ({0: 4.0}, 0.0, "interpreter lock: for 40 % of its time rank 0 would compute", False),
        ({0: 1.5}, 0.0, "compute-bound", True),
        ({0: 4.0}, 3.5, "short of processors", False),
        ({}, 0.0, "compute-bound", False),
    ],
)
def test_a_thread_that_holds_the_interpreter_lock(
    beside: dict[int, float], queued_s: float, verdict: str, *, noted: bool
) -> None:
    """It is told, unless the rank did not run since it had no processor."""
    works = step((COMPUTE, 0.96))
    ranks = [made(0, works, beside=beside, queued_s=queued_s), made(1, works, queued_s=queued_s)]
    found = summary(*ranks)
    assert found.verdict.startswith(verdict)
    assert noted == any("holds the interpreter lock, at line 1" in note for note in found.notes)
    if verdict.startswith("interpreter"):
        assert found.why.startswith("that thread is at line 1 (`work_1()`)")
        assert "saves at most 40 %" in found.advice


def test_the_lock_is_not_told_where_the_data_loader_is_slow() -> None:
    works = step((LOAD, 0.7), (COMPUTE, 0.26))
    found = summary(*(made(rank, works, beside={0: 3.0}) for rank in range(2)))
    assert found.verdict.startswith("input-bound")


def test_a_rank_that_has_finished_does_not_compute() -> None:
    """Others wait in a collective that it never calls."""
    waits = made(0, [(COMPUTE, 1.0), (WAIT, 4.0)], calls=[(1, 1.0)])
    found = summary(waits, made(1, [(COMPUTE, 1.0)]))
    assert "waits 80 % of its time for rank 1, which had finished its cell" in found.verdict


def test_threads_are_advised_where_processors_are_free() -> None:
    found = summary(*(made(rank, step((COMPUTE, 0.96))) for rank in range(2)), processors=8)
    assert found.advice.startswith("torch.set_num_threads(4)")


def test_steps_may_be_too_short_for_faster_computation() -> None:
    """Python and torch's calls take most of them."""
    times = [n * 0.0004 for n in range(2000)]
    works = [(COMPUTE, 1.0)]
    found = summary(*(made(rank, works, steps=times) for rank in range(2)), processors=8)
    assert found.advice.startswith("larger batches: a step takes 0.4 ms, which is about what")


def test_a_gpu_that_is_waited_for_computes_or_communicates() -> None:
    works = step((COMPUTE, 0.1), (DEVICE, 0.86))
    found = summary(*(made(rank, works, device="cuda") for rank in range(2)))
    assert found.verdict.startswith("GPU-bound: the ranks wait 86 % of their time for the GPU")
