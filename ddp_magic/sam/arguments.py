"""Checks of arguments that are words, numbers, flags and functions."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from reprlib import repr as shown
from typing import TypeGuard

import numpy as np


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, of Python or NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that an argument is one of several words.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"invalid {name} {value!r}: use {', '.join(others)} or {last}")


def check_minimum(minimum: int | None, **arguments: object) -> None:
    """Check that arguments, given by name, are integers that are not below a minimum.

    Raises:
        ValueError: One is not.
    """
    for name, value in arguments.items():
        if not is_integer(value) or (minimum is not None and value < minimum):
            least = "" if minimum is None else f" of {minimum} or more"
            raise ValueError(f"invalid {name} {value!r}: use an integer{least}")


def check_flags(**arguments: object) -> None:
    """Check that arguments, given by name, are True or False: the text "no" would count as True.

    Raises:
        TypeError: One is not.
    """
    for name, value in arguments.items():
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, not {shown(value)}")


def check_shares(**arguments: object) -> None:
    """Check that arguments, given by name, are numbers from 0 to 1, and not percentages.

    Raises:
        ValueError: One is not.
    """
    for name, value in arguments.items():
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise ValueError(f"invalid {name} {value!r}: use a number from 0 to 1")


def check_functions(*, or_none: bool = False, **arguments: object) -> None:
    """Check that arguments, given by name, are functions, or None where that is allowed.

    Raises:
        TypeError: One is not.
    """
    for name, value in arguments.items():
        if not (callable(value) or (or_none and value is None)):
            raise TypeError(f"{name} must be a function, not {shown(value)}")
