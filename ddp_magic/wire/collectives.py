"""What torch's Flight Recorder knows of a rank's process groups, as it travels to the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

# Bytes of an element, by torch's name of its type; of all others 1.
_BYTES = {
    "Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2,
    "ComplexFloat": 8, "ComplexDouble": 16,
}  # fmt: skip

UNNAMED = "collective"  # the name of an operation of which only its number is known


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One collective, or one send or receive, that a rank has called.

    Attributes:
        number: Its place in the group's sequence of collectives, from 1; every rank of the group
            counts the same. Sends and receives are counted apart.
        name: torch's name for it, without the backend: `all_reduce`, `recv 0<-1`.
        inputs: Shapes of the tensors that go in.
        outputs: Shapes of the tensors that come out.
        dtypes: The types of the inputs, as torch's C++ code names them: `Float`, `Long`.
        created: When it was called, in seconds since the epoch.
        done: Whether it has completed on this rank.
        point_to_point: Whether it is a send or a receive.
        is_recorded: Whether torch's record had it when somebody looked. Of one that later ones had
            overwritten by then, the number is known, and from the stack perhaps the name.
    """

    number: int
    name: str
    created: float
    done: bool
    inputs: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    point_to_point: bool = False
    is_recorded: bool = True

    @property
    def bytes(self) -> int:
        """Size of the tensors that go in."""
        return sum(
            prod(shape) * _BYTES.get(dtype, 1)
            for shape, dtype in zip(self.inputs, self.dtypes, strict=False)
        )


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A send or a receive of gloo, which the Flight Recorder does not know.

    Attributes:
        kind: `send` or `recv`.
        peer: The rank to which or from which; None for a receive from any.
        tag: Its tag: a receive takes only what was sent with the same.
    """

    kind: str
    peer: int | None
    tag: int = 0


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The sends of a rank to another one in a cell, or its receives from it, in their order.

    Attributes:
        kind: `send` or `recv`.
        peer: The rank to which or from which.
        tag: Their tag.
        group: The name of their group.
        tensors: What was sent or received, as `4 elements of float32`; each differs from the next.
        counts: How many of each follow one another.
    """

    kind: str
    peer: int
    tag: int
    group: str
    tensors: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A process group that a rank is a member of, and has perhaps not used yet.

    Attributes:
        name: The group's name.
        ranks: Its members as this rank knows them, by their rank in the world.
    """

    name: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """One process group on one rank.

    Attributes:
        name: The group's name, the same on all its ranks; empty if it is not known any more.
        backend: `gloo` or `nccl`. A group with both has a record, and a sequence, for each.
        title: What a person calls it: torch's description, such as `default_pg`.
        ranks: Its members, by their rank in the world.
        enqueued: Number of the last collective that was called.
        completed: Number of the last one that has completed.
        before: Number of the last one that was called before the cell.
        operations: The last ones that the cell has called, in the order of the calls; how many is
            set by TORCH_FR_BUFFER_SIZE.
    """

    name: str
    backend: str
    title: str
    ranks: tuple[int, ...]
    enqueued: int
    completed: int
    before: int = 0
    operations: tuple[Operation, ...] = ()

    @property
    def key(self) -> str:
        """Backend and name."""
        return f"{self.backend}:{self.name}"
