"""The kernel reads what the ranks have called, while they go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_magic.kernel.watch.call_check import CallCheck
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.calls import CollectiveCall, first_line, next_line

ALL_REDUCE = CollectiveCall(name="all_reduce", group="0", ranks=(0, 1), line=2)
BARRIER = CollectiveCall(name="barrier", group="0", ranks=(0, 1), line=3)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def _write(directory: RunDirectory, rank: int, data: bytes) -> None:
    with directory.calls(rank).open("ab") as file:
        file.write(data)


def _check(directory: RunDirectory) -> CallCheck:
    return CallCheck(directory, 2, look_s=0.0)


def test_what_is_written_later_is_read_later(directory: RunDirectory) -> None:
    """Half a line too."""
    check = _check(directory)
    assert not check.look()
    line = first_line(0, ALL_REDUCE)
    for rank in range(2):
        _write(directory, rank, line + line[:5])
    assert not check.look()
    assert check.checked == 1
    for rank in range(2):
        _write(directory, rank, line[5:] + next_line(0))
    assert check.finish(finished=True) == ""
    assert check.checked == 3


def test_a_difference_stops_the_run_when_all_have_come(directory: RunDirectory) -> None:
    check = CallCheck(directory, 2, look_s=0.0)
    _write(directory, 0, first_line(0, ALL_REDUCE))
    assert not check.look()
    _write(directory, 1, first_line(0, BARRIER))
    assert check.look()
    assert "rank 1 called barrier (line 3)" in check.finish(finished=False)
    assert check.lines == [("rank 0", 2), ("rank 1", 3)]


def test_a_rank_that_does_not_come_is_waited_for_only_so_long(directory: RunDirectory) -> None:
    ranks = (0, 1, 2)
    for others_s, stops in ((1e6, False), (-1.0, True)):
        check = CallCheck(directory, 3, look_s=0.0, others_s=others_s)
        for rank, name in enumerate(["all_reduce", "barrier"]):
            call = CollectiveCall(name=name, group="0", ranks=ranks)
            directory.calls(rank).write_bytes(first_line(0, call))
        assert check.look() is stops
        check.close()


def test_calls_that_only_some_ranks_made_count_if_no_rank_failed(directory: RunDirectory) -> None:
    for finished, words in (
        (True, "rank 0 called all_reduce #1 (line 2), but rank 1"),
        (False, ""),
    ):
        check = _check(directory)
        _write(directory, 0, first_line(0, ALL_REDUCE))
        assert check.finish(finished=finished).startswith(words)
        assert bool(words) == finished
        assert not directory.calls(0).exists()


def test_what_a_rank_that_has_left_did_not_call_stops_the_run(directory: RunDirectory) -> None:
    """Not what a rank has yet to call."""
    check = _check(directory)
    _write(directory, 0, first_line(0, ALL_REDUCE))
    assert not check.look()
    assert not check.look(left=[0])
    assert check.look(left=[1])
    assert check.finish(finished=False).startswith("rank 0 called all_reduce #1 (line 2), but rank")


def test_a_rank_that_could_not_write_on_is_not_accused(directory: RunDirectory) -> None:
    check = _check(directory)
    for rank in range(2):
        _write(directory, rank, first_line(0, ALL_REDUCE) + next_line(0) * rank)
    check.look()
    directory.calls(0).unlink()
    assert check.finish(finished=True) == ""
    assert check.unread == {0}


def test_a_file_that_cannot_be_read_is_not_compared(directory: RunDirectory) -> None:
    check = _check(directory)
    _write(directory, 0, b"nonsense\n")
    _write(directory, 1, first_line(0, ALL_REDUCE))
    assert check.finish(finished=True) == ""
    assert check.unread == {0}
