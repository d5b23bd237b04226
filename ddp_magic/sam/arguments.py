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


def check_fraction(name: str, value: float, *, one_allowed: bool = True) -> None:
    """Check that an argument is from 0 to 1.

    Raises:
        ValueError: It is not, or it is 1 and `one_allowed` is False.
    """
    if not 0 <= value <= 1 or (value == 1 and not one_allowed):
        limit = "1" if one_allowed else "below 1"
        raise ValueError(f"invalid {name} {value!r}: use a number from 0 to {limit}")


def rounds_per_epoch(rounds: int | Sequence[int]) -> list[int]:
    """Return the `rounds` of `train` as a list; the last number holds for the remaining epochs.

    Raises:
        ValueError: A number is below 1, or there is none.
    """
    numbers = [rounds] if isinstance(rounds, int) else list(rounds)
    if min(numbers, default=0) < 1:
        raise ValueError(
            f"invalid rounds {rounds!r}: use an integer of 1 or more, or one such integer per epoch"
        )
    return numbers
