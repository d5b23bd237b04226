"""Which names a cell has bound."""

from __future__ import annotations

import logging
import threading
import weakref
from importlib.util import LazyLoader, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from ddp_magic.worker.values.cell_names import NamesBefore


def _compare(
    before: dict[str, Any], after: dict[str, Any], *imported: ModuleType
) -> tuple[tuple[str, ...], ...]:
    names = NamesBefore(before).compare(0, after, {"rank"}, imported)
    return names.names, names.values


def test_bound_names_are_those_that_are_new_or_replaced() -> None:
    """Hidden ones are ddp_magic's own."""
    kept = [1]
    before = {"kept": kept, "replaced": 1.5, "rank": 0}
    history = [0.5, 0.25, 0.125]
    after = {"kept": kept, "replaced": history, "new": history, "rank": 1}
    assert _compare(before, after) == (("replaced", "new"), ("replaced", "new"))


class Odd(dict[str, float]):
    """A dictionary of the user's that must not be asked."""

    def __len__(self) -> int:
        raise AssertionError

    values = __iter__ = __len__  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value",
    [
        torch.nn.Linear(1, 1),
        torch.optim.SGD(torch.nn.Linear(1, 1).parameters()),
        torch.zeros(2),
        torch.nn.Parameter(torch.zeros(3)),
        np.zeros((2, 2)),
        pd.DataFrame({"a": [1]}),
        [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}],
        {"dice": 0.9, "iou": 0.8, "count": 3},
        Odd(a=1.0, b=2.0, c=3.0),
    ],
)
def test_what_is_worth_pulling(value: Any) -> None:
    """Models, optimizers, arrays, histories."""
    assert _compare({}, {"x": value, "_x": value}) == (("x", "_x"), ("x",))


@pytest.mark.parametrize(
    "value",
    [
        lambda: 1,
        Odd,
        torch,
        len,
        3,
        0.5,
        "text",
        None,
        torch.tensor(0.5),
        torch.ones(1),
        np.float64(1),
        np.array([Odd, Odd, Odd]),
        [threading.Thread(), threading.Thread(), threading.Thread()],
        np.ones(1),
        ["image", "masks", "labels"],
        [1, 2],
        Path(),
        tqdm(disable=True),
        TensorDataset(torch.zeros(3)),
        DataLoader(TensorDataset(torch.zeros(3))),
        logging.getLogger(),
    ],
)
def test_what_nobody_would_miss(value: Any) -> None:
    """Definitions run again with their cell; loop variables, losses, bars, data sets."""
    assert _compare({}, {"x": value}) == (("x",), ())


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
    assert _compare({"old": gone}, {"old": gone, "new": gone}) == (("new",), ())


def test_what_a_module_has_too() -> None:
    """After `from settings import *` a value is not lost; one that the cell made itself is."""
    settings = ModuleType("settings")
    classes = settings.CLASSES = {"nucleus": 1, "cell": 2, "other": 3}  # type: ignore[attr-defined]
    own = dict(classes)
    assert _compare({}, {"CLASSES": classes}, settings) == (("CLASSES",), ())
    assert _compare({}, {"CLASSES": own}, settings) == (("CLASSES",), ("CLASSES",))
    assert _compare({}, {"other": own, "CLASSES": classes}, settings)[1] == ("other",)


def test_a_lazy_module_is_not_loaded() -> None:
    class Loader:
        def create_module(self, _spec: object) -> None:
            return None

        def exec_module(self, _module: object) -> None:
            raise AssertionError

    spec = spec_from_loader("lazy", LazyLoader(Loader()))  # type: ignore[arg-type]
    assert spec is not None
    lazy = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(lazy)
    history = [0.5, 0.25, 0.125]
    assert _compare({}, {"history": history}, lazy) == (("history",), ("history",))
