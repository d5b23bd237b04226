"""The imports of a script."""

from __future__ import annotations

import concurrent.futures
import functools
import os.path
import types
import typing
from typing import Any

import numpy as np
import pytest
import torch

from ddp_magic.kernel.script.imports import Home, Imports, home_of


def _id(value: Any) -> str:
    """Return a name for a case, the same in all processes."""
    return str(getattr(value, "__name__", type(value).__name__))


def _text(*found: tuple[Home, str]) -> str:
    imports = Imports({})
    for home, name in found:
        imports.add(home, name)
    return imports.text()


def test_they_are_sorted_and_merged() -> None:
    assert _text(
        (("torch.nn", None), "nn"),
        (("torch.nn.functional", None), "F"),
        (("torch", None), "torch"),
        (("torch.optim", None), "optim"),
        (("os", None), "os"),
        (("collections", "deque"), "queue"),
        (("xml.etree", None), "xml"),
        (("numpy", None), "np"),
    ) == (
        "import os\nimport xml.etree\nfrom collections import deque as queue\n\n"
        "import numpy as np\nimport torch\nimport torch.nn.functional as F\n"
        "from torch import nn, optim"
    )


def test_a_long_line_is_folded() -> None:
    text = _text(*(((f"{'a' * 20}", f"name_{i}_of_it"), f"name_{i}_of_it") for i in range(9)))
    assert max(map(len, text.split("\n"))) < 60
    compile(text, "<imports>", "exec")


def test_a_line_of_ours_takes_no_name_of_the_cell() -> None:
    torch_home: Home = ("torch", None)
    imports = Imports({"os": None, "torch": torch_home, "dist": ("scipy", "dist")})
    assert imports.use(("os", None), "os") == "_os"
    assert imports.use(torch_home, "torch") == "torch"
    assert imports.use(("torch.distributed", None), "dist") == "_dist"
    assert imports.builtin("int") == "int"


@pytest.mark.parametrize(
    ("value", "home"),
    [
        (torch.nn.Linear, ("torch.nn", "Linear")),
        (torch.nn, ("torch.nn", None)),
        (torch.utils.data.DataLoader, ("torch.utils.data", "DataLoader")),
        (functools.partial, ("functools", "partial")),
        (np.exp, ("numpy", "exp")),
        (np.array, ("numpy", "array")),
        (typing.Optional, ("typing", "Optional")),
        (typing.Any, ("typing", "Any")),
        (os.path, ("os.path", None)),
        (os.path.join, ("os.path", "join")),
        (concurrent.futures.ThreadPoolExecutor, ("concurrent.futures", "ThreadPoolExecutor")),
        (print, ("builtins", "print")),
    ],
    ids=_id,
)
def test_where_a_value_is_imported_from(value: object, home: Home) -> None:
    """From the most public module that has it under its own name."""
    names: dict[str, Any] = {}
    found = home_of(value)
    exec(_text((found or ("", ""), "it")), names)
    assert names["it"] is value
    assert found in (home, ("posixpath", "join"))


def _own() -> type:
    return type("Own", (), {"__module__": "__main__"})


@pytest.mark.parametrize(
    "value",
    [
        *(3, "x", _own(), typing.List[list[int]], list[int], types.ModuleType("made")),  # noqa: UP006
        *(dict.fromkeys, functools.partial(print), np.arange(2)),
    ],
    ids=_id,
)
def test_what_is_not_imported(value: object) -> None:
    assert home_of(value) is None
