"""How many nodes a group has: what the cluster gives it, and again without a node that was lost."""

from __future__ import annotations

from ddp_magic.kernel.worker_group.agents import Agents
from ddp_magic.kernel.worker_group.connections import Connections
from ddp_magic.kernel.worker_group.outbox import Outbox
from ddp_magic.wire.kernel_events import NodesGranted, Restarted
from ddp_magic.wire.specs import AgentSpec


class Placement:
    """Follows the choice of the cluster, if it may choose; else the number is fixed.

    Args:
        spec: What is asked of the engine.
        agents: What it places.
        connections: The group's; they learn of the number of ranks.
        outbox: As above.

    Attributes:
        nproc: Number of ranks; the most, until the cluster has chosen.
    """

    def __init__(
        self, spec: AgentSpec, agents: Agents, connections: Connections, outbox: Outbox
    ) -> None:
        self.nproc = spec.nproc * spec.nnodes
        self._agents, self._connections, self._outbox = agents, connections, outbox
        self._nnodes, self._each = spec.nnodes, spec.nproc
        self._is_chosen = bool(spec.min_nodes)  # by the cluster
        self._is_known = not self._is_chosen

    def news(self) -> list[NodesGranted]:
        """Return the number of nodes, once the cluster has chosen."""
        if self._is_known or not (nnodes := self._agents.granted()):
            return []
        self._is_known = True
        self._resize(nnodes)
        return [NodesGranted(nnodes=nnodes, nproc=self.nproc)]

    def place_again(self) -> Restarted | None:
        """Place agents without the nodes that were lost, since all have ended.

        Returns:
            The restart; None if no node was lost, no restart is left, or the number is fixed.
        """
        if not self._is_chosen or not self._connections.may_begin_again:
            return None
        if (lost := self._agents.lost()) is None:
            return None
        restarted = self._connections.begin_again(lost.how)
        self._is_known = False
        self._resize(self._nnodes)
        self._agents.place_again(restarted.number, lost.nodes)
        return restarted

    def _resize(self, nnodes: int) -> None:
        self.nproc = nnodes * self._each
        self._connections.resize(self.nproc)
        self._outbox.resize(self.nproc)
