"""Shares, sizes and counts in the words of a verdict."""

from __future__ import annotations

from ddp_magic.display.profiles.words import percent, ranks, saves, size_of, threads


def test_a_share_below_one_is_not_all_of_it() -> None:
    assert [percent(share) for share in (0.004, 0.5, 0.999, 1.0)] == [
        "0 %",
        "50 %",
        "99 %",
        "100 %",
    ]
    assert saves(0.25) == "saves at most 25 % of the time"


def test_sizes_have_the_unit_that_suits_them() -> None:
    assert [size_of(size) for size in (0, 999, 1500, 2.5e6, 1e9)] == [
        "0 bytes", "999 bytes", "1.5 kB", "2.5 MB", "1 GB"
    ]  # fmt: skip


def test_counts_have_their_number() -> None:
    assert (ranks(1), ranks(4), threads(1), threads(2)) == (
        "1 rank", "4 ranks", "1 thread", "2 threads"
    )  # fmt: skip
