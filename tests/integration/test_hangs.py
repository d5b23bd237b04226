"""Waits and wrong collectives are explained where they happen, on real ranks.

What is said in each case is tested in tests/unit/display/diagnosis; these are the seams: from
torch's recorder to the table, to the error, and to the warning of a run that succeeded.
"""

from __future__ import annotations

import re

import pytest

from tests.integration.kernel import Kernel
from tests.mistakes import MISTAKES, Mistake, ask
from tests.spoiled_programs import FALSE_ALARMS, SHORT_FALSE_ALARMS

BY_NAME = {mistake.name: mistake for mistake in [*MISTAKES, *FALSE_ALARMS]}


def test_a_wait_is_explained_in_the_table_and_when_it_is_stopped(kernel: Kernel) -> None:
    """The run goes on meanwhile; Stop repeats what was said."""
    mistake = BY_NAME["a collective under `if rank == 0`"]
    answer = ask(kernel, mistake)
    assert re.search(mistake.says, answer.said), answer
    end = answer.rest.traceback
    assert re.search(mistake.says, end), end
    assert "KeyboardInterrupt: rank 0 stopped at line 4" in end


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("another order", "--time-limit 5"),
        ("a barrier in one branch", "--timeout 4"),
        ("a rank that is stopped", "--time-limit 6"),
        ("a thread that holds the exit", "--time-limit 6"),
        ("an irecv without its isend", "--time-limit 6"),
        ("a coroutine that is awaited for ever", "--time-limit 6"),
        ("fewer batches, and then a sum over ranks", ""),
        ("another dtype of the same size", ""),
    ],
)
def test_the_end_of_a_run_says_why(kernel: Kernel, name: str, options: str) -> None:
    """A time limit, a timeout of torch's, a peer that is gone; numbers that are wrong."""
    mistake = BY_NAME[name]
    answer = ask(kernel, mistake, f"{options} ")
    assert re.search(mistake.says, answer.said), answer


@pytest.mark.parametrize("name", SHORT_FALSE_ALARMS)
def test_a_right_program_is_not_accused(kernel: Kernel, name: str) -> None:
    answer = ask(kernel, BY_NAME[name])
    assert (answer.said, answer.status) == ("", "ok")


def test_a_cell_is_not_blamed_for_the_one_before_that_failed(kernel: Kernel) -> None:
    """The session's new groups have the names of those before."""
    failed = kernel.run(
        "%%ddp -n 2 -s s\n"
        "dist.all_reduce(torch.ones(1))\n"
        "if rank == 1: 1 / 0\n"
        "dist.all_reduce(torch.ones(4))\n"
    )
    assert "rank 0 called all_reduce #2 (line 4), but rank 1 did not" in failed.traceback
    late = kernel.run(
        "%%ddp -n 2 -s s\n"
        "if rank == 1: __import__('time').sleep(2.5)\n"
        "dist.all_reduce(torch.ones(1))\n"
        "if rank == 1: 1 / 0\n"
        "dist.all_reduce(torch.ones(4))\n"
    )
    assert "rank 0 called all_reduce #2 (line 5), but rank 1 did not" in late.traceback
    for times in (1, 100):
        right = kernel.run(
            f"%%ddp -n 2 -s s\nfor _ in range({times}): dist.all_reduce(torch.ones(3))"
        )
        assert (right.status, "warning" in right.text) == ("ok", False), right
    wrong = kernel.run(
        "%%ddp -n 2 -s s\ndist.all_reduce(torch.ones(4, dtype=(torch.int32, torch.float32)[rank]))"
    )
    assert "rank 1 called all_reduce of float32 [4]" in wrong.text, wrong
    kernel.run("%ddp_stop s")


def test_a_cell_may_replace_what_reads_its_ranks(kernel: Kernel) -> None:
    mistake = Mistake(
        "replaced functions",
        """
        import json, sys, time
        json.loads = json.dumps = sys._current_frames = lambda *_, **__: 1 / 0
        if rank == 0: dist.all_reduce(torch.ones(2))
        time.sleep(1000)
        """,
        r"rank 0 waits in all_reduce #1 \(line 4\).*ranks 1, 2 have not joined: each is at line 5",
    )
    answer = ask(kernel, mistake)
    assert re.search(mistake.says, answer.said), answer
    assert "did not answer" not in answer.rest.traceback


def test_a_rank_that_gloo_aborts_says_why(kernel: Kernel) -> None:
    """Two ranks with other sizes: C++ ends one of them, without a Python error."""
    result = kernel.run("%%ddp -n 2\nx = torch.ones(4 + rank)\ndist.all_reduce(x)")
    assert result.status == "error"
    assert "the ranks have called a collective, or a send and its receive, with tensors of " in (
        result.traceback
    )
