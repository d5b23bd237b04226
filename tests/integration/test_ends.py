"""How runs end: well, by an error, by a death, by Stop, with their kernel."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.kernel import DEAF, Kernel, frames_of_ours, is_alive, pids_in, wait_gone
from tests.limits import HANG_S, within


def test_the_first_failing_rank_is_shown(kernel: Kernel) -> None:
    """One exception, with the rank's own frames in the notebook's lines; the peers end with it."""
    result = kernel.run(
        "%%ddp -n 3\nimport time\n\ndef inner(x):\n    return 1 / x\n\n"
        "if rank == 1:\n    inner(0)\ntime.sleep(1000)"
    )
    number = kernel.value("len(In) - 1") - 1
    assert result.status == "error"
    assert result.error["ename"] == "WorkerError"
    assert result.error["evalue"] == "rank 1 raised ZeroDivisionError at line 5: division by zero"
    traceback = result.traceback
    assert "rank 1 of 3 raised:" in traceback
    assert f"Cell In[{number}], line 8" in traceback
    assert f"Cell In[{number}], line 5" in traceback
    assert "return 1 / x" in traceback
    assert re.search(r"ranks? 0(, 2)?: (was|were) stopped at line 9", traceback)
    assert not frames_of_ours(traceback)


def test_peers_of_a_failed_rank_are_stopped_in_time(kernel: Kernel) -> None:
    """Deaf peers too are gone 1.5 s after a rank raised."""
    result = kernel.run(
        "%%ddp -n 2\nimport time\nif rank == 1:\n    time.sleep(0.5); print('t=%f' % time.time())\n"
        f"    raise ValueError('boom')\n{DEAF}"
    )
    ended = time.time()
    raised = float(result.text.partition("t=")[2].split()[0])
    assert within(ended - raised, 1.5), result
    assert "ValueError" in result.traceback


def test_a_victim_is_not_the_culprit(kernel: Kernel) -> None:
    """A rank that lost its peer in a collective is not blamed, though it complains first."""
    result = kernel.run(
        "%%ddp -n 2\nimport os\nt = torch.ones(1)\ndist.all_reduce(t)\n"
        "if rank == 1: os._exit(3)\ndist.all_reduce(t)"
    )
    assert result.error["ename"] == "WorkerLostError"
    assert result.error["evalue"].startswith("rank 1 exited with code 3")


@pytest.mark.parametrize(
    ("code", "ename", "words"),
    [
        ("os._exit(3)", "WorkerLostError", "rank 1 exited with code 3"),
        ("sys.exit('no data')", "WorkerLostError", "rank 1 ended by sys.exit with code 1: no data"),
        ("os.kill(os.getpid(), 9)", "WorkerLostError", "rank 1 was killed by SIGKILL (exit -9)"),
        ("input('name? ')", "WorkerError", "input('name? ') needs an answer"),
    ],
)
def test_every_death_is_named(kernel: Kernel, code: str, ename: str, words: str) -> None:
    """The rank, and its signal, code or exception, within seconds."""
    result = kernel.run(
        f"%%ddp -n 2\nimport os, sys, time\nif rank == 1:\n    {code}\ntime.sleep(1000)"
    )
    assert result.error["ename"] == ename
    assert words in result.error["evalue"]


def test_ending_well(kernel: Kernel) -> None:
    """A rank may end early, in any way; the others go on to their end."""
    result = kernel.run(
        "%%ddp -n 4\nimport os, sys, time\n"
        "if rank == 1:\n    sys.exit(0)\nif rank == 2:\n    os._exit(0)\n"
        "if rank == 3:\n    quit()\ntime.sleep(1)\nprint('end')"
    )
    assert result.status == "ok", result
    assert "[rank 0] end" in result.lines
    assert result.text.count("] end") == 1


def test_threads_and_exit_handlers_get_their_time(kernel: Kernel) -> None:
    """A rank ends as an interpreter does: threads are waited for, exit handlers run."""
    result = kernel.run(
        "%%ddp -n 1\nimport atexit, threading, time\n"
        "atexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.5), print('thread'))).start()"
    )
    assert result.lines == ["[rank 0] thread", "[rank 0] handler"]


def test_ddp_after_destroy_does_not_hang(kernel: Kernel) -> None:
    """PyTorch's own tutorial order: the DDP object dies after destroy_process_group."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "def once():\n"
        "    dist.init_process_group('gloo')\n"
        "    model = DDP(nn.Linear(8, 8))\n"
        "    t = torch.ones(4); dist.all_reduce(t)\n"
        "    model(torch.ones(2, 8)).sum().backward()\n"
        "    dist.destroy_process_group()\n"
        "dist.destroy_process_group()\n"
        "for _ in range(30): once()\n"
        "print('through')",
    )
    assert sorted(result.lines) == ["[rank 0] through", "[rank 1] through"]


def test_a_queues_thread_gets_to_its_end(kernel: Kernel) -> None:
    """What a closed queue holds is given back by its own thread, which a fast exit would cut off.

    `DataLoader` closes its workers' queues so, and the tracker of semaphores warned of a leak.
    """
    result = kernel.run(
        "%%ddp -n 1\nimport multiprocessing, time\n"
        "queue = multiprocessing.get_context('spawn').Queue()\n"
        "queue._writer.close = lambda nap=time.sleep: (nap(0.2), print('closed'))\n"
        "queue.put('put'); print(queue.get())\n"
        "queue.cancel_join_thread(); queue.close(); del queue"
    )
    assert result.lines == ["[rank 0] put", "[rank 0] closed"]


def test_a_queues_thread_that_is_stuck_does_not_hold_the_rank(kernel: Kernel) -> None:
    """Nobody reads what it puts, and `cancel_join_thread` says not to wait for that."""
    result = kernel.run(
        "%%ddp -n 1\nimport multiprocessing\nqueue = multiprocessing.Queue()\n"
        "queue.put(bytes(2**22)); queue.cancel_join_thread()"
    )
    assert result.status == "ok"


def test_left_over_processes_are_ended(kernel: Kernel) -> None:
    """What a rank has started, detached too, does not outlive the run."""
    result = kernel.run(
        "%%ddp -n 2\nimport subprocess\n"
        "p = subprocess.Popen(['sleep', '300'], start_new_session=True)\nprint(f'pid={p.pid}')"
    )
    pids = pids_in(result.text)
    assert len(pids) == 2
    assert not [pid for pid in pids if is_alive(pid)]
    assert "ended 2 processes that the ranks had left behind" in result.text


def test_time_limit(kernel: Kernel) -> None:
    """The whole run ends, with each rank's line."""
    kernel.run("%%ddp -n 2\n1")  # the forkserver's own start is not what is limited
    result = kernel.run(f"%%ddp -n 2 --time-limit 3\nprint('up')\n{DEAF}")
    assert result.error["ename"] == "TimeLimitError"
    assert "did not answer at line 3" in result.error["evalue"]


# --- after the cell's last line -------------------------------------------------------------------

AFTERWARDS = {
    "exit handler": "import atexit, time; atexit.register(time.sleep, 1000)",
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
    "deaf child": (
        "import multiprocessing, signal, time\n"
        "context = multiprocessing.get_context('fork')\n"
        "deaf = context.Event()\n"
        "def child():\n"
        "    for sig in (signal.SIGTERM, signal.SIGINT): signal.signal(sig, signal.SIG_IGN)\n"
        "    deaf.set(); time.sleep(1000)\n"
        "context.Process(target=child, daemon=rank == 0).start()\n"
        "deaf.wait()"
    ),
    "deaf exit handler": f"import atexit; atexit.register(exec, {DEAF!r})",
}


@pytest.mark.parametrize("what", AFTERWARDS)
def test_stop_after_the_last_line(kernel: Kernel, what: str) -> None:
    """One press ends what the rank still waits for; nobody sees a frame of ours."""
    message = kernel.start(f"%%ddp -n 2\n{AFTERWARDS[what]}\nprint('done', flush=True)")
    kernel.finish(message, until="[rank 1] done")
    time.sleep(1)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.status == "error"
    deaf = "did not answer after the end of their cell and were killed"
    how = deaf if what == "deaf exit handler" else "finished their cell and were interrupted"
    assert result.error["evalue"].startswith(f"ranks 0-1 {how}"), result.error
    assert not frames_of_ours(result.text + result.traceback)
    assert kernel.run("%%ddp -n 2\nprint('again')").text.count("again") == 2


def test_a_time_limit_after_the_last_line(kernel: Kernel) -> None:
    """It holds for the whole of a rank's life."""
    result = kernel.run(f"%%ddp -n 2 --time-limit 2\n{AFTERWARDS['exit handler']}")
    assert result.error["ename"] == "TimeLimitError"
    assert not frames_of_ours(result.text + result.traceback)


SLOW_ERROR = (
    "class Slow(Exception):\n    def __str__(self):\n"
    "        import time; time.sleep(1000); return 'text'\n"
)


def test_stop_does_not_lose_an_error(kernel: Kernel) -> None:
    """Nor its traceback, nor the KeyboardInterrupt."""
    message = kernel.start(
        f"%%ddp -n 2\nprint('up', flush=True)\n{SLOW_ERROR}"
        "if rank == 0: raise Slow()\ndist.barrier()"
    )
    kernel.finish(message, until="up")
    time.sleep(1)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.error["ename"] == "RunInterrupted"
    assert "rank 0 raised Slow at line 6" in result.error["evalue"]
    assert "rank 0 of 2 had raised:" in result.traceback
    assert not frames_of_ours(result.text + result.traceback)


def test_what_the_user_sees_of_an_interrupt(kernel: Kernel) -> None:
    """The cell's own handling of it, without a line of ours in the traceback."""
    message = kernel.start(
        "%%ddp -n 1\nimport time, traceback\nprint('up', flush=True)\n"
        "try:\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    traceback.print_exc()\n"
        "    raise ValueError('while saving')"
    )
    kernel.finish(message, until="up")
    time.sleep(0.5)
    kernel.interrupt()
    result = kernel.finish(message)
    assert "KeyboardInterrupt" in result.text
    assert "while saving" in result.error["evalue"]
    assert not frames_of_ours(result.text + result.traceback)


def test_an_interrupt_that_a_destructor_swallows_comes_again(kernel: Kernel) -> None:
    """Python ignores what is raised in one; libraries have many."""
    for _ in range(3):
        message = kernel.start(
            "%%ddp -n 1\nimport time\nclass D:\n    def __del__(self):\n        time.sleep(1)\n"
            "print('up', flush=True)\nwhile True:\n    D()\n    time.sleep(1)"
        )
        kernel.finish(message, until="up")
        time.sleep(0.5)
        kernel.interrupt()
        result = kernel.finish(message)
        assert result.error["evalue"] == "rank 0 stopped at line 9", result.error
        assert "ignored" not in result.text


# --- who is to blame ------------------------------------------------------------------------------


def test_who_waits_for_a_rank_that_has_finished_is_no_victim_of_ours(kernel: Kernel) -> None:
    """Ranks are ended while they format their complaint; none is blamed for that."""
    for _ in range(2):
        result = kernel.run(
            "%%ddp -n 4\nt = torch.ones(1)\ndist.all_reduce(t)\nif rank: dist.all_reduce(t)"
        )
        said = r"rank 0 finished, and rank [123] lost its connection at line 4"
        assert re.fullmatch(said, result.error["evalue"]), result.error
        assert "gloo" in result.traceback
        assert "rank 0: finished" in result.traceback


def test_an_agent_that_is_ended_from_outside_is_named(kernel: Kernel) -> None:
    """And not a rank that ended with it."""
    result = kernel.run(
        "%%ddp -n 3\nimport os, signal, time\n"
        "if rank == 1: time.sleep(0.5); os.kill(os.getppid(), signal.SIGTERM)\n"
        "if rank == 2: dist.recv(torch.ones(1), src=1)\ntime.sleep(1000)"
    )
    words = "the agent was ended by SIGTERM from outside"
    assert result.error["evalue"].startswith(words), result.error


def test_an_agent_that_is_stopped_does_not_keep_the_cell(kernel: Kernel) -> None:
    """It reports no rank's end; it is killed a few seconds after that."""
    message = kernel.start(
        "%%ddp -n 2\nimport os, signal, time\n"
        "if rank == 1: time.sleep(0.5); os.kill(os.getppid(), signal.SIGSTOP); print('up')\n"
        "time.sleep(1000)"
    )
    kernel.finish(message, until="up")
    kernel.interrupt()
    began = time.monotonic()
    result = kernel.finish(message)
    assert within(time.monotonic() - began, 10)
    assert "ranks 0-1 stopped at line 4" in result.error["evalue"]


def test_ranks_that_cannot_start(kernel: Kernel) -> None:
    """Too few descriptors: no success, and the reason in the message."""
    assert kernel.run("%%ddp -n 2\n1").status == "ok"
    limit = (
        "import resource\n"
        "server = get_ipython().magics_manager.registry['DDPMagics'].controller.forkserver\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.prlimit(server.describe().pid, resource.RLIMIT_NOFILE, ({}, hard))"
    )
    assert kernel.run(limit.format(8)).status == "ok"
    result = kernel.run("%%ddp -n 2\nprint(1)")
    assert result.error["ename"] == "LaunchError", result
    assert "Too many open files" in result.error["evalue"]
    assert not frames_of_ours(result.text + result.traceback)
    kernel.run(limit.format(1024))
    assert kernel.run("%%ddp -n 2\nprint('again')").text.count("again") == 2


def test_a_crash_shows_where_it_was(kernel: Kernel) -> None:
    """The cell's line, from C code that took the interpreter with it; no frame of ours."""
    result = kernel.run("%%ddp -n 1\nimport ctypes\ndef f():\n    ctypes.string_at(0)\nf()")
    assert "was killed by SIGSEGV" in result.error["evalue"]
    assert "line 4, in f" in result.traceback
    assert not frames_of_ours(result.text + result.traceback)


# --- Stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("import time; time.time = time.monotonic = None; 1 / 0", "ZeroDivisionError at line 2"),
        (
            "class Odd(Exception):\n    def __getattribute__(self, name): raise MemoryError(name)\n"
            "raise Odd",
            "raised MemoryError at line 3",
        ),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
            "open('/etc/passwd')",
            "raised OSError at line 4",
        ),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))\n"
            "bytearray(10**9)",
            "raised MemoryError at line 4",
        ),
    ],
)
def test_a_cell_that_takes_away_what_we_run_on(kernel: Kernel, cell: str, words: str) -> None:
    """No frame of ours is shown, and the user's own error is."""
    result = kernel.run(f"%%ddp -n 2\n{cell}")
    assert words in result.text + result.error["evalue"], result
    assert "ddp_magic/" not in result.text + result.traceback
    assert kernel.run("%%ddp -n 2\nprint(rank)").status == "ok"


@pytest.mark.parametrize("delay_s", [0.01, 0.04, 0.07, 0.1, 0.13, 0.16])
def test_stop_at_the_start(kernel: Kernel, delay_s: float) -> None:
    """Whatever the ranks are doing then, the cell ends soon, and shows nothing of ours."""
    # ipykernel answers no request that SIGINT meets before the cell begins.
    begun = "print('begun', flush=True)\n"
    cell = "get_ipython().run_cell_magic('ddp', '-n 2', 'import time; time.sleep(10)')"
    message = kernel.start(begun + cell)
    kernel.finish(message, until="begun")
    time.sleep(delay_s)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.status == "error"
    assert not frames_of_ours(result.text + result.traceback)
    assert kernel.run("%%ddp -n 2\nprint('again')").text.count("again") == 2


def test_stop_while_values_are_captured(kernel: Kernel) -> None:
    """Which is the user's code, in the notebook's process."""
    kernel.run(
        "import time\nclass Slow:\n    def __reduce__(self):\n"
        "        time.sleep(1000); return int, (1,)\nslow = Slow()"
    )
    message = kernel.start("%%ddp -n 2\nprint(slow)")
    time.sleep(1)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.error["ename"] == "RunInterrupted"
    assert "before the ranks were started" in result.error["evalue"]
    assert len(result.error["traceback"]) == 1


def test_stop_and_the_next_cell_works(kernel: Kernel) -> None:
    """Stop raises KeyboardInterrupt in the cell, names where the ranks were, and all goes on."""
    message = kernel.start("%%ddp -n 2\nimport time\nprint('up', flush=True)\ntime.sleep(1000)")
    kernel.finish(message, until="up")
    time.sleep(0.5)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.status == "error"
    assert "ranks 0-1 stopped at line 4" in result.error["evalue"]
    assert len(result.error["traceback"]) == 1
    assert kernel.run("%%ddp -n 2\nprint('again')").lines.count("[rank 0] again") == 1


def test_a_rank_that_answers_may_save(kernel: Kernel) -> None:
    """A rank that took the interrupt finishes its clean-up though its peer is gone long before."""
    message = kernel.start(
        "%%ddp -n 2\nimport time\nprint('up', flush=True)\n"
        "try:\n    time.sleep(1000)\n"
        "except KeyboardInterrupt:\n"
        "    if rank == 0:\n        time.sleep(3); print('saved', flush=True)\n    raise"
    )
    kernel.finish(message, until="up")
    time.sleep(0.5)
    kernel.interrupt()
    result = kernel.finish(message)
    assert "[rank 0] saved" in result.text
    assert "rank 0 answered and may take 30 s to finish" in result.text


def test_a_deaf_rank_shows_its_stack_and_is_killed(kernel: Kernel) -> None:
    """2 s after Stop: one that holds the interpreter lock."""
    message = kernel.start(
        "%%ddp -n 2\nprint('pid=%d.' % os.getpid(), flush=True)\nif rank == 1:\n"
        f"    {DEAF}\nimport time; time.sleep(1000)"
    )
    seen = kernel.finish(message, until=".\n")
    time.sleep(0.7)
    began = time.monotonic()
    kernel.interrupt()
    result = kernel.finish(message)
    elapsed_s = time.monotonic() - began
    assert elapsed_s > 1.5
    assert within(elapsed_s, 5), elapsed_s
    assert "rank 1 did not answer at line 4 and was killed" in result.error["evalue"]
    assert "line 4, in <module>" in result.text
    assert not wait_gone(pids_in(seen.text + result.text), 0.5)


def test_a_rank_that_ignores_the_interrupt_is_killed(kernel: Kernel) -> None:
    """One with SIGINT ignored, as %%script's child that outlives its interrupt in IPython."""
    message = kernel.start(
        "%%ddp -n 2\nimport signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('pid=%d.' % os.getpid(), flush=True)\ntime.sleep(1000)"
    )
    text = kernel.finish(message, until=".\n").text
    time.sleep(0.7)
    began = time.monotonic()
    kernel.interrupt()
    result = kernel.finish(message)
    assert within(time.monotonic() - began, 5)
    assert "ranks 0-1 did not answer at line 5 and were killed" in result.error["evalue"]
    assert not wait_gone(pids_in(text + result.text), 0.5)


def test_a_second_press_kills_now(kernel: Kernel) -> None:
    """No waiting for a rank that is still saving."""
    message = kernel.start(
        "%%ddp -n 2\nimport time\nprint('up', flush=True)\n"
        "try:\n    time.sleep(1000)\n"
        "except KeyboardInterrupt:\n    print('saving', flush=True); time.sleep(1000)"
    )
    kernel.finish(message, until="up")
    time.sleep(0.5)
    kernel.interrupt()
    kernel.finish(message, until="saving")
    kernel.interrupt()
    began = time.monotonic()
    result = kernel.finish(message)
    assert within(time.monotonic() - began, 2)
    assert re.search(r"(was|were) killed", result.error["evalue"])


def test_a_rank_stuck_in_a_collective_is_stopped(kernel: Kernel) -> None:
    """The usual hang: one rank never comes to the all_reduce."""
    message = kernel.start(
        "%%ddp -n 2\nimport time\nprint('up', flush=True)\n"
        "if rank == 0:\n    dist.all_reduce(torch.ones(1))\nelse:\n    time.sleep(1000)"
    )
    kernel.finish(message, until="up")
    time.sleep(0.7)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.status == "error"


def test_stop_while_the_ranks_start(kernel: Kernel) -> None:
    """While the forkserver still imports there is no rank; Stop ends the start itself."""
    kernel.run("%reload_ext ddp_magic")
    message = kernel.start("%%ddp -n 2\nprint('never')")
    time.sleep(0.3)
    kernel.interrupt()
    result = kernel.finish(message)
    assert result.status == "error"
    assert "never" not in result.text
    assert kernel.run("%%ddp -n 2\nprint('again')").text.count("again") == 2


# --- the kernel's end -----------------------------------------------------------------------------

ENDLESS = (
    "%%ddp -n 2\nimport subprocess, torch\n"
    "from torch.utils.data import DataLoader\n"
    "class Slow(torch.utils.data.Dataset):\n"
    "    def __len__(self): return 100\n"
    "    def __getitem__(self, i):\n        import time; time.sleep(1); return i\n"
    "child = subprocess.Popen(['sleep', '300'])\n"
    "workers = iter(DataLoader(Slow(), num_workers=1))\n"
    "print(' '.join(f'pid={p}' for p in [os.getpid(), child.pid, workers._workers[0].pid]), 'up')\n"
    f"if rank == 1:\n    {DEAF}\nimport time; time.sleep(1000)"
)


def _start_endless(kernel: Kernel) -> list[int]:
    message = kernel.start(ENDLESS)
    text = kernel.finish(message, until=" up").text
    while len(pids_in(text)) < 6:
        text += kernel.finish(message, until=" up").text
    pids = [process.pid for process in kernel.processes()]
    assert len(pids) >= 7  # the agent, the ranks, and each rank's two children
    forkserver = kernel.forkserver()
    assert forkserver is not None
    return [*pids, forkserver.pid]


def test_nothing_outlives_a_sigkilled_kernel(new_kernel: Callable[..., Kernel]) -> None:
    """Agent, ranks (one holding the interpreter lock), their children: gone in 3 s."""
    kernel = new_kernel()
    pids = _start_endless(kernel)
    kernel.kill()
    assert wait_gone(pids, 3.0) == []


def test_nothing_outlives_a_shut_down_kernel(new_kernel: Callable[..., Kernel]) -> None:
    """A regular shutdown, which first interrupts and then waits."""
    kernel = new_kernel()
    pids = _start_endless(kernel)
    kernel.manager.shutdown_kernel(now=False)
    assert wait_gone(pids, 3.0) == []


def test_a_sigkilled_agent(kernel: Kernel) -> None:
    """The ranks die with it, the cell says so, the next one works."""
    message = kernel.start(ENDLESS)
    seen = kernel.finish(message, until=" up")
    agent = kernel.processes()[0]
    pids = [process.pid for process in kernel.processes()]
    os.kill(agent.pid, signal.SIGKILL)
    result = kernel.finish(message)
    assert "agent died" in result.error["evalue"], (seen, result)
    assert wait_gone(pids, 3.0) == []
    assert kernel.run("%%ddp -n 2\nprint('again')").status == "ok"


def test_a_sigkilled_agent_and_forkserver(kernel: Kernel) -> None:
    """What a rank had detached has no parent that could end it; it is ended all the same."""
    message = kernel.start(
        "%%ddp -n 2\nimport subprocess, time\n"
        "child = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "print(f'pid={child.pid} up', flush=True)\ntime.sleep(1000)"
    )
    text = kernel.finish(message, until=" up").text
    while len(pids_in(text)) < 2:
        text += kernel.finish(message, until=" up").text
    agent, forkserver = kernel.processes()[0], kernel.forkserver()
    assert forkserver is not None
    forkserver.kill()
    agent.kill()
    result = kernel.finish(message)
    assert "agent died" in result.error["evalue"], result
    assert wait_gone(pids_in(text), 3.0) == []


def test_a_forked_notebook_process_does_not_keep_ranks_alive(
    new_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """An mp.Process forked while a run goes on holds no end of its connections."""
    kernel = new_kernel()
    kernel.run(
        "import multiprocessing, os, threading, time\n"
        "def later():\n"
        "    while not os.path.exists('up'): time.sleep(0.05)\n"
        "    multiprocessing.get_context('fork').Process(target=time.sleep, args=(100,)).start()\n"
        "    open('forked', 'w').close()\n"
        "threading.Thread(target=later, daemon=True).start()"
    )
    message = kernel.start(
        "%%ddp -n 2\nprint('pid=%d.' % os.getpid())\nimport time; time.sleep(1000)"
    )
    text = kernel.finish(message, until=".\n").text
    (tmp_path / "up").touch()
    began = time.monotonic()
    while not (tmp_path / "forked").exists():
        assert time.monotonic() - began < HANG_S
        time.sleep(0.05)
    kernel.kill()
    assert wait_gone(pids_in(text), 3.0) == []
