"""Which names a cell has bound in its rank, and which of their values end with it.

The values are asked for nothing: `isinstance` would run code of theirs (`__class__`), and a dead
`weakref.proxy` raises.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import torch

from ddp_magic.wire.worker_events import CellNames

_MISSING = object()
_FEW = 3  # fewer items are no history
# Objects of theirs are handles of this process, or parts of a figure.
_NO_VALUES = {"asyncio", "concurrent", "matplotlib", "multiprocessing", "subprocess", "threading"}
_ARRAYS = (("numpy", "ndarray"), ("pandas", "DataFrame"), ("pandas", "Series"))


class NamesBefore:
    """What a namespace held before the cell, to be compared with what it holds afterwards.

    Args:
        namespace: The cell's.
    """

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        self._values = dict(namespace)
        self._writes = _parameter_writes(self._values)

    def compare(
        self,
        rank: int,
        after: Mapping[str, Any],
        hidden: Collection[str],
        imported: Collection[ModuleType] = (),
    ) -> CellNames:
        """Return the names that the cell has bound.

        Args:
            rank: This rank.
            after: The namespace after the cell.
            hidden: Names that are ddp_magic's and IPython's own.
            imported: The modules that were imported here, whose values nobody would miss.
        """
        names = [
            name
            for name, value in after.items()
            if self._values.get(name, _MISSING) is not value and name not in hidden
        ]
        values = [
            name for name in names if not name.startswith("_") and _is_worth_pulling(after[name])
        ]
        # As after `from settings import *`. Not `vars`, for which a lazy module would be loaded.
        theirs = [object.__getattribute__(module, "__dict__") for module in imported]
        known = {id(each.get(name)) for each in theirs for name in values}
        values = [name for name in values if id(after[name]) not in known]
        # A model of the notebook's may have been trained here.
        writes = _parameter_writes(self._values)
        trained = {name for name, count in writes.items() if count != self._writes[name]}
        values += sorted(trained - set(names))
        return CellNames(rank=rank, names=tuple(names), values=tuple(values))


def _is_worth_pulling(value: object) -> bool:
    """Return whether somebody may miss a value once its rank has ended.

    Models and optimizers, tensors and arrays of several elements, data frames, and histories: lists
    and dictionaries of several items that are not only names. Not numbers, loop variables, data
    sets, files, bars, threads or the axes of a figure.
    """
    kind = type(value)
    if issubclass(kind, (torch.nn.Module, torch.optim.Optimizer)):
        return True
    if issubclass(kind, torch.Tensor):
        # A subclass may have code of its own for its size.
        exact = kind in (torch.Tensor, torch.nn.Parameter)
        return not exact or torch.Tensor.numel(value) > 1  # type: ignore[arg-type]
    for module, name in _ARRAYS:
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type) and issubclass(kind, found):
            if name != "ndarray":
                return True
            has_values = not found.dtype.__get__(value).hasobject  # type: ignore[attr-defined]
            return has_values and found.size.__get__(value) > 1  # type: ignore[attr-defined]
    # Their own methods, not those of a subclass of the user's.
    items: list[object]
    if issubclass(kind, dict):
        items = [*dict.values(value)]  # type: ignore[arg-type]
    elif issubclass(kind, list):
        items = [*list.__iter__(value)]  # type: ignore[arg-type]
    else:
        return False
    return len(items) >= _FEW and any(_is_value(type(item)) for item in items)


def _is_value(kind: type) -> bool:
    home = type.__getattribute__(kind, "__module__")
    return kind is not str and str(home).partition(".")[0] not in _NO_VALUES


def _parameter_writes(namespace: Mapping[str, Any]) -> dict[str, int]:
    """Return how often the parameters of each module in a namespace have been written to."""
    modules = {n: v for n, v in namespace.items() if issubclass(type(v), torch.nn.Module)}
    # torch 2.6 to 2.13: tests/unit/worker/test_private_names.py
    return {n: sum(p._version for p in m.parameters()) for n, m in modules.items()}
