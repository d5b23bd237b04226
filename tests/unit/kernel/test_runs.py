"""The runs of a kernel, as the status and later cells look for them."""

from __future__ import annotations

from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.runs import KEEP_RUNS, Runs
from ddp_magic.kernel.values.names import Names


def _run(*bound: str) -> Run:
    run = Run(Cell("pass", Names(frozenset(), frozenset())), Options(nproc=1))
    run.bound = bound
    return run


def test_the_newest_comes_first() -> None:
    runs = Runs()
    first, second = _run(), _run()
    runs.add(first)
    runs.add(second)
    assert list(runs) == [second, first]


def test_a_run_is_found_by_its_id_or_the_end_of_it() -> None:
    runs = Runs()
    run = _run()
    runs.add(run)
    assert runs.find(run.id) is run
    assert runs.find(run.id[-6:]) is run
    assert runs.find("nothing") is None


def test_of_two_with_the_same_end_the_newest_is_found() -> None:
    """All ids end in a number that starts anew in each kernel."""
    runs = Runs()
    older, newer = _run(), _run()
    runs.add(older)
    runs.add(newer)
    assert runs.find("") is newer


def test_the_last_run_that_bound_a_name() -> None:
    runs = Runs()
    first, second, third = _run("x", "y"), _run("x"), _run()
    for run in (first, second, third):
        runs.add(run)
    assert runs.last_binding("x") is second
    assert runs.last_binding("y") is first
    assert runs.last_binding("z") is None


def test_results_belong_to_who_asked_for_them() -> None:
    """The list keeps the run for its status; whoever has the run has its results."""
    runs = Runs()
    run = _run()
    run.results = {"loss": 1}
    runs.add(run)
    runs.without_results(run)
    (kept,) = runs
    assert kept.results == {}
    assert kept.id == run.id
    assert run.results == {"loss": 1}


def test_old_runs_are_forgotten() -> None:
    """A notebook may live for months."""
    runs = Runs()
    run = _run()
    for _ in range(KEEP_RUNS + 1):
        runs.add(run)
    assert len(list(runs)) == KEEP_RUNS
