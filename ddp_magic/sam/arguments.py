"""Checks of arguments that are words and numbers."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that an argument is one of several words.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"invalid {name} {value!r}: use {', '.join(others)} or {last}")


def check_minimum(minimum: int, **arguments: float) -> None:
    """Check that arguments, given by name, are not below a minimum.

    Raises:
        ValueError: One is.
    """
    for name, value in arguments.items():
        if value < minimum:
            raise ValueError(f"invalid {name} {value!r}: use {minimum} or more")
