"""The store by which the ranks of a run meet: a file, or on several nodes the agent's.

Under torchrun the agent has the store. A rank's own would end with that rank, while others need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import _rendezvous_handlers

from ddp_magic.system.run_directory import RunDirectory


class Stores:
    """Gives each process group of a rank keys of its own in the ranks' store.

    Args:
        directory: Where the store lies.

    Attributes:
        in_rank: Whether this process is the rank, not one that the rank has forked.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.in_rank = True
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._path = str(directory.store(attempt))
        self._world_size = os.environ["WORLD_SIZE"]
        self._has_nodes = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
        self._agents_store: Any = None
        self._number = 0
        self._count = 0
        self._torch_rendezvous = _rendezvous_handlers["env"]
        _rendezvous_handlers["env"] = self._rendezvous

    def begin(self, number: int) -> None:
        """Give other keys from now on.

        Args:
            number: The same on all ranks, and new.
        """
        self._number, self._count = number, 0

    def next(self) -> PrefixStore:
        """Return the store for another group: keys of an earlier one would be taken for its own."""
        self._count += 1
        return self._store(str(self._count))

    def _store(self, name: str) -> PrefixStore:
        prefix = f"ddp_magic/{self._number}/{name}"
        if self._has_nodes:  # an agent has made it, for this attempt
            self._agents_store = self._agents_store or dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
            )
            return PrefixStore(prefix, self._agents_store)
        # A file, since these ranks are on one machine. At each connection to a TCPStore torch looks
        # up the name of 127.0.0.1, only to log it; a name server that does not answer costs 5 s.
        # The directory may be gone: cleaners of temporary files remove it.
        Path(self._path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = dist.FileStore(self._path)  # type: ignore[attr-defined]
        return PrefixStore(prefix, store)

    def _rendezvous(self, url: str, **kwargs: Any) -> Iterator[tuple[Any, int, int]]:  # noqa: ANN401
        """Meet by environment variables (`env://`), as `init_rpc` does."""
        given = dict(parse_qsl(urlsplit(url).query))
        size = given.get("world_size") or os.environ.get("WORLD_SIZE")
        rank = given.get("rank") or os.environ.get("RANK")
        if not self.in_rank or size != self._world_size or rank is None:
            yield from self._torch_rendezvous(url, **kwargs)
            return
        yield self._store("environment"), int(rank), int(size)
        raise RuntimeError("env:// cannot meet again")
