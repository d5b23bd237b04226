"""The half of the near relay that gives the kernel what its nodes say.

Each connection of a node's becomes one to the kernel's own socket. A rank's text arrives through a
pipe, values through shared memory, and what a node saves is a file here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ddp_magic.engines.to_nodes import Far, ToNodes
from ddp_magic.wire.channel import connect
from ddp_magic.wire.codec import type_name
from ddp_magic.wire.memory import anonymous_file
from ddp_magic.wire.relay_frames import Frame, Kind, write_all


class FromNodes:
    """Makes connections, text, values and files of the kernel's own of what the nodes say.

    Args:
        socket: The kernel's.
        folders: Directories of the cells that were sent, by name; kept up to date.
        to_nodes: Carries what the kernel answers.
    """

    def __init__(self, socket: str, folders: Mapping[str, Path], to_nodes: ToNodes) -> None:
        self._socket = socket
        self._folders = folders
        self._to_nodes = to_nodes
        self._fars: dict[tuple[int, int], Far] = {}
        self._agents: set[tuple[int, int]] = set()  # connections of those that have not ended

    def take(self, node: int, frame: Frame) -> None:
        """Take what a node says of one of its connections, or a file of it."""
        match frame.kind:
            case Kind.MESSAGE:
                self._deliver(node, frame)
            case Kind.SEGMENT:
                self._keep_values(node, frame)
            case Kind.TEXT | Kind.TEXT_ENDED:
                self._write_text(node, frame)
            case Kind.CLOSED:
                self._hang_up(self._fars.get((node, frame.connection)))
            case Kind.FILE:
                self._save(frame.payload)
            case _:  # that it is alive; or not from there
                pass

    def is_agent(self, node: int, number: int) -> bool:
        """Return whether a connection is that of an agent which has not reported its end."""
        return (node, number) in self._agents

    def close(self) -> None:
        """End all connections to the kernel."""
        for far in list(self._fars.values()):
            self._close(far)

    def _far(self, node: int, number: int) -> Far | None:
        """Return a connection, made now if it is new; None if the kernel does not listen."""
        if (far := self._fars.get((node, number))) is not None:
            return far
        try:
            channel = connect(self._socket)
        except OSError:
            self._to_nodes.put(Frame(node, Kind.CLOSED, number))
            return None
        far = self._fars[node, number] = Far(node, number, channel)
        self._to_nodes.add(far)
        return far

    def _deliver(self, node: int, frame: Frame) -> None:
        far = self._far(node, frame.connection)
        if far is None:
            return
        match type_name(frame.payload):
            case "AgentHello":
                self._agents.add((node, frame.connection))
                far.channel.send_payload(frame.payload)
            case "AgentDone":
                self._agents.discard((node, frame.connection))
                far.channel.send_payload(frame.payload)
            case "WorkerHello":
                read_end, far.pipe = os.pipe()
                far.channel.send_payload(frame.payload, read_end)
                os.close(read_end)
            case "Results":
                far.channel.send_payload(
                    self._with_paths(frame.payload), None if far.values < 0 else far.values
                )
                if far.values >= 0:
                    os.close(far.values)
                    far.values = -1
            case _:
                far.channel.send_payload(frame.payload)

    def _with_paths(self, payload: bytes) -> bytes:
        """Name the files that a node has saved by their places here."""
        for folder, path in self._folders.items():
            there = f"<directory>/{folder}".rstrip("/").encode()
            if folder:
                payload = payload.replace(there, json.dumps(str(path)).strip('"').encode())
        return payload

    def _keep_values(self, node: int, frame: Frame) -> None:
        far = self._far(node, frame.connection)
        if far is None:
            return
        if far.values < 0:
            far.values = anonymous_file()
        write_all(far.values, frame.payload)

    def _write_text(self, node: int, frame: Frame) -> None:
        far = self._fars.get((node, frame.connection))
        if far is None or far.pipe < 0:
            return
        try:
            write_all(far.pipe, frame.payload)
        except OSError:  # the kernel reads it no more
            frame = Frame(node, Kind.TEXT_ENDED)
        if frame.kind is Kind.TEXT_ENDED:
            os.close(far.pipe)
            far.pipe = -1

    def _hang_up(self, far: Far | None) -> None:
        """End a connection toward the kernel; the text of its rank may still come."""
        if far is not None and not far.channel.closed:
            with contextlib.suppress(OSError):
                far.channel.shutdown()

    def _close(self, far: Far) -> None:
        self._hang_up(far)
        self._to_nodes.forget(far)
        far.channel.close()
        for fd in (far.pipe, far.values):
            if fd >= 0:
                os.close(fd)
        far.pipe = far.values = -1

    def _save(self, payload: bytes) -> None:
        """Write a file of the run to the place where somebody looks for it."""
        head, _, content = payload.partition(b"\0")
        names = json.loads(head)
        folder = self._folders.get(names["folder"])
        if folder is None or Path(names["name"]).name != names["name"]:
            return
        path, at = folder / names["name"], names.get("at", 0)
        with contextlib.suppress(OSError):  # a full disk costs the file, not the run
            if at < 0:
                path.unlink()
                return
            with path.open("r+b" if at else "wb") as file:  # what it continues may be gone
                file.seek(at)
                file.write(content)
