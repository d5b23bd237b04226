"""The default process group that a cell finds ready, and how the cell's own group replaces it.

A script for plain torchrun calls `init_process_group` itself, perhaps in a module that the cell
imports. That call replaces the unused default group and uses the ranks' own store, whatever
MASTER_PORT the script has set; so does `init_rpc`. If the default group has been used, the call
raises an error.

A process that a rank forks is not a rank: the groups that it creates are its own, and replace the
default group that it has inherited. A group of another world size is the cell's own too.

All private names of torch that a rank uses are in this file, but for `Tensor._version`
(`cell_names`), the Flight Recorder's (`torch_records`), the dispatcher's (`checked_calls`) and
the table of rendezvous (`stores`).
They are known to work in torch 2.6 to 2.13, and tests/unit/worker/test_private_names.py fails where
one changes.
"""

from __future__ import annotations

import functools
import os
import sys
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist
import torch.multiprocessing
from torch.distributed import distributed_c10d

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.worker.group_sockets import GroupSockets
from ddp_magic.worker.stores import Stores
from ddp_magic.worker.watch.torch_records import note_groups

if TYPE_CHECKING:  # older torch has no name for this type of string
    from torch.distributed.distributed_c10d import GroupName


FOREVER = timedelta(days=30)


class ProcessGroups:
    """Replaces torch's `init_process_group` and `destroy_process_group` in one rank.

    Args:
        directory: Where the ranks' store lies.
        backend: Backend of the default group; None to create no default group.
        timeout: Timeout of its collectives; None for torch's default.
    """

    def __init__(
        self, directory: RunDirectory, *, backend: str | None, timeout: timedelta | None
    ) -> None:
        self._backend = backend
        self._timeout = timeout
        self._world_size = int(os.environ["WORLD_SIZE"])
        self._stores = Stores(directory)
        self._torch_init = distributed_c10d.init_process_group
        self._torch_destroy = distributed_c10d.destroy_process_group
        self._torch_helper = distributed_c10d._new_process_group_helper
        self._ours: Any = None
        self._kept: list[Any] = []
        self._sockets = GroupSockets()
        self._held: dict[Any, timedelta] | None = None  # timeouts by backend; None if they run

        @functools.wraps(self._torch_init)
        def init_process_group(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- torch's
            self._init_for_cell(*args, **kwargs)

        @functools.wraps(self._torch_destroy)
        def destroy_process_group(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- torch's
            self._destroy_for_cell(*args, **kwargs)

        @functools.wraps(self._torch_helper)
        def helper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- torch's
            wanted = kwargs.get("timeout")
            if self._held is not None and isinstance(wanted, timedelta):
                kwargs["timeout"] = FOREVER
            with self._sockets.opened_here():
                made = self._torch_helper(*args, **kwargs)
            if self._held is not None and isinstance(wanted, timedelta):
                self._hold(made[0], wanted)
            note_groups(made[:1])
            return made

        distributed_c10d._new_process_group_helper = helper
        for module in (dist, distributed_c10d):
            module.init_process_group = init_process_group  # type: ignore[attr-defined]
            module.destroy_process_group = destroy_process_group  # type: ignore[attr-defined]
        os.register_at_fork(after_in_child=self._release_child)

    def _release_child(self) -> None:
        """Give torch's own behavior back to a process that this rank has forked.

        The default group stays visible there: a `DataLoader`'s worker asks it for its rank. But
        what torch's own launchers start is a program of its own, which starts without a group.
        """
        self._stores.in_rank = False
        distributed_c10d._new_process_group_helper = self._torch_helper
        if _is_launched():
            self._forget()

    def _forget(self) -> None:
        """Drop, in a forked process, the default group of its parent."""
        if self._ours is None or dist.group.WORLD is not self._ours:
            return
        self._ours = None
        self._kept.extend(distributed_c10d._world.pg_map)
        distributed_c10d._world.pg_names.clear()  # what is named there is shut down
        self._torch_destroy()

    def init(self) -> None:
        """Create the default group that the cell finds, or none for `--no-init`.

        Raises:
            ValueError: torch does not have the backend.
        """
        if self._backend is None:
            return
        _check_backend(self._backend)
        self._create(
            backend=self._backend,
            timeout=self._timeout,
            store=self._stores.next(),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
        self._ours = dist.group.WORLD

    def _create(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- torch's own
        hook = sys.excepthook
        try:
            self._torch_init(*args, **kwargs)
        finally:
            # torch has put one there that labels each line "[rank0]:"; our lines have a label.
            sys.excepthook = hook

    def renew(self, number: int) -> None:
        """Create the default group again, after a cell that left the ranks out of step.

        A collective that only some ranks have started would pair with the next one, and give a
        wrong result without an error.

        Args:
            number: Number of the new group, the same on all ranks.
        """
        if dist.is_initialized():
            self._keep_groups()
            if "nccl" in str(dist.get_backend()):
                distributed_c10d._abort_process_group()  # torch 2.11 and 2.13: forgets them too
            if dist.is_initialized():
                self._torch_destroy()
        self.cut()
        self._stores.begin(number)
        self._ours = None
        self.init()

    def hold_timeouts(self) -> None:
        """Let collectives that begin from now on wait for ever, until `release_timeouts`.

        What a rank waits in already keeps its timeout: gloo and NCCL take it along when it begins.
        """
        if self._held is None:
            self._held = {}
            for group in list(distributed_c10d._world.pg_map):
                self._hold(group, None)

    def _hold(self, group: Any, timeout: timedelta | None) -> None:  # noqa: ANN401 -- torch's
        """Let a group's collectives wait for ever, and note its timeout (None for the present)."""
        for backend in _backends(group):
            if self._held is not None and backend not in self._held:
                self._held[backend] = timeout or backend.options._timeout
                backend._set_default_timeout(FOREVER)

    def release_timeouts(self) -> None:
        """Let the timeouts of collectives run again."""
        held, self._held = self._held, None
        for backend, timeout in (held or {}).items():
            backend._set_default_timeout(timeout)

    def cut(self) -> None:
        """Close the connections of all groups, which ends every wait in a collective."""
        self._sockets.cut()

    def _init_for_cell(
        self,
        backend: str | None = None,
        init_method: str | None = None,
        timeout: timedelta | None = None,
        world_size: int = -1,
        rank: int = -1,
        store: Any = None,  # noqa: ANN401 -- torch's own signature
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if not self._stores.in_rank:
            self._forget()
            self._create(backend, init_method, timeout, world_size, rank, store, *args, **kwargs)
            return
        self._replace_ours()
        size = int(os.environ.get("WORLD_SIZE", "-1")) if world_size < 0 else world_size
        by_environment = store is None and (init_method or "env://").startswith("env://")
        ours = by_environment and size == self._world_size
        if ours:
            # As under torchrun: the ranks' own store, and the rank's own numbers unless given.
            store, init_method = self._stores.next(), None
            rank = int(os.environ["RANK"]) if rank < 0 else rank
            world_size = size
        self._create(backend, init_method, timeout, world_size, rank, store, *args, **kwargs)
        if ours:
            # A rank that closes its connections would look dead to one that is still connecting.
            # This barrier is torch's own remedy, which it does not use by default.
            distributed_c10d._store_based_barrier(
                rank,
                store,
                cast("GroupName", "ddp_magic"),
                world_size,
                timeout or distributed_c10d.default_pg_timeout,
            )

    def _replace_ours(self) -> None:
        if self._ours is None or dist.group.WORLD is not self._ours:
            return  # the cell has destroyed or replaced it: torch checks the rest
        if _collectives(self._ours):
            raise RuntimeError(
                "the cell calls init_process_group after it has used the default process group "
                "that %%ddp created. Call it before the first collective, or remove the call, or "
                "use %%ddp --no-init"
            )
        self._ours = None
        self._destroy_for_cell()

    def _destroy_for_cell(self, group: Any = None) -> None:  # noqa: ANN401 -- torch's own
        if (
            not self._stores.in_rank
            and group is None
            and dist.group.WORLD is self._ours is not None
        ):
            self._forget()
            return
        self._keep_groups()
        self._torch_destroy(group)

    def _keep_groups(self) -> None:
        # A group whose last owner is a DDP object deadlocks in its destructor: it waits, with
        # the interpreter lock held, for a thread that needs the lock. So no group is ever deleted.
        self._kept.extend(distributed_c10d._world.pg_map)


def _backends(group: Any) -> list[Any]:  # noqa: ANN401 -- a ProcessGroup
    """Return the backends of a group whose timeout can be changed: those of gloo and NCCL."""
    if not hasattr(group, "_device_types"):
        return []  # of a rank that does not belong to it
    found = [group._get_backend(device) for device in group._device_types]
    return [backend for backend in found if hasattr(backend, "_set_default_timeout")]


def _check_backend(backend: str) -> None:
    """Check a backend, or one for each device: `cpu:gloo,cuda:nccl`.

    torch warns of a name that it does not know, before it fails. It says itself what a backend
    that it knows lacks here.

    Raises:
        ValueError: torch does not know it.
    """
    known = dist.Backend.backend_list
    for part in backend.split(","):
        name = part.rpartition(":")[2]
        if name.lower() not in known or name.lower() == "undefined":
            there = [each for each in known if dist.is_backend_available(each)]
            use = " or ".join(each for each in there if each not in ("undefined", "fake"))
            raise ValueError(f"invalid backend {name!r}: use {use}, which this torch has")


def _is_launched() -> bool:
    """Tell, in a process that was just forked, whether torch's launcher has forked it.

    The launcher is `mp.start_processes`, which torchrun and `accelerate` call.
    """
    launcher = torch.multiprocessing.start_processes.__code__  # type: ignore[attr-defined]
    frame: FrameType | None = sys._getframe()  # Python 3.10 to 3.13, as the names of torch
    while frame is not None:
        if frame.f_code is launcher:
            return True
        frame = frame.f_back
    return False


def _collectives(group: Any) -> int:  # noqa: ANN401 -- a ProcessGroup
    """Return how many collective operations a group has started."""
    try:
        return int(group._get_sequence_number_for_group())
    except RuntimeError:  # a backend that does not count
        return 0
