"""Options that Python callers pass, which no parser has seen."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from ddp_magic.errors import DDPMagicError, one_line
from ddp_magic.kernel.options import DEFAULTS, options_of


def _asked(**options: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**DEFAULTS, "gpus": "none", **options})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("nproc_per_node", value) for value in (0, -3, 1.5, "many", "0", "", [2])],
        *[("time_limit", value) for value in (0, -1, "60", float("nan"))],
        *[("timeout", value) for value in (0, "x", float("inf"))],
        *[("seed", value) for value in ("x", 1.0)],
        *[("show", frozenset(value)) for value in ("9", [-1], [0.5])],
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, value: object) -> None:
    """Such runs ended without a rank, or of a signal, or had another number of ranks."""
    with pytest.raises(ValueError, match=name):
        options_of(_asked(**{name: value}), ())


@pytest.mark.parametrize(("value", "ranks"), [(3, 3), ("3", 3), (None, 2)])
def test_numbers_of_ranks(value: object, ranks: int) -> None:
    """A number may be text, as torchrun's."""
    assert options_of(_asked(nproc_per_node=value), ()).nproc == ranks


def test_an_option_that_is_refused_is_shown_in_one_line() -> None:
    """It is still of Python's own class."""
    error = one_line(ValueError("seed='x': expected an int"))
    assert isinstance(error, DDPMagicError)
    assert isinstance(error, ValueError)
    assert error._render_traceback_() == ["ValueError: seed='x': expected an int"]
