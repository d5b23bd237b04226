"""Frames that make no sense, sent to a real run from outside and from a rank."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.integration.kernel import Kernel
from tests.unit.kernel.worker_group.test_connections import NONSENSE

WAITING = """
import time
print("up", os.environ["TORCHELASTIC_RUN_ID"], flush=True)
deadline = time.monotonic() + 60
while not os.path.exists("go") and time.monotonic() < deadline:
    time.sleep(0.05)
t = torch.ones(1)
dist.all_reduce(t)
print("sum", t.item())
"""


def test_strangers_at_a_runs_socket(kernel: Kernel, shared_kernel_directory: Path) -> None:
    """Each is sent away; the run goes on to its end, and says so once each kind of line."""
    message = kernel.start(f"%%ddp -n 2\n{WAITING}")
    text = ""
    while text.count("up ") < 2:
        text += kernel.finish(message, until="up ").text
    name = text.split("up ")[1].split()[0]
    sockets = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
    path = next(path for path in sockets if path.endswith(f"{name}/socket"))
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(path)
    silent.sendall(b"\0")
    for frame in NONSENSE.values():
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(60)
            raw.connect(path)
            raw.sendall(frame)
            try:
                assert raw.recv(1) == b""
            except ConnectionResetError:  # with some of it unread
                pass
    (shared_kernel_directory / "go").touch()
    result = kernel.finish(message)
    silent.close()
    assert result.status == "ok", result
    assert result.text.count("sum 2.0") == 2, result
    assert "a connection was closed because it sent an invalid message" in result.text
    assert kernel.processes() == []


def test_nonsense_of_a_rank(kernel: Kernel) -> None:
    """Through its own connection: left out and said, and the cell ends well."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "import gc\n"
        "from ddp_magic.wire import worker_events as events\n"
        "from ddp_magic.worker.worker import Worker\n"
        "(worker,) = [x for x in gc.get_objects() if isinstance(x, Worker)]\n"
        "send = worker._channel.send\n"
        "send(events.DisplayData(rank=99, mark=1, data={'text/html': 'x'}, metadata={}))\n"
        "send(events.Heartbeat(rank='0', time=0.0, phase='running', line=None, rss_mib=1.0))\n"
        "send(events.WorkerHello(rank=rank, pid=os.getpid(), marker='M;'))\n"
        "send(events.Error(rank=1 - rank, time=0.0, ename='E', evalue='', traceback=()))\n"
        "dist.barrier()\n"
        "print('done')"
    )
    assert result.status == "ok", result
    assert result.text.count("] done") == 2, result
    assert "an invalid message of rank 0 was ignored: DisplayData names rank 99" in result.text


def test_an_output_that_cannot_be_sent_is_the_cells_error(kernel: Kernel) -> None:
    """Nested too deep, or no dictionary: the cell can catch it, and goes on."""
    result = kernel.run(
        "%%ddp -n 1\n"
        "deep = []\n"
        "for _ in range(500):\n"
        "    deep = [deep]\n"
        "for data, more in (({'application/json': deep}, {}), ({'text/html': 'x'}, [1])):\n"
        "    try:\n"
        "        display(data, raw=True, metadata=more)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
        "print('done')"
    )
    assert result.status == "ok", result
    assert result.lines == ["[rank 0] ProtocolError"] * 2 + ["[rank 0] done"], result
