"""The settings that a kernel sends to an agent and its ranks."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

SPEC_VARIABLE = "DDP_MAGIC_SPEC"  # the environment variable in which torchrun's children find it


def default_backend(device: str) -> str:
    """Return the backend of the default process group, where no other is asked for.

    Args:
        device: "cuda" or "cpu".
    """
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings that all ranks of a group share.

    Attributes:
        socket: Path of the listening socket on this node.
        directory: The run directory.
        device: "cuda" or "cpu".
        backend: Backend of the default process group; None for the default of the device.
        timeout_s: Timeout for collectives, in seconds; None for torch's default.
        init_process_group: Whether the default process group is created before the cell.
        kept: Whether the ranks belong to a session, and outlive their cells.
        node: Name of the node, where there are several machines; empty on the kernel's own.
    """

    socket: str
    directory: str
    device: str
    backend: str | None = None
    timeout_s: float | None = None
    init_process_group: bool = True
    kept: bool = False
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """What an agent runs.

    Attributes:
        run_id: Id of the rendezvous.
        kernel_pid: The agent ends when this process ends.
        nproc: Number of ranks on this node, as on every other one.
        nnodes: Number of nodes; the most, as long as the cluster has not chosen.
        min_nodes: The fewest, if the cluster chooses; 0 if it does not.
        node: Number of this node.
        head: Address of node 0 at which the others reach it; empty if there are no others.
        head_port: Port of the store of the rendezvous, which node 0 owns.
        head_fd: Its descriptor, which listens already; -1 on the other nodes.
        sys_path: The kernel's module search path.
        worker: Settings of the ranks.
        prelude: Names of `ddp_magic.prelude` that the first cell reads.
        max_restarts: How often the ranks are restarted after a failure.
        attempt: How often they have been restarted already, by agents that were lost with a node.
        without: Nodes that are not to be used, because they were lost.
    """

    run_id: str
    kernel_pid: int
    nproc: int
    sys_path: tuple[str, ...]
    worker: WorkerSettings
    prelude: tuple[str, ...] = ()
    max_restarts: int = 0
    attempt: int = 0
    without: tuple[str, ...] = ()
    nnodes: int = 1
    min_nodes: int = 0
    node: int = 0
    head: str = ""
    head_port: int = 0
    head_fd: int = -1

    @property
    def first_rank(self) -> int:
        """The first rank on this node."""
        return self.node * self.nproc

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AgentSpec:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        worker = WorkerSettings(**fields.pop("worker"))
        lists = {name: tuple(fields[name]) for name in ("sys_path", "prelude", "without")}
        return cls(**{**fields, **lists}, worker=worker)
