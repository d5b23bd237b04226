"""A profile as a person reads it."""

from __future__ import annotations

import re
import sys

import pytest

from ddp_magic.display.profiles.figure import figure_png
from ddp_magic.display.profiles.profile import Code, summarize
from ddp_magic.wire.profile import Place, Sample, Spent
from tests.unit.display.profiles.examples import BEGAN, CELL, CODE, made, summary

COMPUTE, WAIT, LOAD, SAVE = Spent.COMPUTE, Spent.COLLECTIVE, Spent.LOADING, Spent.SAVING


def test_the_table_has_a_row_for_each_rank_and_no_empty_column() -> None:
    text = summary(
        made(0, [(COMPUTE, 2.0), (WAIT, 2.0)]), made(1, [(SAVE, 1.0), (COMPUTE, 2.0), (WAIT, 1.0)])
    ).text
    head, first, second = text.splitlines()[1:4]
    assert re.split(r"\s{2,}", head) == [
        "rank", "total", "compute", "waiting for ranks", "moving data", "saving, printing",
    ]  # fmt: skip
    assert re.fullmatch(r"   0  4\.0 s  2\.0 s  50 % +\S+ m?s +2\d % +\S+ m?s +2\d % +-", first)
    assert re.fullmatch(r"   1  4\.0 s  2\.0 s  50 % +- +1\.0 s +25 % +1\.0 s +25 %", second)


def test_the_headline_has_the_steps_and_their_spread() -> None:
    steps = [0.5 * number for number in range(1, 9)]
    works = [(COMPUTE, 0.3), (WAIT, 0.2)] * 8
    late = [(COMPUTE, 0.4), (WAIT, 0.1)] * 8
    text = summary(made(0, works, steps=steps), made(1, late, steps=steps)).text
    assert re.fullmatch(
        r"profile of 2 ranks · 8 steps · 500 ms a step \(median; 90 % take at most 500 ms\) · "
        r"without waiting for ranks 4[012]0 ms to 500 ms \(most: rank 1\)",
        text.splitlines()[0],
    )


def test_without_an_optimizer_there_is_no_step_time() -> None:
    text = summary(made(0, [(COMPUTE, 1.0)], nproc=1)).text
    assert "step time unknown: no step of a torch.optim optimizer was seen" in text


def test_the_five_most_expensive_lines_are_shown() -> None:
    kinds = [kind for kind in Spent if kind is not WAIT]
    works = [(kind, 1.0 + number) for number, kind in enumerate(kinds)]
    lines = summary(made(0, works, nproc=1)).text.split("most expensive lines")[1].splitlines()[1:6]
    assert [line.split()[0] for line in lines] == sorted(
        (line.split()[0] for line in lines), key=int, reverse=True
    )
    assert re.fullmatch(r" *25 %  7\.0 s  line 8  reading files        work_8\(\)", lines[0])
    assert all(lines)


def test_a_line_that_costs_one_rank_most_names_it() -> None:
    text = summary(made(0, [(COMPUTE, 2.0)]), made(1, [(LOAD, 1.0), (COMPUTE, 1.0)])).text
    assert re.search(r"25 % +500 ms  line 3  data loader  work_3\(\) \(rank 1: 50 %\)", text), text


def test_lines_are_named_as_the_notebook_names_them() -> None:
    code = Code(labels={CELL: "", "/tmp/1.py": "Cell In[2]"})
    assert code.where(Place(CELL, 3)) == "line 3"
    assert code.where(Place("/tmp/1.py", 3)) == "Cell In[2], line 3"
    assert code.where(Place("/home/me/data.py", 3)) == "data.py, line 3"
    assert code.source(Place(CELL, 3)) == ""
    assert CODE.source(Place(CELL, 99)) == ""
    long = Code(sources={CELL: "x" * 100})
    assert len(long.source(Place(CELL, 1))) == 60


def test_what_is_not_known_is_said() -> None:
    dead = made(1, [(COMPUTE, 1.0)], complete=False)
    short = made(2, [], ended=BEGAN + 0.004)
    profiles = [made(0, [(COMPUTE, 1.0)]), dead, short]
    found = summarize(profiles, 4, CODE)
    assert found is not None
    assert found.notes == (
        "no profile of rank 3: it wrote none, or had not begun its cell",
        "the profile of rank 1 ends after 1.0 s",
        "rank 2 was not sampled: its cell took 4 ms",
    )


def test_collectives_that_are_not_told_apart_have_a_column_of_their_own() -> None:
    profile = made(0, [(WAIT, 1.0), (COMPUTE, 1.0)], groups=[])
    profile.samples = [Sample(s.time, s.seconds, s.spent, s.place) for s in profile.samples]
    profile.calls, profile.last = [], {}
    found = summary(profile)
    assert "collectives" in found.text.splitlines()[1]
    assert "torch has no record of them" in found.notes[0]


def test_collectives_on_gpus_are_measured_by_their_shortest() -> None:
    """The rank on which a collective takes least came last."""
    ranks = [made(rank, [(WAIT, 0.5), (COMPUTE, 0.5)] * 2, device="cuda") for rank in range(2)]
    for profile, took in zip(ranks, (0.4, 0.1), strict=True):
        profile.calls = [call._replace(duration_s=took) for call in profile.calls]
    assert summary(*ranks).notes == (
        "on the GPU, collectives took 25 % of the time, of which 15 % waiting for the slowest rank "
        "(CUDA events of 2 collectives); how much of it computation overlapped is not known",
    )


def test_there_is_no_profile_without_samples() -> None:
    assert summarize([made(0, [])], 1, CODE) is None


def test_the_figure_is_a_png_and_leaves_pyplot_alone() -> None:
    pytest.importorskip("matplotlib")
    before = "matplotlib.pyplot" in sys.modules
    png = figure_png(summary(made(0, [(COMPUTE, 1.0), (WAIT, 1.0)]), made(1, [(LOAD, 2.0)])))
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_several_nodes() -> None:
    """Each rank's node is named, and their processors are added up."""
    ranks = [made(rank, [(LOAD, 4.0), (COMPUTE, 1.0)], node=f"n{rank // 2}") for rank in range(4)]
    text = summary(*ranks, processors=8).text
    assert "rank  node  total" in text
    assert re.search(r"^ *3 +n1 +5.0 s", text, re.MULTILINE), text
    assert "16 processors for 4 ranks" in text
