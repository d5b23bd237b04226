"""Torch's agent on one of several nodes, as the far relay holds it: it says where nodes meet."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
from typing import Any

from ddp_magic.node.address import gloo_interface, own_address
from ddp_magic.system.entry_points import NODE_AGENT, command
from ddp_magic.system.environment import LAUNCHER_VARIABLES, ONE_MACHINE
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.specs import AgentSpec


class AgentProcess:
    """A process that imports torch, and runs the agent once it is told where the nodes meet.

    Args:
        start: What the near relay has said: the agent's spec, and how a node finds its address.
        node: Number of this node.
        directory: The run's, on this node.
        host: Name of this node.

    Attributes:
        head: Of node 0 of several: the address and the port of the store, which all need.
        output: Descriptor of what it writes.
        pidfd: Descriptor that is readable once it has ended.
    """

    def __init__(
        self, start: dict[str, Any], node: int, directory: RunDirectory, host: str
    ) -> None:
        spec = AgentSpec.from_json(start["spec"])
        worker = dataclasses.replace(
            spec.worker, socket=str(directory.socket), directory=str(directory), node=host
        )
        nnodes = spec.nnodes
        if spec.min_nodes:  # the cluster has chosen
            nnodes = int(os.environ[start["node_count_variable"]])
        self._spec = dataclasses.replace(
            spec, worker=worker, node=node, nnodes=nnodes, kernel_pid=os.getpid()
        )
        self.head: dict[str, Any] | None = None
        env = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
        if self.is_alone:
            env |= ONE_MACHINE
        self._store = None if self.is_alone else self._open_store(start, env)
        self._process = subprocess.Popen(
            command(NODE_AGENT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=() if self._store is None else (self._store.fileno(),),
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101 -- PIPE was given
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.pidfd = os.pidfd_open(self._process.pid)

    @property
    def nnodes(self) -> int:
        """How many nodes there are."""
        return self._spec.nnodes

    @property
    def is_alone(self) -> bool:
        """Whether there is no other node."""
        return self.nnodes == 1

    def _open_store(self, start: dict[str, Any], env: dict[str, str]) -> socket.socket | None:
        """Find this node's address among the others; node 0 listens there."""
        address = own_address(os.environ, start["node_name_variable"], start["toward"])
        if interface := gloo_interface(env, address):
            env["GLOO_SOCKET_IFNAME"] = interface
        if self._spec.node != 0:
            return None
        store = socket.create_server((address, 0), backlog=1024)
        self.head = {"address": address, "port": store.getsockname()[1]}
        return store

    def begin(self, head: dict[str, Any]) -> None:
        """Tell it what to run.

        Args:
            head: Node 0's `head`.
        """
        spec = dataclasses.replace(
            self._spec,
            head=head["address"],
            head_port=head["port"],
            head_fd=-1 if self._store is None else self._store.fileno(),
        )
        assert self._process.stdin is not None  # noqa: S101 -- PIPE was given
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(spec.to_json().encode())
        if self._store is not None:
            self._store.close()  # the agent has it

    def kill(self) -> None:
        """End it, unless it has ended; its ranks carry PDEATHSIG."""
        if self._process.poll() is None:
            self._process.kill()
