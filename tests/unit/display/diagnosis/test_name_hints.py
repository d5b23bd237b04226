"""Hints on names that may have caused an error."""

from __future__ import annotations

import pytest

from ddp_magic.display.diagnosis.name_hints import Surroundings, name_hints
from ddp_magic.wire.worker_events import Error


def _error(evalue: str, ename: str = "RuntimeError") -> Error:
    return Error(rank=0, time=0.0, ename=ename, evalue=evalue, traceback=(), line=3)


def test_name_hints() -> None:
    """A name that is missing, and a prelude's name in the failing line."""
    error = _error("name 'model' is not defined", ename="NameError")
    (hint,) = name_hints(error, "a\nb\nmodel()\n", Surroundings({"model": 1}), set())
    assert hint.startswith("your notebook defines `model`, but it was not sent to the ranks")
    for words in (
        "Can't get attribute 'Net' on <module '__main__' from '/x.py'>",
        "Can't get attribute 'Net.Part' on <module 'ddp_magic.worker.child_main'>",
        "module '__main__' has no attribute 'Net'",
    ):
        loaded = _error(words, ename="AttributeError")
        (hint,) = name_hints(loaded, "torch.load(p)", Surroundings({"Net": 1}), set())
        assert hint.startswith("your notebook defines `Net`, but it was not sent")
    elsewhere = _error("Can't get attribute 'Net' on <module 'models'>", ename="AttributeError")
    assert name_hints(elsewhere, "", Surroundings({"Net": 1}), set()) == []
    before = Surroundings(elsewhere={"model": ("Cell In[3]", "")}.__getitem__)
    (hint,) = name_hints(error, "model", before, set())
    assert hint.startswith("`model` was last defined in Cell In[3], whose ranks have ended")
    kept = Surroundings(elsewhere={"model": ("Cell In[3]", "lab")}.__getitem__)
    (hint,) = name_hints(error, "model", kept, set())
    assert "in session lab: --session lab runs this cell there" in hint
    text, names = "a\nb\ntrain(1)\n", {"train", "cells"}
    wrong_call = _error("train() missing 2 required arguments", ename="TypeError")
    (hint,) = name_hints(wrong_call, text, Surroundings(), names)
    assert hint == "`train` is from ddp_magic.prelude: your notebook does not define train"
    refused = _error("train_set has no images", ename="ValueError")
    assert name_hints(refused, text, Surroundings(), names) == []
    (hint,) = name_hints(refused, text, Surroundings({"train": 1}), names)
    assert hint == (
        "`train` is from ddp_magic.prelude, because --capture leaves out your notebook's"
    )
    assert name_hints(_error("x"), "a\n", Surroundings(), {"train"}) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("trian", "`train` of ddp_magic.prelude"),
        ("modle", "`model`"),
        ("learning_rat", "`learning_rate` of your notebook"),
        ("wordl_size", "`world_size`"),
    ],
)
def test_a_misspelled_name(name: str, meant: str) -> None:
    """Of the cell, of the notebook, or one that a rank imports where it is used."""
    error = _error(f"name '{name}' is not defined", ename="NameError")
    around = Surroundings({"learning_rate": 0.1})
    (hint,) = name_hints(error, f"model = 1\n\nprint({name})", around, set())
    assert hint == f"`{name}` is not defined: did you mean {meant}?"
    nothing = _error("name 'frobnicate' is not defined", ename="NameError")
    assert name_hints(nothing, "frobnicate", around, set()) == []


def test_a_value_of_the_notebook_that_hides_a_name_of_the_prelude() -> None:
    """If the error is that it is of another kind."""
    around = Surroundings({"train": 5, "torch": "x"})
    called = _error("'int' object is not callable", ename="TypeError")
    (hint,) = name_hints(called, "a\nb\ntrain(torch)", around, set())
    assert hint == (
        "`train` is your notebook's (int), which hides that of ddp_magic.prelude: rename it"
    )
    read = _error("'str' object has no attribute 'ones'", ename="AttributeError")
    (hint,) = name_hints(read, "a\nb\ntorch.ones(train)", around, set())
    assert hint.startswith("`torch` is your notebook's (str), which hides that of")
    assert name_hints(called, "a\nb\nmodel(3)", around, set()) == []
    assert name_hints(_error("5", ename="ValueError"), "a\nb\ntrain(3)", around, set()) == []


@pytest.mark.parametrize("cell", ["size.sleep(3)", "size(3)", "size == 3", "other = size"])
def test_a_name_that_the_cell_only_uses_is_not_one_that_a_child_lacks(cell: str) -> None:
    """It is missing everywhere: an import that was forgotten."""
    words = (
        "Caught NameError in DataLoader worker process 0.\nNameError: name 'size' is not defined"
    )
    assert name_hints(_error(words, ename="NameError"), cell, Surroundings(), set()) == []


@pytest.mark.parametrize("cell", ["n, size = 1, make()", "size: int = make()", "size = make()"])
def test_a_name_that_a_spawned_child_lacks(cell: str) -> None:
    """It is said what a child gets, where the cell has computed the name."""
    words = (
        "Caught NameError in DataLoader worker process 0.\nNameError: name 'size' is not defined"
    )
    error = _error(words, ename="NameError")
    (hint,) = name_hints(error, f"{cell}\n", Surroundings(), set())
    assert hint.startswith("`size`: a spawned child gets the cell's imports, functions")
    own = _error("name 'size' is not defined", ename="NameError")
    assert name_hints(own, "size = 1", Surroundings(), set()) == []
