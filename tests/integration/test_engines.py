"""What every engine keeps: local ranks, and those of a real Slurm and a real Ray of two nodes."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.kernel import DEAF, Kernel, pids_in, wait_gone
from tests.limits import HANG_S, within

FOUR_RANKS = {
    "local": "%%ddp -n 4 -g none",
    "slurm": "%%ddp -n 2 -N 2 --engine slurm -g none",
    "ray": "%%ddp -n 2 -N 2 --engine ray -g none",
}
LINE_S = 0.5  # until a line is in the notebook
KERNEL_S = 5.0  # until nothing is left after the kernel's SIGKILL


CLUSTERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("slurm", "ray")]


@pytest.fixture(scope="module", params=["local", *CLUSTERS])
def engine(request: pytest.FixtureRequest) -> str:
    """The engine's name."""
    return str(request.param)


@pytest.fixture(scope="module")
def place(engine: str, request: pytest.FixtureRequest) -> tuple[dict[str, str], tuple[str, ...]]:
    """Variables and command prefix of a kernel that reaches the engine's cluster.

    Without that cluster the test is skipped.
    """
    if engine == "local":
        return {}, ()
    cluster = request.getfixturevalue(engine)
    return cluster.env, cluster.prefix


@pytest.fixture(scope="module")
def shared_kernel_env(place: tuple[dict[str, str], tuple[str, ...]]) -> dict[str, str]:
    """One kernel for all tests of an engine."""
    return place[0]


@pytest.fixture(scope="module")
def shared_kernel_prefix(place: tuple[dict[str, str], tuple[str, ...]]) -> tuple[str, ...]:
    """As above."""
    return place[1]


def _one_on_ray(engine: str, *, is_this: bool) -> None:
    """Try only one of several like cases on Ray, of which a run takes ten seconds and more."""
    if engine == "ray" and not is_this:
        pytest.skip("tried on Slurm, and another one on Ray")


def _as_on_slurm(engine: str) -> None:
    """Skip on Ray what the same code does on both clusters."""
    if engine == "ray" and not os.environ.get("DDP_MAGIC_ALL_ON_RAY"):
        pytest.skip("the same code as on Slurm: DDP_MAGIC_ALL_ON_RAY=1 runs it")


def _cell(engine: str, body: str, options: str = "") -> str:
    return f"{FOUR_RANKS[engine]} {options}\n{body}"


def test_ranks_find_each_other(kernel: Kernel, engine: str) -> None:
    """One world over all nodes, numbered node by node, and a process group."""
    result = kernel.run(
        _cell(
            engine,
            "import socket\nx = torch.tensor([10.0 ** rank]); dist.all_reduce(x)\n"
            "print(rank, local_rank, world_size, x.item(), socket.gethostname())",
        )
    )
    assert result.status == "ok", result
    rows = [line.split("] ")[1].split() for line in result.lines if line.startswith("[rank")]
    assert sorted(row[:4] for row in rows) == [
        [str(r), str(r if engine == "local" else r % 2), "4", "1111.0"] for r in range(4)
    ]
    if engine != "local":
        assert [row[4] for row in sorted(rows)] == ["n1", "n1", "n2", "n2"]


def test_a_group_of_the_cells_own(kernel: Kernel, engine: str) -> None:
    """A script for torchrun calls init_process_group; new groups and a second one work too."""
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(
            engine,
            "dist.init_process_group('gloo')\nhalf = dist.new_group([1, 2])\n"
            "x = torch.ones(1)\nif rank in (1, 2): dist.all_reduce(x, group=half)\n"
            "dist.destroy_process_group()\ndist.init_process_group()\ny = torch.ones(1)\n"
            "dist.all_reduce(y)\nprint(x.item(), y.item())",
        )
    )
    assert result.status == "ok", result
    said = sorted(line for line in result.lines if line.startswith("[rank"))
    assert [line.split("] ")[1] for line in said] == ["1.0 4.0", "2.0 4.0", "2.0 4.0", "1.0 4.0"]


def test_a_line_is_seen_at_once(kernel: Kernel, engine: str) -> None:
    """While the cell goes on: half a second after it was written, at most."""
    message = kernel.start(
        _cell(engine, "import time\nif rank == 3: print('t=%f;' % time.time())\ntime.sleep(1000)")
    )
    seen = kernel.finish(message, until=";")
    late = time.time() - float(seen.text.partition("t=")[2].partition(";")[0])
    kernel.interrupt()
    kernel.finish(message)
    assert within(late, LINE_S)


def test_large_displays_and_figures_arrive_whole(kernel: Kernel, engine: str) -> None:
    """300 KB of every rank at the same time, and a figure of each, between lines of text."""
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(
            engine,
            "import hashlib, random\nrandom.seed(rank)\n"
            "text = ''.join(random.choices('abcdefghij', k=300_000))\nprint('before')\n"
            "display({'application/json': {'text': text}, 'text/plain': "
            "hashlib.sha1(text.encode()).hexdigest()}, raw=True)\n"
            "print('after')\nplt.plot([rank, 1]); plt.show()",
        )
    )
    assert result.status == "ok", result
    payloads = [c["data"] for c in result.displays]
    texts = [p for p in payloads if "application/json" in p]
    assert len(texts) == 4
    for data in texts:
        sha = hashlib.sha1(data["application/json"]["text"].encode()).hexdigest()
        assert sha in data["text/plain"]
    assert sum(str(p).count("image/png") for p in payloads) >= 1
    assert result.text.count("] before") == result.text.count("] after") == 4


def test_much_text_is_neither_lost_nor_torn(kernel: Kernel, engine: str) -> None:
    """Every rank writes 20,000 lines, some of them long; all of it is in its log."""
    result = kernel.run(
        _cell(
            engine,
            "for i in range(20_000): print(i, 'x' * (i % 97))\n"
            "os.system('echo of a child')\nprint('y' * 50_000)",
            "-o run",
        )
    )
    assert result.status == "ok", result
    expected = "".join(f"{i} {'x' * (i % 97)}\n" for i in range(20_000))
    expected += "of a child\n" + "y" * 50_000 + "\n"
    wanted = hashlib.sha1(expected.encode()).hexdigest()
    code = "[__import__('hashlib').sha1(r.stdout.encode()).hexdigest() for r in run.ranks]"
    assert kernel.value(code) == [wanted] * 4


def test_stop(kernel: Kernel, engine: str) -> None:
    """Every rank gets a KeyboardInterrupt and time to clean up; nothing is left."""
    message = kernel.start(
        _cell(
            engine,
            "import time\nprint('pid=%d;' % os.getpid())\ntry:\n    time.sleep(1000)\n"
            "finally:\n    print('cleaned up')",
        )
    )
    seen = kernel.finish(message, until="pid=")
    time.sleep(1.0)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.error["ename"] == "RunInterrupted", result
    text = seen.text + result.text
    assert text.count("cleaned up") == 4
    assert "stopped at line" in result.error["evalue"]
    assert "did not answer" not in result.error["evalue"]
    assert wait_gone(pids_in(text), 3.0) == []


def test_stop_of_ranks_that_do_not_answer(kernel: Kernel, engine: str) -> None:
    """They are killed, and their line is told."""
    message = kernel.start(_cell(engine, f"print('pid=%d;' % os.getpid())\n{DEAF}"))
    seen = kernel.finish(message, until="pid=")
    time.sleep(1.0)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.error["ename"] == "RunInterrupted", result
    assert result.error["evalue"] == "ranks 0-3 did not answer at line 3 and were killed", result
    assert wait_gone(pids_in(seen.text + result.text), 3.0) == []


def test_a_rank_that_raises(kernel: Kernel, engine: str) -> None:
    """Its traceback, with the notebook's lines; ranks of other nodes end with it, though idle."""
    began = time.monotonic()
    result = kernel.run(
        _cell(
            engine,
            "import time\nif rank == 3:\n    time.sleep(2); raise ValueError('boom')\n"
            "time.sleep(1000)",
        )
    )
    assert result.error["ename"] == "WorkerError"
    on = " on n2" if engine != "local" else ""
    assert result.error["evalue"] == f"rank 3{on} raised ValueError at line 4: boom"
    assert "ranks 0-2: were stopped at line 5" in result.traceback
    assert within(time.monotonic() - began, 20.0)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_is_killed(kernel: Kernel, engine: str, rank: int) -> None:
    """Named with its signal, and with its node if there are several; on any node."""
    _one_on_ray(engine, is_this=rank == 3)
    result = kernel.run(
        _cell(engine, f"import time\nif rank == {rank}: os.kill(os.getpid(), 9)\ntime.sleep(1000)")
    )
    assert result.error["ename"] == "WorkerLostError"
    on = f" on n{1 + rank // 2}" if engine != "local" else ""
    assert f"rank {rank}{on} was killed by SIGKILL" in result.error["evalue"]


@pytest.mark.parametrize("rank", [0, 3])
def test_an_agent_that_is_killed(kernel: Kernel, engine: str, rank: int) -> None:
    """Its ranks end with it, and those of the other node; its node is named."""
    message = kernel.start(
        _cell(
            engine,
            f"import time\nprint('pid=%d;' % os.getpid())\ntime.sleep(1)\n"
            f"if rank == {rank}: os.kill(os.getppid(), 9)\ntime.sleep(1000)",
        )
    )
    result = kernel.finish(message)
    assert result.error["ename"] == "LaunchError", result.text + result.traceback
    assert "the agent died while the ranks were running" in result.error["evalue"]
    if engine != "local":
        assert f"the agent on n{1 + rank // 2} ended without a report" in result.text
    assert wait_gone(pids_in(result.text), 3.0) == []


def _on_one_or_two_nodes(engine: str, body: str, options: str) -> str:
    if engine == "local":
        pytest.skip("one machine")
    return _cell(engine, body, options).replace("-N 2", "-N 1:2")


def test_as_many_nodes_as_there_are(kernel: Kernel, engine: str) -> None:
    """Of a range: both, with the values of all their ranks."""
    body = "x = torch.ones(1); dist.all_reduce(x)\nv = (rank, world_size, x.item())"
    result = kernel.run(_on_one_or_two_nodes(engine, body, "--pull v@all"))
    assert result.status == "ok", result
    assert f"4 ranks = 2 nodes x 2 ({engine}, 1 to 2 nodes)" in result.text
    assert kernel.value("v") == [(rank, 4, 4.0) for rank in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 3])
def test_a_run_goes_on_without_a_node(
    kernel: Kernel, engine: str, lost: int, tmp_path: Path
) -> None:
    """Of which the agent is killed: from the checkpoint, as one restart, on those that are there.

    Slurm is told not to use the node again; of a Ray, it is there.
    """
    _one_on_ray(engine, is_this=lost == 3)
    body = (
        f"from pathlib import Path\nfile = Path({str(tmp_path)!r}) / 'step'\n"
        "begin = step = int(file.read_text()) if file.exists() else 0\n"
        "attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        "while step < 10:\n"
        "    x = torch.ones(1); dist.all_reduce(x)\n"
        "    step += 1\n"
        "    if rank == 0: file.write_text(str(step))\n"
        "    dist.barrier()\n"
        f"    if step == 5 and rank == {lost} and not attempt: os.kill(os.getppid(), 9)\n"
        "    if step == 5 and not attempt: __import__('time').sleep(1000)\n"
        "v = (begin, attempt, world_size, x.item())"
    )
    result = kernel.run(_on_one_or_two_nodes(engine, body, "--max-restarts 1 --pull v@all"))
    assert result.status == "ok", result
    how = f"n{1 + lost // 2} was lost: its agent ended without a report"
    assert f"{how} · restart 1 of 1" in result.text
    assert result.summary.endswith(f"1 restart: {how}")
    count = 2 if engine == "slurm" else 4
    assert kernel.value("v") == [(5, 1, count, count)] * count


@pytest.mark.parametrize("first", [0, 3])
def test_restarts(kernel: Kernel, engine: str, first: int, tmp_path: Path) -> None:
    """All ranks of all nodes run again, from the last checkpoint; two of two restarts."""
    _one_on_ray(engine, is_this=first == 3)
    result = kernel.run(
        _cell(
            engine,
            f"from pathlib import Path\nfile = Path({str(tmp_path)!r}) / 'step'\n"
            "step = int(file.read_text()) if file.exists() else 0\n"
            "for step in range(step, 5):\n"
            "    x = torch.ones(1); dist.all_reduce(x)\n"
            "    dist.barrier()\n"
            "    if rank == 0: file.write_text(str(step + 1))\n"
            "    dist.barrier()\n"
            "    attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
            f"    if step == 1 + 2 * attempt and rank == abs({first} - attempt): os._exit(7)\n"
            "print('end', step, x.item(), attempt)",
            "--max-restarts 2",
        )
    )
    assert result.status == "ok", result
    assert result.text.count("] end 4 4.0 2") == 4
    assert "2 restarts" in result.summary


def test_no_restart_is_left(kernel: Kernel, engine: str) -> None:
    """Each node fails once, and the run has one restart: both count."""
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(
            engine,
            "import time\nattempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
            "print('attempt', attempt)\ndist.barrier()\n"
            "if rank == 3 * attempt: os._exit(7)\ntime.sleep(1000)",
            "--max-restarts 1",
        )
    )
    assert result.error["ename"] == "WorkerLostError"
    on = " on n2" if engine != "local" else ""
    assert f"rank 3{on} exited with code 7" in result.error["evalue"]
    assert result.text.count("] attempt 1") == 4


VALUES = """\
import torch, numpy as np
big = torch.arange({n}, dtype=torch.int32)
table = np.arange(1000).reshape(10, 100)
class Box:
    def __init__(self, x): self.x = x
box = Box([big, "text"])
def scaled(x): return x.sum().item() * table.shape[1]
"""


@pytest.mark.parametrize(
    "count", [500_000, pytest.param(25_000_000, marks=pytest.mark.slow)], ids=["2 MB", "100 MB"]
)
def test_values_of_the_notebook_and_back(kernel: Kernel, engine: str, count: int) -> None:
    """Tensors, arrays, objects, functions; memory that two of them share stays shared."""
    _one_on_ray(engine, is_this=count == 500_000)
    assert kernel.run(VALUES.format(n=count)).status == "ok"
    result = kernel.run(
        _cell(
            engine,
            "assert box.x[0].data_ptr() == big.data_ptr()\nbig[0] = rank\n"
            "found = [big[0].item(), big[-1].item(), scaled(table), box.x[1]]\nback = big + 1",
            "--pull found@all,back@3",
        ),
        HANG_S * 4,
    )
    assert result.status == "ok", result
    found, back = kernel.value("(found, [back[0].item(), back[-1].item(), len(back)])")
    assert found == [[r, count - 1, 49950000, "text"] for r in range(4)]
    assert back == [4, count, count]


def test_what_cannot_be_pulled_is_saved(kernel: Kernel, engine: str) -> None:
    """In the run's directory, on the kernel's machine, where the error says."""
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(engine, "x = {'w': torch.ones(3), 'g': (i for i in [1])}", "--pull x@3")
    )
    assert result.error["ename"] == "PullError", result
    path = re.search(r"(/\S+\.rank3\.\w+)", result.error["evalue"])
    assert path is not None, result
    assert Path(path[1]).exists()


def test_two_runs_at_once(
    kernel: Kernel, engine: str, new_kernel: Callable[..., Kernel], place: Any
) -> None:
    """Of two notebooks: neither waits for the other, or hears of it."""
    other = new_kernel(*place)
    body = (
        "import time\nfor i in range(20):\n    x = torch.ones(1); dist.all_reduce(x)\n"
        "    time.sleep(0.05)\nprint('end', x.item(), {!r})"
    )
    options = "-n 1" if engine != "local" else ""
    messages = [
        (each, each.start(_cell(engine, body.format(number), options)))
        for number, each in enumerate([kernel, other], 1)
    ]
    for number, (each, message) in enumerate(messages, 1):
        result = each.finish(message)
        assert result.status == "ok", result
        size = 2.0 if engine != "local" else 4.0
        assert result.text.count(f"end {size} {number}") == int(size)


def test_a_kernel_that_is_killed(
    engine: str, new_kernel: Callable[..., Kernel], place: Any
) -> None:
    """Its ranks end with it, and so does the step."""
    _as_on_slurm(engine)
    kernel = new_kernel(*place)
    message = kernel.start(
        _cell(engine, "import time\nprint('pid=%d;' % os.getpid())\ntime.sleep(1000)")
    )
    pids: list[int] = []
    seen = ""
    while len(pids) < 4:
        seen += kernel.finish(message, until="pid=").text
        pids = pids_in(seen)
    kernel.kill()
    assert wait_gone(pids, KERNEL_S) == []


def test_sessions(kernel: Kernel, engine: str) -> None:
    """Ranks are kept; their variables survive a cell that fails on one node."""
    first = kernel.run(_cell(engine, "v = rank * 10", "--session lab"))
    assert first.status == "ok", first
    failed = kernel.run("%%ddp --session lab\nif rank == 3: 1 / 0\ndist.barrier()")
    assert failed.error["ename"] == "WorkerError"
    third = kernel.run(
        "%%ddp --session lab --pull v@all\nx = torch.ones(1); dist.all_reduce(x); v += x.item()"
    )
    assert third.status == "ok", third
    assert kernel.value("v") == [4.0, 14.0, 24.0, 34.0]
    assert "session lab (4 ranks) ended" in kernel.run("%ddp_stop lab").text


def test_background_runs(kernel: Kernel, engine: str) -> None:
    """A host serves the run: its output, its values."""
    started = kernel.run(_cell(engine, "print('here'); v = rank", "--bg --pull v@all"))
    assert started.status == "ok", started
    result = kernel.run("%ddp_wait")
    assert result.status == "ok", result
    assert kernel.value("v") == [0, 1, 2, 3]


def test_questions(kernel: Kernel, engine: str) -> None:
    """A rank of any node asks in the cell."""
    _as_on_slurm(engine)
    prompts, result = kernel.talk(
        _cell(engine, "if rank == 3: print('hello', input('who? '))"), "Ada"
    )
    assert "who? " in prompts[0]
    assert "hello Ada" in result.text


def test_a_profile(kernel: Kernel, engine: str) -> None:
    """Each rank's time, also of the other nodes, which are named."""
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(
            engine, "import time\nfor _ in range(20): time.sleep(0.05)\ndist.barrier()", "--profile"
        )
    )
    assert result.status == "ok", result
    shown = "\n".join(result.visible)
    node = "" if engine == "local" else "n2 +"
    assert re.search(rf"^ *3 +{node}[\d.]+ m?s ", shown, re.MULTILINE), shown


def test_hangs_are_explained(kernel: Kernel, engine: str) -> None:
    """Who waits for whom, and on which node."""
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(
            engine,
            "import time\nx = torch.ones(1)\nif rank == 3: time.sleep(1000)\ndist.all_reduce(x)",
            "--time-limit 9",
        )
    )
    assert result.error["ename"] == "TimeLimitError", result
    assert re.search(r"ranks 0(-2|, 1, 2) .*all_reduce", result.traceback), result.traceback
    assert ("rank 3" if engine == "local" else "rank 3 on n2") in result.traceback


@pytest.mark.parametrize("attempt", [0, 1])
def test_check(kernel: Kernel, engine: str, attempt: int) -> None:
    """The calls of all nodes are compared, in every attempt; the node of a rank is named."""
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(
            engine,
            "x = torch.ones(3)\nfor _ in range(200): dist.all_reduce(x)\ndist.barrier()\n"
            "attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
            f"if attempt < {attempt}: os._exit(7)\n"
            "dist.broadcast(x, src=3 if rank == 3 else 0)",
            f"--check --max-restarts {attempt}",
        )
    )
    assert result.error["ename"] == "MismatchError", result
    on = "" if engine == "local" else " on n2"
    assert f"rank 3{on} called broadcast" in result.error["evalue"], result.error["evalue"]
    assert "line 7" in result.traceback


def test_what_was_checked(kernel: Kernel, engine: str) -> None:
    _as_on_slurm(engine)
    result = kernel.run(
        _cell(engine, "x = torch.ones(3)\nfor _ in range(50): dist.all_reduce(x)", "--check")
    )
    assert result.status == "ok", result
    assert "checked 50 collectives" in result.summary
