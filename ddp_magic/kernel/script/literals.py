"""Plain values as text whose evaluation gives an equal value. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddp_magic.kernel.script.imports import Imports

_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", set: "{}", dict: "{}"}
_LINE = 88
_MOST = 2000  # characters; a longer value is no reading matter


class NotPlainError(ValueError):
    """A value has no literal, or a long one."""


def literal(value: object, imports: Imports) -> str:
    """Return the text of a value.

    Args:
        value: The value.
        imports: Gets what the text uses.

    Raises:
        NotPlainError: It has none.
    """
    containers = [id(part) for part in mutable_parts(value)]
    if len(containers) > len(set(containers)):
        raise NotPlainError  # the same list twice, or in itself
    text = _text(value, imports)
    if len(text) > _MOST:
        raise NotPlainError
    return text


def mutable_parts(value: Any, depth: int = 20) -> Iterator[object]:  # noqa: ANN401 -- any
    """Yield the lists, sets and dictionaries in a plain value.

    Raises:
        NotPlainError: It is too deep, or too long.
    """
    if type(value) not in (*_BRACKETS, frozenset):
        return
    if not depth or len(value) > _MOST:
        raise NotPlainError
    if type(value) in (list, set, dict):
        yield value
    for part in [*value, *value.values()] if type(value) is dict else value:
        yield from mutable_parts(part, depth - 1)


def _text(value: Any, imports: Imports) -> str:  # noqa: ANN401 -- any
    kind = type(value)
    if value is None or value is ... or kind in (bool, str, bytes):
        return repr(value)
    if kind in (int, float, complex, range):
        return _number(value, imports)
    if kind in (set, frozenset) and (not value or kind is frozenset):
        parts = _text(set(value), imports) if value else ""
        return f"{imports.builtin(kind.__name__)}({parts})"
    if kind in _BRACKETS:
        return _container(value, imports)
    return _of_library(value, imports)


def _number(value: Any, imports: Imports) -> str:  # noqa: ANN401 -- any
    if isinstance(value, float) and not math.isfinite(value):
        return f'{imports.builtin("float")}("{value}")'
    if isinstance(value, complex):
        real, imaginary = (_number(part, imports) for part in (value.real, value.imag))
        return f"{imports.builtin('complex')}({real}, {imaginary})"
    if isinstance(value, range):
        return f"{imports.builtin('range')}({value.start}, {value.stop}, {value.step})"
    if isinstance(value, int) and value.bit_length() > _MOST:
        raise NotPlainError
    return repr(value)


def _container(value: Any, imports: Imports) -> str:  # noqa: ANN401 -- any
    start, end = tuple(_BRACKETS[type(value)])
    if isinstance(value, dict):
        pairs = value.items()
        parts = [f"{_text(key, imports)}: {_text(item, imports)}" for key, item in pairs]
    else:
        parts = [_text(part, imports) for part in value]
    one = "," if type(value) is tuple and len(value) == 1 else ""
    line = start + ", ".join(parts) + one + end
    if len(line) <= _LINE and "\n" not in line:
        return line
    lines = "".join(f"    {part},\n".replace("\n", "\n    ").removesuffix("    ") for part in parts)
    return f"{start}\n{lines}{end}"


def _of_library(value: Any, imports: Imports) -> str:  # noqa: ANN401 -- any
    """Return the text of a path, a device, a dtype, or a scalar of NumPy."""
    kind = type(value)
    if kind is type(Path()):
        return f"{imports.use(('pathlib', 'Path'), 'Path')}({str(value)!r})"
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and kind in (torch.device, torch.dtype):
        of = "" if kind is torch.dtype else f"{imports.use(('torch', None), 'torch')}."
        return of + repr(value).replace("torch.", imports.use(("torch", None), "torch") + ".")
    if numpy is not None and isinstance(value, (numpy.integer, numpy.floating, numpy.bool_)):
        item = value.item()
        if type(item) in (bool, int, float):  # not of longdouble
            name = f"{imports.use(('numpy', None), 'np')}.{kind.__name__}"
            return f"{name}({_text(item, imports)})"
    raise NotPlainError
