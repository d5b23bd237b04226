"""A call of a function on every rank, as the cell that `launch` runs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ddp_magic.kernel.values.pull import Pull
from ddp_magic.kernel.values.value_stream import Extra
from ddp_magic.wire.commands import CALLED

# Names that no session's cell and no notebook has.
_ARGUMENT, _RETURN_VALUE = "_argument", "_return_value"

PULL = Pull(_RETURN_VALUE, None, label="the return value")


def cell_of_call(
    function: Callable[..., Any], arguments: Sequence[Any]
) -> tuple[str, dict[str, Extra]]:
    """Return the text of a cell that calls a function, and the values that it needs for that."""
    name = getattr(function, "__name__", type(function).__name__)
    extra = {CALLED: Extra(value=function, name=name, label=f"the function `{name}`")}
    for i, (parameter, value) in enumerate(zip(_parameters(function), arguments, strict=False), 1):
        label = f"argument {i}" + (f" (`{parameter}`)" if parameter else "")
        extra[f"{_ARGUMENT}_{i}"] = Extra(value=value, name=parameter or label, label=label)
    given = ", ".join(name for name in extra if name != CALLED)
    awaited = "await " if inspect.iscoroutinefunction(function) else ""
    return f"{_RETURN_VALUE} = {awaited}{CALLED}({given})", extra


def own_keyword(function: Callable[..., Any], names: Iterable[str]) -> str:
    """Return the first of these names that is a parameter of a function; empty if none is."""
    try:
        own = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return ""
    return next((name for name in names if name in own), "")


def results(found: dict[str, Any]) -> list[Any]:
    """Return the values that the function returned, from those that came back from the ranks."""
    return list(found.get(_RETURN_VALUE, []))


def _parameters(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the name of each positional argument's parameter; empty where it has none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return itertools.repeat("")
    named = (p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
    return itertools.chain(named, itertools.repeat(rest))
