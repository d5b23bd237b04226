"""The process that is Ray's driver for a run: it connects its stdin and stdout with the nodes'.

It lives from the run's start to its end, and no longer than the kernel: its stdin ends with that.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ddp_magic.engines.ray import LOST, START, WAITS
from ddp_magic.engines.ray_node import Node
from ddp_magic.system.processes import exit_words
from ddp_magic.system.readable import readable
from ddp_magic.wire.relay_frames import PIECE_BYTES, write_all

NODE_VARIABLE = "DDP_MAGIC_RAY_NODE"
COUNT_VARIABLE = str(START["node_count_variable"])
INLINE_BYTES = 64 * 1024  # what is longer goes through Ray's object store, once for all nodes
POLL_S = 1.0  # between two looks at the queue
CONNECT_S = 10.0  # for the cluster's port to answer
# Ray's words for a node that does not answer: the actor's number and the code say nothing more.
_UNREACHABLE = re.compile(
    r"The actor \w+ is unavailable: (?:The actor is temporarily unavailable: )?"
    r"(?:RpcError: )?(?:RPC error: )?(.*?)(?: rpc_code: \d+)?$"
)
END_S = 4.0  # for the relays to clean up, before Ray kills them; less than `program.CANCEL_S`


def main() -> NoReturn:
    """Start the agents of a run, and carry their streams to its end."""
    asked = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _end)
    output = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is not part of the frames
    try:
        import ray

        driver = Driver(ray, asked, 0, output)
        # A signal that comes right before the wait in C does not interrupt it: this wakes it.
        signal.set_wakeup_fd(driver.over, warn_on_full_buffer=False)
        driver.run()
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is this process's last word
        sys.exit(f"Ray: {error}")
    sys.exit()


def _end(*_: object) -> NoReturn:
    sys.exit(1)


class Driver:
    """The run, as this process sees it.

    Args:
        ray: The module.
        asked: What was asked for.
        stdin: Descriptor for what the kernel writes.
        output: Descriptor for what the nodes write.

    Attributes:
        over: Descriptor that ends the run, once something is written there.
    """

    def __init__(self, ray: Any, asked: dict[str, Any], stdin: int, output: int) -> None:  # noqa: ANN401 -- ray has no type for it
        self._ray = ray
        self._asked = asked
        self._stdin = stdin
        self._output = output
        self._is_over, self.over = os.pipe()
        os.set_blocking(self.over, False)
        self._lock = threading.Lock()
        self._nodes: list[Any] = []
        self._readers: list[threading.Thread] = []
        self._running = 0
        need = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"], **asked["resources"]}
        self._need = {name: count for name, count in need.items() if count}

    def run(self) -> None:
        """Start the agents, and carry their streams to the end."""
        address = self._asked["address"]
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS") or address
        _say(f"{WAITS}an answer of the Ray cluster at {address}")
        check(address)
        self._ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        _say(WAITS)
        signal.signal(signal.SIGTERM, _end)  # Ray has its own
        try:
            if self._start():
                self._carry()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for node in self._nodes:
                node.end.remote()
            deadline = time.monotonic() + END_S
            for reader in self._readers:
                reader.join(max(0.0, deadline - time.monotonic()))
            self._ray.shutdown()  # with it end the actors and their placement group

    def _start(self) -> bool:
        """Start an actor on each node, and it the relay; return whether the kernel still wants."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        asked = self._asked
        if (group := self._reserve()) is None:
            return False
        count = self._running = group.bundle_count
        _say(WAITS)
        self._ray.cloudpickle.register_pickle_by_value(sys.modules[Node.__module__])
        actor = self._ray.remote(Node)
        for index in range(count):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            options = {name: asked[name] for name in ("num_cpus", "num_gpus", "resources")}
            # It reads, writes and ends at the same time.
            options |= {"scheduling_strategy": place, "max_concurrency": 4}
            self._nodes.append(actor.options(**options).remote())
        names = self._ray.get([node.name.remote() for node in self._nodes])
        order = sorted(range(count), key=names.__getitem__)  # Ray's own is another in each run
        self._nodes = [self._nodes[index] for index in order]
        argv = [*asked["agent"], NODE_VARIABLE]
        own = ["CUDA_VISIBLE_DEVICES"] if asked["num_gpus"] else []
        env, cwd = {**os.environ, COUNT_VARIABLE: str(count)}, str(Path.cwd())
        self._ray.get([
            node.start.remote(argv, cwd, {**env, NODE_VARIABLE: str(number)}, own)
            for number, node in enumerate(self._nodes)
        ])  # fmt: skip
        for node, name in zip(self._nodes, sorted(names), strict=True):
            reader = threading.Thread(target=self._read, args=(node, name), daemon=True)
            self._readers.append(reader)
            reader.start()
        return True

    def _reserve(self) -> Any:  # noqa: ANN401 -- ray's PlacementGroup
        """Wait for as many nodes as there are; return their group, None if the kernel is gone.

        Of a range, the fewest are waited for, and the more are taken that are free at the moment.
        """
        from ray.util.placement_group import placement_group, remove_placement_group

        most, least = self._asked["nnodes"], self._asked["min_nodes"]
        if least < most:
            most = max(least, min(most, len(fitting(self._ray.nodes(), self._need))))
        for count in range(most, least - 1, -1):
            bundles = [self._need or {"CPU": 0.001}] * count
            group = placement_group(bundles, strategy="STRICT_SPREAD")
            while not group.wait(POLL_S):
                if not _has_kernel():
                    return None
                if count > least:
                    break
                _say(f"{WAITS}{why(self._ray.nodes(), count, self._need)}")
            else:
                return group
            remove_placement_group(group)
        return None

    def _carry(self) -> None:
        """Give every node what the kernel writes, until that ends, or the nodes have."""
        while self._is_over not in readable([self._stdin, self._is_over], None):
            if not (data := os.read(self._stdin, PIECE_BYTES)):
                return
            piece = self._ray.put(data) if len(data) > INLINE_BYTES else data
            self._ray.get([node.write.remote(piece) for node in self._nodes])

    def _read(self, node: Any, name: str) -> None:  # noqa: ANN401 -- ray has no type for it
        """Write what a node says, to its end; the first that fails ends all, as the last does."""
        code = 1
        try:
            while isinstance(said := self._ray.get(node.read.remote()), bytes):
                with self._lock:
                    write_all(self._output, said)
            code = said
            if code:  # its agent has reported nothing
                _say(f"{LOST}{name}: its relay ended ({exit_words(code)})")
        except Exception as error:  # noqa: BLE001 -- the node is gone, or this process ends
            _say(f"{LOST}{name}: {loss(error)}")
        self._running -= 1
        if code or not self._running:
            os.write(self.over, b"e")


def check(address: str) -> None:
    """Check that something listens at a cluster's address, since Ray would try for minutes.

    Raises:
        OSError: Nothing does.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            raise OSError(f"there is no cluster at {address}: {error}") from None


def loss(error: Exception) -> str:
    """Return in a sentence why Ray has lost an actor."""
    lines = str(error).splitlines() or [type(error).__name__]
    reasons = [line for line in lines if line.startswith("The actor is dead because")]
    reason = (reasons or lines)[0].partition(". ")[0].rstrip(".")
    return _UNREACHABLE.sub(r"its actor cannot be reached: \1", reason)


def fitting(nodes: Sequence[Mapping[str, Any]], need: Mapping[str, float]) -> list[Any]:
    """Return the resources of each node that is up and has what is needed, though not free."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return [has for has in alive if all(has.get(name, 0) >= n for name, n in need.items())]


def why(nodes: Sequence[Mapping[str, Any]], count: int, need: Mapping[str, float]) -> str:
    """Return in a few words why a run waits.

    Args:
        nodes: What Ray says of its nodes.
        count: How many are needed.
        need: What each has to have.
    """
    fit = fitting(nodes, need)
    what = ", ".join(f"{n:g} {name}" for name, n in need.items()) or "nothing"
    head = f"{count} nodes with {what} each are" if count > 1 else f"a node with {what} is"
    if len(fit) < count:
        have = f"{len(fit)} of its {len(fitting(nodes, {}))} nodes have that"
        less = "unless others join, ask for less by -N, -n or --engine-args"
        return f"queued by Ray: {head} needed, and {have}; {less}"
    return f"queued by Ray: {head} needed, and others use them"


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


def _has_kernel() -> bool:
    """Return whether the other end of stdin is open; what lies in it is left there."""
    poll = select.poll()
    poll.register(0, 0)
    return not poll.poll(0)
