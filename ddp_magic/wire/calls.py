"""What a rank has called under `--check`, and the file in which the kernel reads it.

A rank appends a line to its file before each collective: the number of the call's description, and
the first time also the description itself, as JSON. A file, since its last line is there even if
the collective kills the process.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from json import dumps, loads  # bound here: a cell may replace the module's
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CollectiveCall:
    """One collective, as one rank calls it; a loop calls the same one many times.

    Attributes:
        name: What a user calls it: `all_reduce`.
        group: Name of the process group, the same on all its ranks.
        generation: How many groups of this name and with these ranks the cell has used before.
        title: How sentences name the group; empty for the default group.
        ranks: Its members, by their rank in the world, in the order of their rank in the group.
        device: Type of the tensors' device: `cpu`, `cuda`. A group counts its collectives on each
            device apart.
        before: How many collectives the group has called before the cell.
        inputs: Shapes of the tensors that go in.
        outputs: Shapes of the tensors that come out.
        dtypes: Types of the inputs, or if there are none of the outputs: `float32`.
        reduce_op: `SUM`, `MAX`; empty if there is none, or torch does not tell.
        root: The source or the destination, by its rank in the world; None if there is none.
        sends: Number of elements for each rank of the group; empty if that cannot differ.
        receives: Number of elements expected from each rank of the group; likewise.
        line: The line of the cell that it was called from; None if it is not known.
        cell: Which other cell of the notebook the line is in: `Cell In[3]`; empty for the cell that
            runs.
        via: What that line has called, if that is not the collective itself: `Tensor.backward`.
    """

    name: str
    group: str
    ranks: tuple[int, ...]
    device: str = "cpu"
    generation: int = 0
    title: str = ""
    before: int = 0
    inputs: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    reduce_op: str = ""
    root: int | None = None
    sends: tuple[int, ...] = ()
    receives: tuple[int, ...] = ()
    line: int | None = None
    cell: str = ""
    via: str = ""


def first_line(number: int, call: CollectiveCall) -> bytes:
    """Return the line of a call that is described for the first time."""
    return f"{number} {dumps(dataclasses.asdict(call))}\n".encode()


def next_line(number: int) -> bytes:
    """Return the line of a call that was described before."""
    return b"%d\n" % number


def read_line(line: bytes) -> tuple[int, CollectiveCall | None]:
    """Return the number of a call, and its description if this is the first time.

    Raises:
        ValueError: It is neither.
    """
    number, _, text = line.partition(b" ")
    try:
        if not text:
            return int(number), None
        fields = loads(text)
        return int(number), CollectiveCall(**{key: _frozen(fields[key]) for key in fields})
    except (ValueError, TypeError):
        raise ValueError(f"invalid description of a call: {line[:100]!r}") from None


def _frozen(value: Any) -> Any:  # noqa: ANN401 -- JSON
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
