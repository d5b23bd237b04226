"""Plain values as text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddp_magic.kernel.script.imports import Imports
from ddp_magic.kernel.script.literals import NotPlainError, literal

VALUES = [
    *(None, True, 1, -5, 0.1, -0.0, 1e-300, math.inf, -math.inf, math.nan, 1j, complex(math.nan)),
    *("", "it's \"q\" '''x''' \"\"\"", "two\nlines\t\\", "ü\u2028\ud800\0", b"\xff'", ...),
    *((), (1,), [], {}, set(), frozenset(), frozenset({1}), {1, 2}, range(1, 9, 2)),
    {"a": [1, {"b": (None, 2.5)}], 3: {"x"}},
    {f"key {i}": ["t" * 30, {"x": "y\n" * 9}] for i in range(5)},
    *(Path("/a/b c"), torch.device("cuda", 1), torch.device("cpu"), torch.float16),
    *(np.float32(0.1), np.float64("inf"), np.int64(3), np.bool_(True)),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_text_evaluates_to_the_value(value: Any) -> None:
    imports = Imports({})
    names: dict[str, Any] = {}
    text = literal(value, imports)
    exec(imports.text(), names)
    found = eval(text, names)
    assert (type(found), repr(found)) == (type(value), repr(value))


class Text(str):
    __slots__ = ()


def _itself() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


_LIST = [1]


@pytest.mark.parametrize(
    "value",
    [
        *(Text("x"), object(), [object()], np.arange(3), torch.ones(1), _itself(), len),
        *([_LIST, _LIST], list(range(5000)), "x" * 5000, 1 << 9000, {"k": [Text()]}),
        np.longdouble(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_text(value: object) -> None:
    """What is a class of its own, long, or holds one list twice, is no reading matter."""
    with pytest.raises(NotPlainError):
        literal(value, Imports({}))


def test_names_of_builtins_may_be_the_notebooks() -> None:
    imports = Imports(dict.fromkeys(["float", "set", "Path", "np", "torch"]))
    value = [math.inf, set(), Path("a"), np.int64(1), torch.float32]
    names: dict[str, Any] = dict.fromkeys(["float", "set", "Path", "np", "torch"])
    text = literal(value, imports)
    exec(imports.text(), names)
    assert eval(text, names) == value
