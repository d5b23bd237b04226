"""Which names a cell has bound in its rank, and which of their values end with it.

The values are asked for nothing: `isinstance` would run code of theirs (`__class__`), and a dead
`weakref.proxy` raises.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ddp_magic.wire.messages import CellNames

_MISSING = object()
_DEFINITIONS = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType)


class NamesBefore:
    """What a namespace held before the cell, to be compared with what it holds afterwards.

    Args:
        namespace: The cell's.
    """

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        self._values = dict(namespace)
        self._writes = _parameter_writes(self._values)

    def compare(self, rank: int, after: Mapping[str, Any], hidden: Collection[str]) -> CellNames:
        """Return the names that the cell has bound.

        Args:
            rank: This rank.
            after: The namespace after the cell.
            hidden: Names that are ddp_magic's and IPython's own.
        """
        names = [
            name
            for name, value in after.items()
            if self._values.get(name, _MISSING) is not value and name not in hidden
        ]
        values = [
            name
            for name in names
            if not name.startswith("_") and not issubclass(type(after[name]), _DEFINITIONS)
        ]
        # A model of the notebook's may have been trained here.
        writes = _parameter_writes(self._values)
        trained = {name for name, count in writes.items() if count != self._writes[name]}
        values += sorted(trained - set(names))
        return CellNames(rank=rank, names=tuple(names), values=tuple(values))


def _parameter_writes(namespace: Mapping[str, Any]) -> dict[str, int]:
    """Return how often the parameters of each module in a namespace have been written to."""
    modules = {n: v for n, v in namespace.items() if issubclass(type(v), torch.nn.Module)}
    # torch 2.6 to 2.13: tests/unit/worker/test_private_names.py
    return {n: sum(p._version for p in m.parameters()) for n, m in modules.items()}
