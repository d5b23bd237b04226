"""Which names a cell has bound."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from ddp_magic.worker.cell_names import NamesBefore


def _compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    names = NamesBefore(before).compare(0, after, hidden={"rank"})
    return names.names, names.values


def test_bound_names_are_those_that_are_new_or_replaced() -> None:
    """Hidden ones are ddp_magic's own."""
    kept = [1]
    before = {"kept": kept, "replaced": 1.5, "rank": 0}
    after = {"kept": kept, "replaced": 2.5, "new": "x", "rank": 1}
    assert _compare(before, after) == (("replaced", "new"), ("replaced", "new"))


def test_definitions_are_not_worth_keeping() -> None:
    """They are run again with their cell; nor are underscored names."""
    after = {"f": lambda: 1, "C": type("C", (), {}), "m": torch, "g": len, "_x": 1, "x": 1}
    assert _compare({}, after) == (tuple(after), ("x",))


def test_a_model_of_the_notebooks_that_was_trained_here() -> None:
    """It is bound to the same name, and its parameters were written to."""
    trained, used = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    before = NamesBefore({"trained": trained, "used": used})
    with torch.no_grad():
        trained.weight.add_(1)
    used(torch.zeros(1))
    names = before.compare(0, {"trained": trained, "used": used}, ())
    assert (names.names, names.values) == ((), ("trained",))


def test_a_value_that_raises_when_it_is_asked_for_its_class() -> None:
    gone = weakref.proxy(torch.nn.Linear(1, 1))
    assert _compare({"old": gone}, {"old": gone, "new": gone}) == (("new",), ("new",))
