"""Classic mistakes of distributed programs, and what ddp_magic must say about each.

The cells run on three ranks. `tests.benchmarks.hangs` prints what is said about all of them, and
after how many seconds; `tests/integration/test_hangs.py` keeps some in the test suite.
"""

from __future__ import annotations

import queue
import re
import textwrap
import time
from dataclasses import dataclass, field

from tests.integration.kernel import Kernel, Result, plain
from tests.limits import HANG_S

RANKS = 3
GRACE_S = 2.0
POLL_S = 1.0


@dataclass(frozen=True)
class Mistake:
    """A program with a mistake, or one that only looks like it.

    Attributes:
        name: What is wrong with it.
        cell: The cell's lines after `%%ddp`; the first of them is line 2.
        says: A regular expression that what is said must match; empty if nothing must be said.
    """

    name: str
    cell: str
    says: str


@dataclass(frozen=True)
class Answer:
    """What was said about a cell.

    Attributes:
        said: All text of the table's lines of waits, of warnings and of the error.
        seconds: Until the expected words, or the end of the cell.
        status: "ok" or "error"; empty if the words came before the end.
        rest: What the cell showed after the words, up to its end.
    """

    said: str
    seconds: float
    status: str
    rest: Result = field(default_factory=Result)


def ask(kernel: Kernel, mistake: Mistake, options: str = "", limit_s: float = HANG_S) -> Answer:
    """Run a cell until the expected words are shown, or to its end, at most for `limit_s`."""
    began = time.monotonic()
    cell = textwrap.dedent(mistake.cell).strip("\n")
    message = kernel.start(f"%%ddp -n {RANKS} {options}\n{cell}\n")
    said = ""
    deadline = began + limit_s
    while time.monotonic() < deadline:
        try:
            event = kernel.client.get_iopub_msg(timeout=POLL_S)
        except queue.Empty:
            continue
        if event["parent_header"].get("msg_id") != message:
            continue
        content = event["content"]
        said += _text(event["msg_type"], content)
        if mistake.says and re.search(mistake.says, said):
            seconds = time.monotonic() - began
            return Answer(said, seconds, "", _end(kernel, message))
        if content.get("execution_state") == "idle":
            reply = kernel.client.get_shell_msg(timeout=HANG_S)
            return Answer(said, time.monotonic() - began, reply["content"]["status"])
    return Answer(said, time.monotonic() - began, "", _end(kernel, message))


def _end(kernel: Kernel, message: str) -> Result:
    """Wait for a cell that is about to end, and interrupt one that is not."""
    try:
        return kernel.finish(message, GRACE_S)
    except TimeoutError:
        kernel.interrupt()
        return kernel.finish(message)


def _text(kind: str, content: dict[str, object]) -> str:
    """Return what is said about waits in an output of the notebook."""
    match kind, content:
        case "stream", {"text": str(text)}:
            lines = text.splitlines()
        case "error", {"traceback": list(lines)}:
            lines = [line for block in lines for line in plain(str(block)).splitlines()]
        case _, {"data": {"text/plain": str(text)}}:
            lines = text.splitlines()
        case _:
            return ""
    return "".join(f"{line}\n" for line in lines if re.search(_SAYS, line))


_SAYS = (
    r" wait(s|ed)? (in|at) | differs( between ranks|:)|different groups|, but ranks? |"
    r" raised |was killed|exited with code|rank \d+ sent "
)

# What only `--check` sees, or sees at once.
SILENT_MISTAKES = [
    Mistake(
        "another shape of the same size",
        """
        dist.all_reduce(torch.ones(2, 3))
        dist.all_reduce(torch.ones(2, 3) if rank else torch.ones(3, 2))
        """,
        r"collective #2 differs between ranks: rank 0 called all_reduce of float32 \[3, 2\] "
        r"\(line 3\); ranks 1, 2 called all_reduce of float32 \[2, 3\] \(line 3\)",
    ),
    Mistake(
        "another dtype of the same size",
        "dist.all_reduce(torch.ones(4, dtype=torch.int32 if rank == 1 else torch.float32))",
        r"MismatchError: collective #1 differs.*; rank 1 called all_reduce of int32 \[4\] "
        r"\(line 2\)",
    ),
    Mistake(
        "another dtype of another size, which kills a rank",
        "dist.all_reduce(torch.ones(4, dtype=torch.float64 if rank == 1 else torch.float32))",
        r"MismatchError: collective #1 differs.*; rank 1 called all_reduce of float64 \[4\] "
        r"\(line 2\)",
    ),
    Mistake(
        "another reduction",
        "dist.all_reduce(torch.ones(4), dist.ReduceOp.MAX if rank == 1 else dist.ReduceOp.SUM)",
        r"collective #1 differs between ranks: ranks 0, 2 called all_reduce with SUM of float32 "
        r"\[4\] \(line 2\); rank 1 called all_reduce with MAX",
    ),
    Mistake(
        "a broadcast from another rank",
        "dist.broadcast(torch.ones(4), src=int(rank == 2))",
        r"ranks 0, 1 called broadcast from rank 0 of float32 \[4\] \(line 2\); "
        r"rank 2 called broadcast from rank 1",
    ),
    Mistake(
        "two collectives of equal tensors in another order",
        """
        a, b = torch.ones(2), torch.ones(2)
        if rank == 2:
            dist.broadcast(b, 0)
            dist.all_reduce(a)
        else:
            dist.all_reduce(a)
            dist.broadcast(b, 0)
        """,
        r"collective #1 differs between ranks: ranks 0, 1 called all_reduce of float32 \[2\] "
        r"\(line 7\); rank 2 called broadcast of float32 \[2\] \(line 4\)",
    ),
    Mistake(
        "one of 5000 collectives",
        """
        for step in range(5000):
            x = torch.ones(4, dtype=torch.int32 if (rank, step) == (2, 499) else torch.float32)
            dist.all_reduce(x)
        """,
        r"collective #500 differs between ranks: ranks 0, 1 called all_reduce of float32 \[4\] "
        r"\(line 4\); rank 2 called all_reduce of int32 \[4\] \(line 4\)",
    ),
    Mistake(
        "in a subgroup",
        """
        a, b = dist.new_group([0, 1], group_desc="a"), dist.new_group([1, 2], group_desc="b")
        for step in range(3):
            dist.all_reduce(torch.ones(2))
        if rank > 0:
            dist.all_reduce(torch.ones(2 + rank), group=b)
        """,
        r"collective #1 of group 'b' differs between ranks: rank 1 called all_reduce of float32 "
        r"\[3\] \(line 6\); rank 2 called all_reduce of float32 \[4\] \(line 6\)",
    ),
    Mistake(
        "all_gather of tensors that are not equal",
        """
        out = [torch.zeros(3) for _ in range(3)]
        dist.all_gather(out, torch.ones(3 + (rank == 1)))
        """,
        r"rank 1 called all_gather with 4 elements for rank 0 \(line 3\); "
        r"rank 0 called all_gather that expects 3 elements from rank 1 \(line 3\)",
    ),
    Mistake(
        "all_to_all_single with splits that do not fit",
        """
        splits = [1, 2, 3] if rank == 0 else [2, 2, 2]
        dist.all_to_all_single(torch.zeros(6), torch.ones(6), [2, 2, 2], splits)
        """,
        r"rank 0 called all_to_all_single with 3 elements for rank 2 \(line 3\); "
        r"rank 2 called all_to_all_single that expects 2 elements from rank 0 \(line 3\)",
    ),
    Mistake(
        "a broadcast that only its source calls",
        "if rank == 0: dist.broadcast(torch.ones(2), 0)",
        r"MismatchError: rank 0 called broadcast #1 \(line 2\), but ranks 1, 2 did not",
    ),
    Mistake(
        "a reduction of DDP meets another one",
        """
        model = DDP(torch.nn.Linear(4, 1))
        for step in range(5 if rank != 2 else 4):
            model(torch.randn(2, 4)).sum().backward()
        dist.all_reduce(score := torch.ones(1))
        """,
        r"ranks 0, 1 called all_reduce of float32 \[5\] \(line 4, in (Tensor\.)?backward\); "
        r"rank 2 called all_reduce of float32 \[1\] \(line 5\)",
    ),
]

MISTAKES = [
    Mistake(
        "a collective under `if rank == 0`",
        """
        import time
        if rank == 0:
            dist.all_reduce(torch.ones(3))
        else:
            time.sleep(1000)
        """,
        r"rank 0 waits in all_reduce #1 \(line 4\).*"
        r"ranks 1, 2 have not joined: each is at line 6, in time\.sleep",
    ),
    Mistake(
        "the same, and the others end",
        """
        if rank == 0:
            dist.all_reduce(torch.ones(3))
        """,
        r"rank 0 called all_reduce #1 \(line 3\), but ranks 1, 2 did not",
    ),
    Mistake(
        "the same, and then another collective",
        """
        if rank == 0:
            dist.all_reduce(torch.ones(3))
        dist.barrier()
        """,
        r"collective #1 differs between ranks: rank 0 called all_reduce of float32 \[3\] "
        r"\(line 3\); ranks 1, 2 called barrier \(line 4\)",
    ),
    Mistake(
        "fewer batches on one rank",
        """
        model = DDP(torch.nn.Linear(4, 1))
        for step in range(5 if rank != 2 else 4):
            model(torch.randn(2, 4)).sum().backward()
        """,
        r"ranks 0, 1 called all_reduce #\d+ \(line 4\), but rank 2 did not",
    ),
    Mistake(
        "fewer batches, and then a sum over ranks",
        """
        model = DDP(torch.nn.Linear(4, 1))
        for step in range(5 if rank != 2 else 4):
            model(torch.randn(2, 4)).sum().backward()
        dist.all_reduce(score := torch.ones(1))
        """,
        r"collective #\d+ differs between ranks: ranks 0, 1 called all_reduce of float32 \[5\].*; "
        r"rank 2 called all_reduce of float32 \[1\]",
    ),
    Mistake(
        "other shapes",
        "dist.all_reduce(torch.ones(3 + rank))",
        r"rank 0 called all_reduce of float32 \[3\].*rank 1 called all_reduce of float32 \[4\]",
    ),
    Mistake(
        "another dtype of another size",
        "dist.all_reduce(torch.ones(4, dtype=torch.float64 if rank == 1 else torch.float32))",
        r"ranks 0, 2 called all_reduce of float32 \[4\].*rank 1 called all_reduce of float64 \[4\]"
        r"|rank \d (raised|was killed)",
    ),
    Mistake(
        "another dtype of the same size",
        "dist.all_reduce(torch.ones(4, dtype=torch.int32 if rank == 1 else torch.float32))",
        r"warning: .*rank 1 called all_reduce of int32 \[4\].*What it returned is wrong",
    ),
    Mistake(
        "another order",
        """
        a, b = torch.ones(2), torch.ones(2)
        if rank == 0:
            dist.all_reduce(a)
            dist.broadcast(b, 0)
        else:
            dist.broadcast(b, 0)
            dist.all_reduce(a)
        """,
        r"collective #1 differs between ranks: rank 0 called all_reduce of float32 \[2\].*; "
        r"ranks 1, 2 called broadcast of float32 \[2\]",
    ),
    Mistake(
        "a barrier in one branch",
        """
        if rank == 0:
            dist.barrier()
        dist.all_reduce(torch.ones(2))
        dist.barrier()
        """,
        r"rank 0 called barrier.*ranks 1, 2 called all_reduce of float32 \[2\]",
    ),
    Mistake(
        "an unused parameter",
        """
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
            def forward(self, x):
                return self.used(x)
        model = DDP(Net())
        for step in range(2):
            model(torch.randn(2, 4)).sum().backward()
        """,
        r"rank \d raised RuntimeError at line 10: Expected to have finished reduction",
    ),
    Mistake(
        "a DataLoader worker that dies",
        """
        import os
        from torch.utils.data import DataLoader, Dataset
        class Data(Dataset):
            def __len__(self):
                return 8
            def __getitem__(self, i):
                if rank == 1:
                    os._exit(1)
                return torch.randn(4)
        for x in DataLoader(Data(), num_workers=1):
            dist.all_reduce(x)
        """,
        r"rank 1 raised RuntimeError at line 11: DataLoader worker .* exited unexpectedly",
    ),
    Mistake(
        "a rank that ends early",
        """
        import sys
        if rank == 1:
            sys.exit()
        dist.all_reduce(torch.ones(2))
        """,
        r"ranks 0, 2 called all_reduce #1 \(line 5\), but rank 1 did not",
    ),
    Mistake(
        "an error that is swallowed, and then a barrier",
        """
        try:
            if rank == 1:
                raise ValueError("a bad batch")
            dist.all_reduce(torch.ones(2))
        except ValueError:
            pass
        dist.barrier()
        """,
        r"ranks 0, 2 called all_reduce of float32 \[2\] \(line 5\); "
        r"rank 1 called barrier \(line 8\)",
    ),
    Mistake(
        "a straggler",
        """
        if rank == 1:
            while True:
                torch.randn(100, 100) @ torch.randn(100, 100)
        dist.all_reduce(torch.ones(2))
        """,
        r"ranks 0, 2 wait in all_reduce #1 \(line 5\).*"
        r"rank 1 has not joined: it computes at line [34]",
    ),
    Mistake(
        "a thread that holds the exit",
        """
        import threading, time
        if rank == 1:
            threading.Thread(target=lambda: time.sleep(1000)).start()
        """,
        r"rank 1 has finished, and waits at the exit for \d+ s for its thread Thread-1 "
        r"\(<lambda>\) \(line 4, in time\.sleep\)",
    ),
    Mistake(
        "a receive without its send",
        """
        import time
        if rank == 0:
            dist.recv(torch.ones(2), src=1)
        time.sleep(1000)
        """,
        r"rank 0 waits in recv from rank 1 \(line 4\).*rank 1 is at line 5, in time\.sleep",
    ),
    Mistake(
        "an irecv without its isend",
        """
        import time
        if rank == 0:
            request = dist.irecv(torch.ones(2), src=2)
            request.wait()
        time.sleep(1000)
        """,
        r"rank 0 waits in recv from rank 2 \(line 5(, in request\.wait)?\).*"
        r"rank 2 is at line 6, in time\.sleep",
    ),
    Mistake(
        "a ring in which all receive first",
        """
        x = torch.ones(2)
        dist.recv(x, src=(rank - 1) % world_size)
        dist.send(x, dst=(rank + 1) % world_size)
        """,
        r"ranks 0-2 wait for each other.*rank 0 waits in recv from rank 2 \(line 3\).*"
        r"One of them must call send first",
    ),
    Mistake(
        "a receive with another tag",
        """
        if rank == 0: dist.send(torch.ones(2), 1, tag=1)
        if rank == 1: dist.recv(torch.ones(2), 0, tag=2)
        dist.barrier()
        """,
        r"rank 0 waits in send to rank 1 \(line 2\) with tag 1, and rank 1 in recv from rank 0 "
        r"\(line 3\) with tag 2",
    ),
    Mistake(
        "a receive of a larger tensor",
        """
        if rank == 0: dist.send(torch.ones(4), 1)
        if rank == 1: dist.recv(torch.zeros(8), 0)
        """,
        r"warning: rank 0 sent 4 elements of float32 to rank 1, which received 8 elements of ",
    ),
    Mistake(
        "a receive of a smaller tensor",
        """
        if rank == 0: dist.send(torch.ones(8), 1)
        if rank == 1: dist.recv(torch.zeros(4), 0)
        """,
        r"rank 0 sent 8 elements of float32 to rank 1; what rank 1 at line 3 receives does not",
    ),
    Mistake(
        "a partner in a list of requests that has finished",
        """
        x, y = torch.ones(2), torch.ones(2)
        if rank == 0:
            requests = [dist.isend(x, 1), dist.irecv(y, 1)]
            requests[1].wait()
        """,
        r"rank 0 waited in recv from rank 1 \(line 5\), which has finished",
    ),
    Mistake(
        "a collective of a thread that another rank does not call",
        """
        import threading, time
        group = dist.new_group([0, 1, 2], group_desc="metrics")
        def report():
            if rank != 2: dist.all_reduce(torch.ones(2), group=group)
        threading.Thread(target=report, daemon=True).start()
        if rank != 1: dist.barrier()
        time.sleep(1000)
        """,
        r"rank 1 has not joined: it is at line 8, in time\.sleep, and waits in all_reduce #1 of "
        r"group 'metrics' \(line 5, in a thread\)",
    ),
    Mistake(
        "a rank that does not come, beside a thread that fills torch's record",
        """
        import threading, time
        group = dist.new_group([0, 1, 2], group_desc="metrics")
        def report():
            while True:
                dist.all_reduce(torch.ones(2), group=group)
                time.sleep(0.0005)
        threading.Thread(target=report, daemon=True).start()
        model = DDP(torch.nn.Linear(4, 1))
        for step in range(5):
            if rank == 1 and step == 3:
                time.sleep(1000)
            model(torch.randn(2, 4)).sum().backward()
        """,
        r"ranks 0, 2 wait in \w+ #\d+ \(line 13, in Tensor\.backward\).*"
        r"rank 1 has not joined: it is at line 12, in time\.sleep",
    ),
    Mistake(
        "groups that are created in another order",
        """
        members = [[0, 1], [0, 1, 2]]
        for ranks in members[::-1] if rank == 1 else members:
            dist.new_group(ranks)
        """,
        # Whether rank 0 waits in its first group, or has taken rank 1 for a member, is chance.
        r"ranks create different groups: rank 0 calls new_group\(\[0, 1\]\).* \(line 4\)|"
        r"ranks 0, 2 call new_group\(\[0, 1, 2\]\), its group #2 .*rank 1 calls .*, its group #1",
    ),
    Mistake(
        "a broadcast of which two ranks are the source",
        """
        dist.broadcast(torch.ones(4), src=int(rank == 1))
        dist.barrier()
        """,
        r"its root differs: rank 0 names rank 0; rank 1 names rank 1",
    ),
    Mistake(
        "a coroutine that is awaited for ever",
        """
        import asyncio
        if rank == 1:
            await asyncio.Event().wait()
        dist.barrier()
        """,
        r"ranks 0, 2 wait in barrier #1 \(line 5\).*rank 1 has not joined: it is at line 4",
    ),
    Mistake(
        "subgroups that wait for each other",
        """
        import time
        a, b = dist.new_group([0, 1]), dist.new_group([1, 2])
        if rank == 0:
            dist.all_reduce(torch.ones(1), group=a)
        if rank == 1:
            dist.all_reduce(torch.ones(1), group=b)
        time.sleep(1000)
        """,
        r"rank 0 waits in all_reduce #1 of group '\d' \(line 5\).*"
        r"rank 1 has not joined: it waits in all_reduce #1 of group '\d' \(line 7\)",
    ),
    Mistake(
        "the interpreter lock held in C code",
        """
        import re
        if rank == 1:
            re.match(r"(a+)+$", "a" * 60 + "b")
        dist.all_reduce(torch.ones(2))
        """,
        r"rank 1 has been silent for \d+ s and holds the interpreter lock in C code",
    ),
    Mistake(
        "a rank that is stopped",
        """
        import os, signal
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.ones(2))
        """,
        r"ranks 0, 2 wait in all_reduce #1 \(line 5\).*; rank 1 is stopped: `kill -CONT \d+`",
    ),
]
