"""What a terminal can ask of this kernel while a cell blocks its notebook: status, stacks, stop.

A thread answers on a Unix socket beside the run directories, which only this user can enter. One
connection carries one question, a JSON list of words (`["stacks", "12-3"]`), and one answer.
`ddp_magic.kernel.cli` asks.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ddp_magic.system.processes import is_stopped
from ddp_magic.wire.channel import peer_pid

QUESTION_S = 5.0  # for a question to arrive, and for an answer to be taken
ANSWER_S = 30.0  # for a kernel to answer
MAX_QUESTION_BYTES = 10_000
_KERNEL, _HOST, _SUFFIX = "kernel-", "host-", ".control"


class ControlServer:
    """Answers questions in a thread of its own.

    Args:
        answer: Returns the answer to a question's words; what it raises as ValueError is the answer
            to a wrong question. Called in the thread.
        question_s: How long a question may take to arrive, in seconds.
        is_host: Whether this process is the host of a background run.
    """

    def __init__(
        self,
        answer: Callable[[list[str]], str],
        question_s: float = QUESTION_S,
        *,
        is_host: bool = False,
    ) -> None:
        self._answer = answer
        self._prefix = _HOST if is_host else _KERNEL
        self._question_s = question_s
        self._socket: socket.socket | None = None
        self._path: Path | None = None
        self._lock = threading.Lock()

    def start(self, root: Path) -> None:
        """Listen in the directory of all runs, unless it does already.

        A kernel that cannot listen, on a full disk for example, runs its cells without.
        """
        with self._lock:
            if self._path is not None and self._path.exists():
                return
            self._close()
            path = root / f"{self._prefix}{os.getpid()}{_SUFFIX}"
            listener = socket.socket(socket.AF_UNIX)
            try:
                path.unlink(missing_ok=True)  # of a process that had this pid
                listener.bind(str(path))
                listener.listen()
            except OSError:
                listener.close()
                return
            self._socket, self._path = listener, path
            name = "ddp_magic_control"
            threading.Thread(target=self._serve, args=(listener,), name=name, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._socket is not None and self._path is not None:
            self._path.unlink(missing_ok=True)
            try:
                self._socket.shutdown(socket.SHUT_RDWR)  # ends the thread's wait
            except OSError:
                pass
            self._socket.close()
        self._socket = self._path = None

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # it was closed
                return
            with connection:
                connection.settimeout(self._question_s)
                try:
                    self._reply(connection)
                except (OSError, ValueError):  # it hung up, or asked in no way of ours
                    continue

    def _reply(self, connection: socket.socket) -> None:
        words = json.loads(_read_line(connection))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return
        try:
            answer = {"text": self._answer(words), "ok": True}
        except ValueError as error:
            answer = {"text": str(error), "ok": False}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_QUESTION_BYTES:
        piece = connection.recv(MAX_QUESTION_BYTES)
        if not piece:
            break
        data += piece
    return data


def ask(path: Path, words: list[str], limit_s: float = ANSWER_S) -> tuple[bool, str]:
    """Ask a kernel; return whether it has done what was asked, and its answer.

    Args:
        path: Its socket.
        words: The question.
        limit_s: How long to wait for the answer, in seconds.

    Raises:
        ConnectionError: There is no such kernel any more.
        TimeoutError: It does not answer: `it is stopped: ...`, or `timed out`.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(limit_s)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise ConnectionError(str(error)) from error
        pid = peer_pid(connection)
        if pid is not None and is_stopped(pid):
            raise TimeoutError(f"it is stopped: `kill -CONT {pid}` continues it")
        connection.sendall(json.dumps(words).encode() + b"\n")
        with connection.makefile("rb") as answers:
            line = answers.readline()
    try:
        answer = json.loads(line)
        return bool(answer["ok"]), str(answer["text"])
    except (ValueError, KeyError, TypeError) as error:  # it died meanwhile
        raise ConnectionError("no answer") from error


def host_socket(root: Path, pid: int) -> Path:
    """Return the socket of a host."""
    return root / f"{_HOST}{pid}{_SUFFIX}"


def hosts(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield the socket of each host that keeps its runs there."""
    for root in roots:
        yield from sorted(root.glob(f"{_HOST}*{_SUFFIX}"))


def answering(roots: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the name and the socket of each kernel and host that keeps its runs there."""
    for root in roots:
        for prefix in (_KERNEL, _HOST):
            for path in sorted(root.glob(f"{prefix}*{_SUFFIX}")):
                pid = path.name[len(prefix) : -len(_SUFFIX)]
                if pid.isdigit():
                    yield f"{prefix[:-1]} {pid}", path
