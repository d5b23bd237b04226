"""Where the lines of the function are that `launch` calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from ddp_magic.worker.called_function import file_of

SCRIPT = "/home/me/train.py"
SOURCE = """
import functools

def train(x): ...

def timed(f):
    @functools.wraps(f)
    def inner(*args): return f(*args)
    return inner

@timed
def decorated(x): ...

class Trainer:
    def fit(self, x): ...
    def __call__(self, x): ...
    @classmethod
    def make(cls, x): ...
"""


@pytest.mark.parametrize(
    "choose",
    [
        lambda m: m["train"],
        lambda m: m["decorated"],
        lambda m: functools.partial(functools.partial(m["decorated"], 1)),
        lambda m: m["Trainer"]().fit,
        lambda m: m["Trainer"].make,
        lambda m: m["Trainer"](),
    ],
)
def test_the_users_file_has_its_name(choose: Callable[[dict[str, Any]], object]) -> None:
    module: dict[str, Any] = {"__name__": "train"}
    exec(compile(SOURCE, SCRIPT, "exec"), module)
    assert file_of(choose(module)) == {SCRIPT: "train.py"}


@pytest.mark.parametrize("function", [print, functools.wraps, int, None, eval("lambda: 1")])
def test_the_code_of_a_library_or_of_no_file_has_none(function: object) -> None:
    assert file_of(function) == {}
