"""The processes of the ranks, in a process of its own that forks them."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def _run(program: str) -> list[str]:
    """Run a program that has `ranks`, whose exits are printed; return its lines."""
    head = """
        import os, signal, sys, time
        from ddp_magic.node.ranks import Ranks

        def on_exit(rank, code, by_us):
            print(rank, code, by_us, flush=True)

        def until_all_have_ended():
            while ranks.alive():
                ranks.wait(1.0)
                ranks.poll()

        ranks = Ranks(on_exit)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return sorted(done.stdout.splitlines())


def test_each_exit_is_reported_once() -> None:
    """With its code, or the signal that has ended it."""
    lines = _run("""
        ranks.fork(0, lambda: os._exit(3))
        ranks.fork(1, lambda: os.kill(os.getpid(), signal.SIGKILL))
        until_all_have_ended()
        ranks.poll()
    """)
    assert lines == ["0 3 False", "1 -9 False"]


def test_a_rank_that_raises_or_returns_has_failed() -> None:
    """Nothing of the agent runs on in it."""
    lines = _run("""
        ranks.fork(0, lambda: 1 / 0)
        ranks.fork(1, lambda: None)
        until_all_have_ended()
    """)
    assert lines == ["0 1 False", "1 1 False"]


def test_a_rank_that_ignores_the_signal_is_killed() -> None:
    """After the grace; both ends are the agent's doing."""
    lines = _run("""
        def stubborn():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            os.write(write, b"x")
            time.sleep(1000)

        def docile():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            os.write(write, b"x")
            time.sleep(1000)

        read, write = os.pipe()
        ranks.fork(0, stubborn)
        ranks.fork(1, docile)
        for _ in range(2):
            os.read(read, 1)
        ranks.end(signal.SIGTERM, 0.3)
    """)
    assert lines == ["0 -9 True", "1 -15 True"]


def test_after_a_kill_no_rank_starts() -> None:
    """Those that are still to be forked are killed too."""
    lines = _run("""
        print(ranks.ending)
        ranks.kill(())
        print(ranks.ending)
        ranks.fork(0, lambda: time.sleep(1000))
        until_all_have_ended()
    """)
    assert lines == ["0 -9 True", "False", "True"]


def test_a_rank_with_a_high_descriptor_is_waited_for() -> None:
    """`select` takes none from 1024 on; each rank has one."""
    lines = _run("""
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        read, _ = os.pipe()
        while os.dup(read) < 1100:
            pass
        ranks.fork(0, lambda: os._exit(3))
        until_all_have_ended()
    """)
    assert lines == ["0 3 False"]


def test_others_take_the_places_of_ranks_that_have_ended() -> None:
    """Their ends are reported too, and whose doing they were."""
    lines = _run("""
        ranks.fork(0, lambda: os._exit(3))
        ranks.fork(1, lambda: time.sleep(1000))
        while not ranks.codes:
            ranks.poll()
        ranks.kill((1,))
        until_all_have_ended()
        ranks.forget()
        print(ranks.alive(), ranks.codes, ranks.pids)
        ranks.fork(1, lambda: os._exit(4))
        until_all_have_ended()
    """)
    assert lines == ["0 3 False", "1 -9 True", "1 4 False", "[] {} {}"]
