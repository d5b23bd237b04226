"""`--max-restarts`: torch's agent restarts the ranks after a failure."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel, frames_of_ours, is_alive, pids_in, wait_gone
from tests.limits import within

ATTEMPT = 'import os, sys, time\nattempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])\n'


def test_a_rank_that_raises_once(kernel: Kernel) -> None:
    """All ranks begin anew, with what was captured as it was; the first attempt's text stays."""
    kernel.run("numbers = [1]\narray = __import__('numpy').zeros(1000)")
    result = kernel.run(
        "%%ddp -n 3 --max-restarts 3 --pull attempt,port@all,total@2 -o run -- --lr 0.1\n"
        + ATTEMPT
        + 'port = os.environ["MASTER_PORT"]\n'
        "numbers.append(2); array += 1; total = array.sum().item()\n"
        'sys.argv.append("x")\n'
        'print(attempt, os.environ["TORCHELASTIC_MAX_RESTARTS"], numbers, total, len(sys.argv))\n'
        "if attempt == 0: print('port', port)\n"
        "dist.barrier()\n"
        "if attempt == 0 and rank == 1: raise RuntimeError('boom')\n"
        "dist.barrier()\n"
    )
    assert result.status == "ok", result
    for attempt in (0, 1):
        for rank in range(3):
            assert result.lines.count(f"[rank {rank}] {attempt} 3 [1, 2] 1000.0 4") == 1
    line = "rank 1 raised RuntimeError at line 10: boom"
    assert f"{line} · restart 1 of 3" in result.lines
    assert f"· ok · 1 restart: {line}" in result.summary
    assert kernel.value("(attempt, total)") == (1, 1000.0)
    assert kernel.value("len(set(port))") == 1
    (before,) = set(re.findall(r"port (\d+)", result.text))
    assert kernel.value("port[0]") != before
    assert kernel.value("[(r.number, r.rank, r.reason) for r in run.restarts]") == [(1, 1, line)]
    log = kernel.value("run.ranks[1].stdout")
    assert log.index("0 3 [1, 2]") < log.index("--- restart 1 of 3 ---") < log.index("1 3 [1, 2]")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), 9)", "rank 1 was killed by SIGKILL (exit -9)"),
        ("os._exit(3)", "rank 1 exited with code 3"),
        ("sys.exit('no data')", "rank 1 ended by sys.exit with code 1: no data"),
        ("import ctypes; ctypes.string_at(0)", "rank 1 was killed by SIGSEGV (exit -11)"),
        ("os._exit(0)", "rank 1 left early (os._exit(0) in the cell), and rank 0 lost its"),
        ("raise MemoryError", "rank 1 raised MemoryError at line 4"),
    ],
)
def test_every_failure_restarts(kernel: Kernel, end: str, words: str) -> None:
    """A deaf peer does not hold it up; the new ranks find each other."""
    result = kernel.run(
        f"%%ddp -n 2 --max-restarts 1\n{ATTEMPT}if attempt == 0 and rank == 1: {end}\n"
        "t = torch.ones(1); dist.all_reduce(t); print('sum', t.item())"
    )
    assert result.status == "ok", result
    assert result.text.count("sum 2.0") == 2
    (line,) = (line for line in result.lines if line.endswith("restart 1 of 1"))
    assert line.startswith(words)


def test_peers_of_a_failed_rank_are_stopped_in_time(kernel: Kernel) -> None:
    """As without restarts; then the next attempt begins."""
    result = kernel.run(
        f"%%ddp -n 2 --max-restarts 1\n{ATTEMPT}"
        "print('t=%f' % time.time())\n"
        "if attempt == 0 and rank == 1: raise ValueError\n"
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if attempt == 0: time.sleep(1000)"
    )
    times = sorted(float(number) for number in re.findall(r"t=([\d.]+)", result.text))
    assert len(times) == 4, result
    assert within(times[2] - times[1], 1.5), result


def test_restarts_are_used_up(kernel: Kernel) -> None:
    """The error is the last attempt's; each earlier one has a line."""
    result = kernel.run(
        f"%%ddp -n 2 --max-restarts 2\n{ATTEMPT}"
        "if rank == 1: raise ValueError(f'in attempt {attempt}')\ndist.barrier()"
    )
    assert result.status == "error"
    assert result.error["evalue"] == "rank 1 raised ValueError at line 4: in attempt 2"
    for number in (1, 2):
        line = f"rank 1 raised ValueError at line 4: in attempt {number - 1}"
        assert f"attempt {number} of 3: {line}" in result.traceback
        assert f"{line} · restart {number} of 2" in result.lines
    assert "· failed · 2 restarts" in result.summary
    assert "2 restarts:" not in result.summary
    assert not frames_of_ours(result.traceback)


def test_what_an_attempt_leaves_behind_is_ended_before_the_next(kernel: Kernel) -> None:
    result = kernel.run(
        f"%%ddp -n 2 --max-restarts 1\n{ATTEMPT}import subprocess\n"
        "if attempt == 0:\n"
        "    child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "    print(f'pid={child.pid}', flush=True)\n"
        "    dist.barrier()\n"
        "    if rank == 0: raise ValueError\n"
        "    time.sleep(1000)\n"
        "print('next %f' % time.time())"
    )
    assert result.status == "ok", result
    pids = pids_in(result.text)
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    assert "ended 2 processes that the ranks had left behind" in result.lines


@pytest.mark.parametrize("presses", [1, 2])
def test_stop_in_the_second_attempt(kernel: Kernel, presses: int) -> None:
    """No other attempt follows; nothing is left."""
    message = kernel.start(
        f"%%ddp -n 2 --max-restarts 3\n{ATTEMPT}if attempt == 0: raise ValueError\n"
        "print('running', flush=True)\ntime.sleep(1000)"
    )
    kernel.finish(message, until="running")
    for _ in range(presses):
        kernel.interrupt()
    result = kernel.finish(message)
    assert result.error["ename"] == "RunInterrupted"
    assert re.search(r"attempt 1 of 4: rank [01] raised ValueError at line 4", result.traceback)
    assert "· stopped · 1 restart" in result.summary
    assert kernel.processes() == []


def test_stop_at_any_moment_of_many_restarts(kernel: Kernel) -> None:
    for tenths in range(6):
        message = kernel.start("%%ddp -n 2 --max-restarts 1000\nraise ValueError(rank)")
        kernel.finish(message, until="restart 1 of")
        time.sleep(tenths / 10)
        kernel.interrupt()
        result = kernel.finish(message)
        assert result.error["ename"] == "RunInterrupted", result
        assert kernel.run("%%ddp -n 2\nprint('next')").text.count("next") == 2


def test_the_time_limit_is_that_of_all_attempts(kernel: Kernel) -> None:
    result = kernel.run("%%ddp -n 2 --max-restarts 1000 --time-limit 8\nraise ValueError(rank)")
    assert result.error["ename"] == "TimeLimitError", result
    assert "attempt 1 of 1001: rank" in result.traceback


@pytest.mark.slow
def test_torchrun_restarts_too(kernel: Kernel) -> None:
    """With `--cold`; what was captured is there again, and Stop ends the second attempt."""
    kernel.run("number = 5")
    result = kernel.run(
        f"%%ddp -n 2 --cold --max-restarts 1 --pull port,attempt\n{ATTEMPT}number += 1\n"
        "port = os.environ['MASTER_PORT']; print(attempt, number, port)\n"
        "if attempt == 0 and rank == 1: os.kill(os.getpid(), 9)\ndist.barrier()"
    )
    assert result.status == "ok", result
    assert kernel.value("attempt") == 1
    assert [line.split()[2:4] for line in result.lines if "[rank 1]" in line] == [
        ["0", "6"],
        ["1", "6"],
    ]
    assert len(set(re.findall(r" (\d+)$", result.text, re.MULTILINE))) >= 2
    assert "rank 1 was killed by SIGKILL (exit -9)" in result.text

    message = kernel.start(
        f"%%ddp -n 2 --cold --max-restarts 3\n{ATTEMPT}if attempt == 0: raise ValueError\n"
        "print('running', flush=True)\ntime.sleep(1000)"
    )
    kernel.finish(message, until="running")
    kernel.interrupt()
    assert kernel.finish(message).error["ename"] == "RunInterrupted"


def test_waits_are_explained_in_the_second_attempt(kernel: Kernel) -> None:
    """The numbers of collectives begin anew."""
    result = kernel.run(
        f"%%ddp -n 2 --max-restarts 1 --time-limit 6\n{ATTEMPT}"
        "if attempt == 0:\n    for _ in range(5): dist.barrier()\n    raise ValueError\n"
        "if rank == 0: dist.barrier()\n"
        "time.sleep(1000)"
    )
    assert result.error["ename"] == "TimeLimitError", result
    assert re.search(r"rank 0 waits in barrier #1 \(line 7\)", result.traceback), result.traceback


def test_who_was_waited_for_before_a_timeout_is_told(kernel: Kernel) -> None:
    """The rank that raised is the victim."""
    result = kernel.run(
        f"%%ddp -n 2 --max-restarts 1 --timeout 5\n{ATTEMPT}"
        "if attempt == 0 and rank == 0: time.sleep(1000)\n"
        "dist.barrier()"
    )
    assert result.status == "ok", result
    lines = result.lines
    (at,) = (i for i, line in enumerate(lines) if line.endswith("restart 1 of 1"))
    words = r"rank 1 waits in barrier.* \(line 5\).* rank 0 .*at line 4, in time\.sleep"
    assert re.search(words, lines[at - 1]), lines


def test_the_agent_is_killed_in_the_second_attempt(kernel: Kernel) -> None:
    """Nobody is left to restart the ranks."""
    result = kernel.run(
        f"%%ddp -n 2 --max-restarts 3\n{ATTEMPT}if attempt == 0: raise ValueError\n"
        "if rank == 0: os.kill(os.getppid(), 9)\ntime.sleep(1000)"
    )
    assert "the agent died while the ranks were running" in result.error["evalue"]


def test_a_backend_that_does_not_exist_is_told_once(kernel: Kernel) -> None:
    """The cell has not begun: it would fail again."""
    result = kernel.run("%%ddp -n 2 --max-restarts 3 --backend nothing\nprint('never')")
    assert result.error["ename"] == "WorkerError", result
    assert " · restart 1 of" not in result.text
    assert " · failed · rank " in result.summary


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("dist.all_reduce(torch.ones(1 + rank))", "collective #1 differs between ranks"),
        ("if rank == 0: sys.exit(0)\ndist.barrier()", "rank 1 called barrier #1 (line 5), but"),
    ],
)
def test_ranks_that_differ_are_not_restarted(kernel: Kernel, cell: str, words: str) -> None:
    """With `--check`, the first difference ends the run."""
    result = kernel.run(f"%%ddp -n 2 --max-restarts 2 --check\n{ATTEMPT}{cell}")
    assert result.error["ename"] == "MismatchError", result
    assert words in result.error["evalue"]
    assert " · restart 1 of" not in result.text
    assert kernel.run("%%ddp -n 2\nprint('next')").text.count("next") == 2


def test_a_session_is_not_restarted(kernel: Kernel) -> None:
    """Its variables would be gone: one line says so, also in a later cell."""
    refused = "%%ddp --max-restarts: restarted ranks would not have the variables of a session"
    for _ in range(2):
        result = kernel.run("%%ddp -n 2 -s lab --max-restarts 1\nprint(1)")
        assert result.status == "error"
        assert refused in result.text + result.traceback
        kernel.run("%%ddp -n 2 -s lab\nprint(1)")
    kernel.run("%ddp_stop --all")


def test_from_python(kernel: Kernel) -> None:
    result = kernel.run(
        "import ddp_magic, os\n"
        "def attempt(fails):\n"
        "    number = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        "    if number < fails: raise KeyError('x')\n"
        "    return number\n"
        "run = ddp_magic.launch(attempt, 2, nproc_per_node=2, max_restarts=2)\n"
        "print(run.results, len(run.restarts), type(run.restarts[0].error).__name__)\n"
        "try: ddp_magic.launch(attempt, 9, nproc_per_node=2, max_restarts=1)\n"
        "except KeyError as error: print('caught', error)"
    )
    assert result.status == "ok", result
    assert "[2, 2] 2 WorkerError" in result.text
    assert "caught" in result.text


def test_a_kernel_killed_in_the_second_attempt_leaves_nothing(
    new_kernel: Callable[..., Kernel],
) -> None:
    kernel = new_kernel()
    message = kernel.start(
        f"%%ddp -n 2 --max-restarts 3\n{ATTEMPT}if attempt == 0: raise ValueError\n"
        "print('running', flush=True)\ntime.sleep(1000)"
    )
    kernel.finish(message, until="running")
    pids = [process.pid for process in kernel.processes()]
    assert len(pids) >= 3
    os.kill(kernel.pid, signal.SIGKILL)
    assert wait_gone(pids, 3.0) == []


TRAIN = """
import os, signal
class Faulty(SamDataset):
    reads = 0
    def __getitem__(self, index):
        Faulty.reads += 1
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if FAULT and first and rank == 1 and Faulty.reads > 24:  # in the second epoch
            {fault}
        return super().__getitem__(index)
sam = tiny_sam()
train_set, val_set = Faulty(*cells(n=12)), SamDataset(*cells(n=4, seed=1))
history = train(
    PromptedSam(sam, rounds=1), train_set, val_set, epochs=3, batch_size=2, out_dir={folder!r},
    overwrite=True,
)
weights = [parameter.detach() for parameter in sam.parameters()]
"""
COMPARE = """
import torch
timing = {"seconds", "images_per_s", "data_wait"}
def scores(rows):
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]
same = all(map(torch.equal, whole[1], weights))
print("equal", scores(whole[0]) == scores(history), same, len(history))
"""


@pytest.mark.slow
def test_training_goes_on_with_the_same_result(kernel: Kernel, tmp_path: Path) -> None:
    """After an error and after a SIGKILL, also in a folder that an earlier run has used."""
    head = "%%ddp -n 2 --max-restarts 2 --pull history,weights"
    kernel.run("FAULT = False")
    result = kernel.run(head + TRAIN.format(fault="pass", folder=str(tmp_path / "whole")))
    assert result.status == "ok", result
    kernel.run("FAULT, whole = True, (history, weights)")
    for fault in ("raise OSError('disk')", "os.kill(os.getpid(), signal.SIGKILL)"):
        result = kernel.run(head + TRAIN.format(fault=fault, folder=str(tmp_path / "cut")))
        assert result.status == "ok", result
        assert "· 1 restart: rank 1" in result.summary
        assert f"restarted: train goes on from {tmp_path / 'cut' / 'last'}" in result.text
        assert result.text.count("1/3") == 1
        assert "equal True True 3" in kernel.run(COMPARE).text
