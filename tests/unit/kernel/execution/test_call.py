"""A call of a function, as the cell that `launch` runs: what messages call its parts."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.execution.call import PULL, cell_of_call, own_keyword, results
from ddp_magic.kernel.values.capture import Capture, Notebook
from ddp_magic.kernel.values.names import names_of
from ddp_magic.kernel.values.needed_values import Held


def _fit(model: object, loader: object = None, *rest: object) -> object:
    return model, loader, rest


def _capture(function: Callable[..., Any], *arguments: object, held: Held | None = None) -> Capture:
    text, extra = cell_of_call(function, arguments)
    return Notebook({}).capture(names_of(ast.parse(text)), held=held, extra=extra)


def test_the_cell_calls_the_function_with_the_arguments() -> None:
    text, extra = cell_of_call(_fit, [1, 2, 3])
    names = {name: value.value for name, value in extra.items()}
    exec(text, names)
    assert results({PULL.name: names[PULL.name]}) == [1, 2, (3,)]


def test_an_asynchronous_function_is_awaited() -> None:
    """As a cell awaits it."""

    async def fetch() -> int:
        return 1

    assert cell_of_call(fetch, [])[0] == "_return_value = await _function()"
    assert cell_of_call(_fit, [])[0] == "_return_value = _function()"


def test_a_keyword_of_the_function_is_known() -> None:
    """`launch(f, lr=0.1)`; what takes any keyword knows none by name."""
    assert own_keyword(lambda x, lr=1: (x, lr), ["seeds", "lr"]) == "lr"
    assert own_keyword(lambda **options: options, ["lr"]) == ""
    assert own_keyword(dict, ["lr"]) == ""  # it has no signature


def test_a_run_without_return_values_has_no_results() -> None:
    """It failed."""
    assert results({}) == []


@pytest.mark.parametrize(
    ("function", "arguments", "what"),
    [
        (_fit, ["lock"], "argument 1 (`model`)"),
        (_fit, [1, "lock"], "argument 2 (`loader`)"),
        (_fit, [1, 2, 3, "lock"], "argument 4 (`rest`)"),
        (lambda x: x, ["lock"], "argument 1 (`x`)"),
        (dict, ["lock"], "argument 1"),  # it has no signature
    ],
)
def test_an_error_names_the_argument(
    function: Callable[..., Any], arguments: list[object], what: str
) -> None:
    """By its position and its parameter."""
    given = [threading.Lock() if argument == "lock" else argument for argument in arguments]
    message = f"cannot send {what} (lock) to the ranks: it is a lock; create it in the"
    with pytest.raises(CaptureError, match=f"^{re.escape(message)} function$"):
        _capture(function, *given)


def test_an_error_says_where_an_argument_can_be_imported() -> None:
    """Under the parameter's name, not one of ours."""
    message = "; import it in the function: from threading import _main_thread as model"
    with pytest.raises(CaptureError, match=f"{message}$"):
        _capture(_fit, threading.main_thread())


def test_an_error_names_the_function() -> None:
    lock = threading.Lock()

    def train() -> object:
        return lock

    with pytest.raises(CaptureError, match=r"^cannot send the function `train` \(function\) to"):
        _capture(train)


def test_the_list_of_what_was_sent_has_the_names_of_the_parameters() -> None:
    values = _capture(_fit, 1, [2], "x", "y").values
    assert [str(value) for value in values if value.name != "_fit"] == [
        "model (int)", "loader (list)", "rest (str)", "rest (str)"
    ]  # fmt: skip


def test_each_call_in_a_session_gets_its_own_copies() -> None:
    """An equal argument is sent again: the function may have changed the ranks' copy."""
    held = Held()
    for _ in range(2):
        sent = {value.name for value in _capture(_fit, [1], held=held).values}
        assert "model" in sent
