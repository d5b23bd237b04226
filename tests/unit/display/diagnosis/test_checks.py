"""The first collective on which ranks differ, from what they have called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ddp_magic.display.diagnosis.checks import Comparison
from ddp_magic.display.diagnosis.differences import RULE
from ddp_magic.wire.calls import CollectiveCall, first_line


def _call(name: str = "all_reduce", *shape: int, **more: Any) -> CollectiveCall:
    fields: dict[str, Any] = {"group": "0", "ranks": (0, 1, 2), "line": 5}
    if name != "barrier":
        fields |= {"inputs": (shape or (4,),), "dtypes": ("float32",)}
    if name == "all_reduce":
        fields["reduce_op"] = "SUM"
    return CollectiveCall(name=name, **(fields | more))


def _compare(*ranks: Sequence[CollectiveCall]) -> Comparison:
    """Compare what ranks have called; each is read after the other."""
    comparison = Comparison()
    for rank, calls in enumerate(ranks):
        comparison.take(rank, [first_line(n, call)[:-1] for n, call in enumerate(calls)])
    return comparison


def _said(*ranks: Sequence[CollectiveCall]) -> str:
    difference = _compare(*ranks).difference
    return "" if difference is None else difference.sentence().replace(f". {RULE}", "")


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        (
            _call(),
            _call("all_reduce", 5),
            "ranks 0, 2 called all_reduce of float32 [4] (line 5); "
            "rank 1 called all_reduce of float32 [5] (line 5)",
        ),
        (
            _call("all_reduce", 2, 3),
            _call("all_reduce", 3, 2),
            "ranks 0, 2 called all_reduce of float32 [2, 3] (line 5); "
            "rank 1 called all_reduce of float32 [3, 2] (line 5)",
        ),
        (
            _call(),
            _call(dtypes=("int32",)),
            "ranks 0, 2 called all_reduce of float32 [4] (line 5); "
            "rank 1 called all_reduce of int32 [4] (line 5)",
        ),
        (
            _call(),
            _call(reduce_op="MAX"),
            "ranks 0, 2 called all_reduce with SUM of float32 [4] (line 5); "
            "rank 1 called all_reduce with MAX of float32 [4] (line 5)",
        ),
        (
            _call("broadcast", root=0),
            _call("broadcast", root=1),
            "ranks 0, 2 called broadcast from rank 0 of float32 [4] (line 5); "
            "rank 1 called broadcast from rank 1 of float32 [4] (line 5)",
        ),
        (
            _call("reduce", root=0),
            _call("reduce", root=1),
            "ranks 0, 2 called reduce to rank 0 of float32 [4] (line 5); "
            "rank 1 called reduce to rank 1 of float32 [4] (line 5)",
        ),
        (
            _call(via="Tensor.backward"),
            _call("barrier", line=9),
            "ranks 0, 2 called all_reduce of float32 [4] (line 5, in Tensor.backward); "
            "rank 1 called barrier (line 9)",
        ),
        (
            _call(title="tensor"),
            _call("barrier", title="tensor"),
            "ranks 0, 2 called all_reduce of float32 [4] (line 5); rank 1 called barrier (line 5)",
        ),
    ],
    ids=["shape", "shape, same size", "dtype", "reduction", "source", "destination", "name", "sub"],
)
def test_a_difference_is_told(right: CollectiveCall, wrong: CollectiveCall, words: str) -> None:
    group = " of group 'tensor'" if right.title else ""
    expected = f"collective #2{group} differs between ranks: {words}"
    first = _call(title=right.title)
    assert _said([first, right], [first, wrong], [first, right]) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_call("all_reduce", inputs=((),)), _call("all_reduce", 1)),
        (_call("all_reduce", 3, 1), _call("all_reduce", 3)),
        (
            _call("all_gather_into_tensor", outputs=((12,),)),
            _call("all_gather_into_tensor", outputs=((3, 4),)),
        ),
        (_call(line=1), _call(line=2)),
        (_call(reduce_op=""), _call(reduce_op="SUM")),
        (_call("all_to_all_single", 3), _call("all_to_all_single", 6)),
    ],
    ids=[
        "0-dim",
        "axes of length 1",
        "output concatenated or stacked",
        "lines",
        "unknown reduction",
        "uneven",
    ],
)
def test_what_may_differ_is_no_difference(one: CollectiveCall, other: CollectiveCall) -> None:
    comparison = _compare([one], [other], [one])
    assert (comparison.difference, comparison.checked) == (None, 1)


def test_the_collectives_before_a_difference_are_counted() -> None:
    """Also if the rank that differs is read before others."""
    right, wrong = [_call()] * 3, [_call(), _call(), _call("barrier")]
    assert _compare(right, wrong, right).checked == 2
    assert _compare(right, right, right).checked == 3


def test_a_difference_is_known_before_all_ranks_have_come() -> None:
    comparison = _compare([_call()], [_call("barrier")])
    assert comparison.difference is not None
    assert not comparison.difference.complete
    comparison.take(2, [first_line(0, _call("barrier"))[:-1]])
    assert comparison.difference.complete
    assert "ranks 1, 2 called barrier" in comparison.difference.sentence()


def test_each_group_and_each_device_has_its_own_order() -> None:
    a, b = (_call(group=name, ranks=(0, 1)) for name in "ab")
    cuda = _call(device="cuda", ranks=(0, 1))
    assert _said([a, b, cuda], [cuda, b, a]) == ""
    later = _call("barrier", group="a", ranks=(0, 1), generation=1)
    assert _said([a, later], [a, later]) == ""


@pytest.mark.parametrize(
    ("name", "sends", "receives", "words"),
    [
        (
            "all_to_all_single",
            [(1, 3), (2, 2)],
            [(1, 2), (2, 2)],
            "rank 0 called all_to_all_single with 3 elements for rank 1 (line 5); "
            "rank 1 called all_to_all_single that expects 2 elements from rank 0 (line 5)",
        ),
        ("all_gather", [(3, 3), (4, 4)], [(3, 4), (3, 4)], ""),
        (
            "gather",
            [(3, -1), (1, -1)],
            [(3, 3), ()],
            "rank 1 called gather with 1 element for rank 0 (line 5); "
            "rank 0 called gather that expects 3 elements from rank 1 (line 5)",
        ),
        ("scatter", [(3, 4), ()], [(3, -1), (4, -1)], ""),
    ],
    ids=["all_to_all_single", "uneven all_gather", "gather", "uneven scatter"],
)
def test_what_one_rank_sends_another_must_expect(
    name: str, sends: list[tuple[int, ...]], receives: list[tuple[int, ...]], words: str
) -> None:
    calls = [
        _call(name, ranks=(0, 1), sends=sent, receives=expected)
        for sent, expected in zip(sends, receives, strict=True)
    ]
    head = "collective #1 differs between ranks: "
    assert _said(*([call] for call in calls)) == (head + words if words else "")


def test_who_has_called_more_than_others_is_told() -> None:
    more = [_call(), _call("broadcast", root=0, title="tensor", line=7)]
    assert _compare(more, [more[0]], more).missing() == (
        f"ranks 0, 2 called broadcast #2 of group 'tensor' (line 7), but rank 1 did not. {RULE}"
    )
    assert _compare(more, more, more).missing() == ""
    assert _compare(more, [more[0]], more).missing(of=[0, 2]) == ""
    assert "rank 1 did not" in _compare(more, [more[0]], [more[0]]).missing(of=[1])


def test_many_ranks_that_all_differ_are_not_all_listed() -> None:
    ranks = tuple(range(20))
    said = _said(*([_call("all_reduce", n, ranks=ranks)] for n in range(2, 22)))
    assert "rank 5 called" in said
    assert said.endswith("; and 14 more")


def test_a_number_counts_what_was_called_before_the_cell() -> None:
    said = _said([_call(before=6)], [_call("barrier", before=6)])
    assert said.startswith("collective #7 differs")


def test_the_line_of_another_cell_is_told_with_the_cell() -> None:
    """As of a function that `launch` calls."""
    said = _said([_call(cell="Cell In[3]")], [_call("barrier", cell="Cell In[3]")])
    assert "rank 1 called barrier (Cell In[3], line 5)" in said


def test_a_call_without_a_description_is_an_error() -> None:
    with pytest.raises(ValueError, match="call 3 of rank 0 has not been described"):
        Comparison().take(0, [b"3"])
