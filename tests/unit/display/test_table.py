"""The live table: a row for each rank, or for those that differ; what is the same stands above."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from ddp_magic.display.grid import html_line
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.display.table import MAX_ROWS, LiveTable, status_line
from ddp_magic.display.text.bar_text import percent_done, shorten_bar
from ddp_magic.wire.kernel_events import Doing
from tests.unit.display.records import NOW, make_record
from tests.unit.fakes import done, error, exited, heartbeat, hello, ready


def _running(nproc: int, **fields: Any) -> RunRecord:
    """Ranks that all run, at the same line, each with a bar that has come as far as its number."""
    record = make_record(nproc, **fields)
    for rank in range(nproc):
        for event in (hello(rank), ready(rank), heartbeat(rank, 7, time=NOW)):
            record.take(event)
    record.progress = {rank: (f"{rank}%|##",) for rank in range(nproc)}
    return record


def _rows(record: RunRecord) -> list[list[str]]:
    """Return the rows, their cells apart."""
    text, _ = LiveTable().render(record)
    return [line.split() for line in text.splitlines()[2:]]


def test_the_table() -> None:
    """One row a rank; columns that are empty are left out."""
    record = make_record(
        2,
        hello(0),
        ready(0, "cuda:0"),
        heartbeat(0, 7, time=NOW, rss_mib=2048.0, device_mib=10_000.0),
        hello(1),
    )
    record.progress = {0: (), 1: ()}
    assert LiveTable().render(record)[0].splitlines()[1:] == [
        "rank  pid  device  state     line  memory",
        "0     100  cuda:0  running   7     2,048 MiB + 10,000 on the GPU",
        "1     101          starting",
    ]


def test_what_all_ranks_have_in_common_stands_above() -> None:
    """The line says the devices already."""
    head, columns, *_ = LiveTable().render(_running(2))[0].splitlines()
    assert head.startswith("2 ranks on the CPU · starting · all ranks: running · all at line 7 · ")
    assert columns.split() == ["rank", "pid", "memory", "progress"]


def test_a_column_that_has_differed_stays() -> None:
    """A table that changes its form with each update is hard to read."""
    table, record = LiveTable(), _running(2)
    record.take(heartbeat(1, 8, time=NOW))
    table.render(record)
    record.take(heartbeat(1, 7, time=NOW))
    head, columns, *_ = table.render(record)[0].splitlines()
    assert "line 7" not in head
    assert "line" in columns


def test_no_rows_before_the_ranks_have_begun() -> None:
    text, markup = LiveTable().render(make_record(4))
    assert len(text.splitlines()) == 1
    assert "<table>" not in markup


def test_one_rank_keeps_its_columns() -> None:
    head, columns, *_ = LiveTable().render(_running(1))[0].splitlines()
    assert "line 7" not in head
    assert columns.split() == ["rank", "pid", "device", "state", "line", "memory", "progress"]


def test_what_is_done_takes_the_place_of_the_state() -> None:
    record = make_record(2, Doing(text="importing torch"))
    assert LiveTable().render(record)[0].startswith("2 ranks on the CPU · importing torch · ")


def test_html_says_the_same() -> None:
    """Escaped: a bar or an exception may hold anything."""
    record = make_record(1, ready(0), error(0, ename="<Error>"))
    _, markup = LiveTable().render(record)
    assert "raised &lt;Error&gt;" in markup
    assert "<Error>" not in markup
    assert markup.count("<tr>") == 2
    assert "&lt;b&gt;" in html_line("<b>")


def test_a_long_bar_wraps_in_a_narrow_page() -> None:
    """Its loss stands at its end. What is short does not wrap."""
    record = _running(2)
    assert "pre-wrap" not in LiveTable().render(record)[1]
    record.progress = {0: ("a" * 30 + " 10%|##| loss=0.1",)}
    _, markup = LiveTable().render(record)
    cells = re.findall('<td style="([^"]*)">([^<]*)</td>', markup)
    assert {text for style, text in cells if "pre-wrap" in style} == {record.progress[0][0], ""}


# --- many ranks -------------------------------------------------------------------------------


def test_eight_ranks_have_a_row_each() -> None:
    assert [row[0] for row in _rows(_running(8))] == list("01234567")


def test_of_many_ranks_those_that_differ_have_rows() -> None:
    """The slowest, the fastest, one that has failed, one that has not started; the others' sum."""
    record = _running(64)
    record.take(error(17, ename="KeyError"))
    record.ranks[30] = Rank(rank=30)
    rows = _rows(record)
    assert [row[0] for row in rows] == ["0", "17", "30", "63", "60"]
    assert rows[1][2:5] == ["cpu", "raised", "KeyError"]
    assert rows[2][1] == "waiting"
    text = LiveTable().render(record)[0]
    assert "60 others       cpu     running" in text
    assert text.endswith("1-62 %")


def test_ranks_that_have_finished_are_summed_up() -> None:
    """The slowest of those that run is to be looked at; also where few still run."""
    for running in (60, 2):
        record = _running(64)
        for rank in range(running, 64):
            for event in done(rank):
                record.take(event)
        assert [row[0] for row in _rows(record)] == ["0", str(running - 1), "62"]


def test_never_more_rows_than_fit() -> None:
    """Failures first; the states of the rest are counted."""
    events = [event for rank in range(20, 60) for event in (ready(rank), exited(rank, -9))]
    rows = _rows(make_record(64, *events))
    assert [row[0] for row in rows] == [*map(str, range(20, 20 + MAX_ROWS)), "56"]
    assert "32 killed by SIGKILL, 24 waiting" in LiveTable().render(make_record(64, *events))[0]


def test_many_ranks_that_do_the_same_are_one_row() -> None:
    record = _running(64)
    record.progress = {}
    assert [row[:2] for row in _rows(record)] == [["64", "ranks"]]


def test_a_line_of_another_cell_is_named_with_it() -> None:
    """As of a function that `launch` calls; lines of several cells have no span."""
    record = _running(12)
    record.progress = {}
    for rank in range(12):
        record.take(dataclasses.replace(heartbeat(rank, 7, time=NOW), cell="Cell In[2]"))
    text, _ = LiveTable().render(record)
    assert "all at Cell In[2], line 7" in text.splitlines()[0]
    record.take(dataclasses.replace(heartbeat(0, 9, time=NOW), cell="Cell In[2]"))
    assert "In[2]:7-9" in LiveTable().render(record)[0]
    record.take(dataclasses.replace(heartbeat(0, 9, time=NOW), cell="Cell In[3]"))
    assert "In[" not in LiveTable().render(record)[0]


# --- bars -------------------------------------------------------------------------------------

TQDM = f"epoch 3:  40%|{'█' * 40}{' ' * 60}| 400/1000 [00:02<00:03, 180.20it/s, loss=0.123]"
RICH = f"Training {'━' * 40}╸{' ' * 59}  40% 0:00:03 loss 0.123"
ASCII = f"train: {'#' * 40}>{'.' * 79} 40 % ETA 3 s, loss 0.123"


@pytest.mark.parametrize("bar", [TQDM, RICH, ASCII])
@pytest.mark.parametrize("chars", [100, 80, 70])
def test_a_long_bar_is_drawn_shorter(bar: str, chars: int) -> None:
    """Its description and its numbers stay, and its length says the same."""
    short = shorten_bar(bar, chars)
    assert len(short) == chars or (len(short) < chars and "loss" in short)
    assert short.split()[0] == bar.split(maxsplit=1)[0]
    assert short.endswith(bar[-10:])
    assert "0.123" in short
    assert percent_done(short) == 40
    filled = sum(char in "█━#" for char in short)
    assert filled == pytest.approx(0.4 * (filled + sum(char in " .╸>" for char in short)), abs=9)


def test_a_text_that_is_too_long_without_a_bar() -> None:
    """Its middle goes."""
    short = shorten_bar(f"start {'x' * 500} loss 0.5", 100)
    assert len(short) == 100
    assert short.startswith("start ")
    assert short.endswith(" loss 0.5")
    assert shorten_bar("short", 100) == "short"


@pytest.mark.parametrize(
    ("bar", "percent"),
    [("a: 12%|#", 12), ("12.5 % done", 12.5), ("3/4 files", 75), ("0/0", None), ("working", None)],
)
def test_how_far_a_bar_is(bar: str, percent: float | None) -> None:
    assert percent_done(bar) == percent


# --- a terminal -------------------------------------------------------------------------------


def test_the_line_of_a_terminal() -> None:
    """The slowest rank's bar, who waits, or what ranks do; never wider than the terminal."""
    record = _running(3)
    assert status_line(record, 80) == "starting · 6 s · rank 0: 0%|##"
    record.progress = {}
    record.take(error(2, ename="KeyError"))
    assert status_line(record, 80) == "starting · 6 s · 2 running · 1 raised KeyError"
    record.waits = ("ranks 0, 1 wait for rank 2",)
    assert status_line(record, 80).endswith("ranks 0, 1 wait for rank 2")
    record.progress, record.waits = {1: (TQDM,)}, ()
    assert len(status_line(record, 60)) <= 60
    assert status_line(record, 60).endswith("loss=0.123]")


def test_inner_bars_have_rows_of_their_own() -> None:
    """Under their rank's; of many, the outer ones."""
    record = make_record(2)
    record.progress = {0: ("outer 1/3", "inner 2/9"), 1: tuple(f"bar {i}" for i in range(20))}
    text, markup = LiveTable().render(record)
    rows = [line.split() for line in text.splitlines()[-8:]]
    assert [row[0] for row in rows if row[0] in "01"] == ["0", "1"]
    assert [row[-2:] for row in rows[:3]] == [["outer", "1/3"], ["inner", "2/9"], ["bar", "0"]]
    assert rows[-1] == ["...", "15", "more", "bars"]
    assert markup.count("<tr>") == 1 + 8


def test_the_line_of_a_terminal_has_nested_bars() -> None:
    record = make_record(2)
    record.progress = {0: ("outer 1/3", "inner 2/9"), 1: ("outer 1/3", "inner 1/9")}
    assert status_line(record, 100).endswith("rank 1: outer 1/3 · inner 1/9")
