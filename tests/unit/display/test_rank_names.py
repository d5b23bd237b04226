"""What a person calls ranks."""

from __future__ import annotations

import pytest

from ddp_magic.display.rank_names import on_nodes, rank_names


@pytest.mark.parametrize(
    ("ranks", "name"),
    [([2], "rank 2"), ([0, 1], "ranks 0-1"), ([5, 1, 0, 3, 2], "ranks 0-3, 5")],
)
def test_what_ranks_are_called(ranks: list[int], name: str) -> None:
    assert rank_names(ranks) == name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rank 1 waits for rank 2", "rank 1 on n1 waits for rank 2 on n2"),
        ("rank 2 died. rank 2 was slow", "rank 2 on n2 died. rank 2 was slow"),
        ("rank 2's group", "rank 2's group"),
        ("ranks 1-2 wait for rank 0", "ranks 1-2 wait for rank 0"),
    ],
)
def test_the_node_is_named_once(text: str, told: str) -> None:
    """Not in lists of ranks, and not of the notebook's own machine."""
    assert on_nodes(text, {0: "", 1: "n1", 2: "n2"}) == told
    assert on_nodes(text, {}) == text
