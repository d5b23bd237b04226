"""Errors that are also of a rank's own class."""

from __future__ import annotations

import sys
import types

import pytest

from ddp_magic.errors import WorkerError, of_class


class PickyError(Exception):
    """Is made of one number only."""

    def __init__(self, number: int) -> None:
        super().__init__(number + 1)


def test_a_class_of_a_module_that_imports_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its `__getattr__` raises, the rank's error is told."""

    def refuse(name: str) -> object:
        raise RuntimeError(name)

    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = refuse  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    error = of_class(WorkerError, ["lazy:Gone", "builtins:ValueError"], {})
    assert issubclass(error, ValueError)


def test_a_class_that_is_made_in_a_way_of_its_own() -> None:
    """The next one above it is taken where the two do not go together."""
    error = of_class(WorkerError, [f"{__name__}:PickyError", "builtins:OSError"], {})
    made = error("words", rank=0, ename="PickyError", evalue="", traceback=())
    assert isinstance(made, WorkerError)
