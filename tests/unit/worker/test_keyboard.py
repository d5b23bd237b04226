"""`input()` and `breakpoint()` in a rank."""

from __future__ import annotations

import builtins
import sys

import pytest

from ddp_magic.worker import keyboard


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(builtins, "input", builtins.input)
    monkeypatch.setattr(sys, "breakpointhook", sys.breakpointhook)
    keyboard.install()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: input("name? "), r"rank 1 called input\('name\? '\): ranks cannot read from"),
        (lambda: input(), r"rank 1 called input\(\): .* pass the answer after `--`"),  # noqa: PLW0108
        (lambda: breakpoint(), r"rank 1 called breakpoint\(\): .* run the cell without %%ddp"),  # noqa: PLW0108
    ],
)
def test_the_error_says_what_to_do(call: object, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()  # type: ignore[operator]
