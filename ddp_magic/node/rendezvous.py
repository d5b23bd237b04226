"""The rendezvous of a fixed number of nodes: node 0 owns the stores, on its own address.

torch's own handler (c10d) listens on all interfaces, and unpickles what anyone who reaches its
store has written there. Nothing is unpickled here. The port has no authentication, as none of
torch's has: other users of the cluster who can reach it could disturb the run.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from ddp_magic.wire.specs import AgentSpec

BACKEND = "ddp_magic"
MEET_S = 600.0  # for all nodes to come: a slow disk takes minutes for torch's import
POLL_S = 0.05


class SeveralNodes(RendezvousHandler):
    """Every node takes part in every round; a round is an attempt to run the ranks.

    Args:
        spec: What the agent runs.

    Attributes:
        restarts: How often the ranks have been restarted; one less before they start.
    """

    def __init__(self, spec: AgentSpec) -> None:
        self._spec = spec
        self._closed = False
        self.restarts = spec.attempt - 1
        self._is_done = False
        self._store = self._open(spec.head_port, spec.head_fd)
        self._ranks_store: TCPStore | None = None

    def _open(self, port: int, listening: int) -> TCPStore:
        """Connect to a store of node 0; there, make it.

        Args:
            port: Its port.
            listening: On node 0, a descriptor that listens there.
        """
        return TCPStore(
            self._spec.head,
            port,
            is_master=listening >= 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=MEET_S),
            master_listen_fd=listening if listening >= 0 else None,
            use_libuv=False,  # in torch 2.6, a store with libuv cannot take a descriptor
        )

    def get_backend(self) -> str:
        """Return the name of this rendezvous in torch's log."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Whether MASTER_PORT is that of a store which an agent has made already."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for the other nodes, and return the group of all of them."""
        spec = self._spec
        self.restarts += 1
        self._is_done = False
        name = f"round{self.restarts}"
        if spec.node == 0:
            # A new one for every attempt: the keys of an earlier one would be taken for today's.
            listener = socket.create_server((spec.head, 0), backlog=1024)
            port = listener.getsockname()[1]
            self._ranks_store = self._open(port, listener.detach())
            self._store.set(f"{name}/port", str(port))
        self._store.set(f"{name}/joined", "")
        self._store.set(f"{name}/joined/{spec.node}", "")
        self._store.wait(
            [f"{name}/port", *(f"{name}/joined/{node}" for node in range(spec.nnodes))],
            timedelta(seconds=MEET_S),
        )
        port = int(self._store.get(f"{name}/port"))
        return RendezvousInfo(
            PrefixStore(f"{name}/agents", self._store),
            rank=spec.node,
            world_size=spec.nnodes,
            bootstrap_store_info=RendezvousStoreInfo(spec.head, port),
        )

    def all_done(self) -> bool:
        """Say that this node's ranks are done, and return whether those of all nodes are.

        Until then their agents stay: node 0 for its stores, all for a restart.
        """
        name = f"round{self.restarts}/done"
        try:
            if not self._is_done:
                self._store.set(f"{name}/{self._spec.node}", "")
                self._is_done = True
            if self._store.check([f"{name}/{node}" for node in range(self._spec.nnodes)]):
                return True
        except RuntimeError:  # node 0 has seen that all are done, and is gone
            return True
        time.sleep(POLL_S)
        return False

    def num_nodes_waiting(self) -> int:
        """Return whether a node has begun another round, for which the ranks are restarted."""
        if not self._spec.max_restarts:
            return 0
        try:
            return int(self._store.check([f"round{self.restarts + 1}/joined"]))
        except RuntimeError:  # node 0 is gone, as in `all_done`
            return 0

    def close_port(self) -> None:
        """Do nothing: a forked rank cannot use the agent's stores, and does no harm to them."""

    def is_closed(self) -> bool:
        """Return whether the rendezvous is closed."""
        return self._closed

    def set_closed(self) -> None:
        """Close the rendezvous."""
        self._closed = True

    def get_run_id(self) -> str:
        """Return the run's name."""
        return self._spec.run_id

    def shutdown(self) -> bool:
        """Close the rendezvous."""
        self._closed = True
        return True
