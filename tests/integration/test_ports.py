"""What listens while a run goes on, and what somebody else on the machine can do with it."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.kernel import Kernel

# torch's c10d rendezvous writes what it agrees on, a pickle, under this key of its store, and reads
# it again with each heartbeat, every 5 s.
ATTACK = """
import datetime, os, signal, socket, sys
from torch.distributed import TCPStore

value, keys, ports = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
for port in ports:
    if os.fork() == 0:
        signal.alarm(3)  # a port of gloo's never answers, and torch would wait
        socket.create_connection(("127.0.0.1", int(port))).close()
        print("connected", flush=True)
        patience = datetime.timedelta(seconds=2)
        store = TCPStore("127.0.0.1", int(port), timeout=patience, wait_for_workers=False)
        for key in keys:
            store.set(key, value)
        os._exit(0)
for port in ports:
    os.wait()
"""
HEARTBEAT_S = 5.0
CELL = """
import time
print(f"up {os.environ['TORCHELASTIC_RUN_ID']} of {os.environ['RANK']}", flush=True)
deadline = time.monotonic() + 150
while not os.path.exists("go") and time.monotonic() < deadline:
    time.sleep(0.05)
t = torch.ones(1)
dist.all_reduce(t)
print("sum", t.item())
"""


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def listening(processes: list[psutil.Process]) -> list[tuple[str, int]]:
    """Return (address in hexadecimal, port) of the TCP sockets that these processes listen on."""
    inodes = set()
    found = []
    for process in processes:
        try:
            for fd in Path(f"/proc/{process.pid}/fd").iterdir():
                name = str(fd.readlink())
                if name.startswith("socket:["):
                    inodes.add(name[8:-1])
        except OSError:  # it has just ended, or has closed the descriptor
            continue
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:  # 0A: it listens
                address, port = local.split(":")
                found.append((address, int(port, 16)))
    return found


def is_loopback(address: str) -> bool:
    # The words of an address are in the machine's own order of bytes.
    words = [bytes.fromhex(address[i : i + 8]) for i in range(0, len(address), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    packed = b"".join(words)
    mapped = b"\0" * 10 + b"\xff\xff"  # an IPv4 address in IPv6
    if packed.startswith(mapped):
        packed = packed[len(mapped) :]
    return packed[0] == 127 if len(packed) == 4 else packed == b"\0" * 15 + b"\1"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("before", "options", "first"),
    [
        ("", "-s lab", ""),
        ("", "--no-init", "dist.init_process_group('gloo', init_method='env://')"),
        # As Kubeflow sets torchrun's options, where it has started the notebook.
        pytest.param(
            *("import os; os.environ.update(PET_STANDALONE='1', PET_NNODES='2')", "--cold", ""),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("%config DDPMagics.preload = False", "--no-init"),
            "dist.init_process_group('gloo')",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["forked", "forked, the cell's own group", "torchrun", "torchrun, the cell's own group"],
)
def test_nobody_else_is_listened_to(
    kernel: Kernel, shared_kernel_directory: Path, before: str, options: str, first: str
) -> None:
    """All ports are those of the loopback interface, and what is written there is not run."""
    go = shared_kernel_directory / "go"
    go.unlink(missing_ok=True)
    if before:
        kernel.run(before)
    message = kernel.start(f"%%ddp -n 2 {options}\n{first}\n{CELL}")
    text = ""
    while text.count("up ") < 2:
        text += kernel.finish(message, until="up ").text
    run_id = text.split("up ")[1].split()[0]
    processes = psutil.Process(kernel.pid).children(recursive=True)
    found = listening([*processes, psutil.Process(kernel.pid)])
    assert found != []  # gloo's
    assert [item for item in found if not is_loopback(item[0])] == []

    ran = shared_kernel_directory / "ran"
    value = base64.b64encode(pickle.dumps(Payload(ran))).decode()
    keys = f"torch.rendezvous.{run_id},/torch.rendezvous.{run_id}"
    ports = [str(port) for _, port in found]
    attack = subprocess.run(
        [sys.executable, "-c", ATTACK, value, keys, *ports],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert attack.stdout.count("connected") == len(ports), attack
    if "cold" in options or "preload" in before:  # torchrun's own
        time.sleep(HEARTBEAT_S + 1.0)
    assert not ran.exists()
    go.touch()
    result = kernel.finish(message)
    assert result.status == "ok", result
    assert result.text.count("sum 2.0") == 2, result
    kernel.run("%ddp_stop --all")
