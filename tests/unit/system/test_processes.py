"""How processes are ended."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

from ddp_magic.system.processes import exit_words, wait_then_kill


def test_what_ends_by_itself_is_not_killed() -> None:
    """Within its grace."""
    rounds = [[1, 2], [2], []]
    killed: list[int] = []
    wait_then_kill(lambda: rounds.pop(0), killed.extend, grace_s=60.0, deadline_s=0.0)
    assert killed == []
    assert rounds == []


def test_what_is_left_is_killed_until_nothing_is() -> None:
    """What was started meanwhile too."""
    rounds = [[1, 2], [3], []]
    killed: list[int] = []
    wait_then_kill(lambda: rounds.pop(0), killed.extend, grace_s=0.0, deadline_s=60.0)
    assert killed == [1, 2, 3]


def test_what_cannot_be_killed_is_given_up() -> None:
    """A process in uninterruptible sleep."""
    start = time.monotonic()
    wait_then_kill(lambda: [1], lambda _: None, grace_s=0.0, deadline_s=0.05)
    assert time.monotonic() - start >= 0.05


def test_all_descendants_are_swept() -> None:
    """A grandchild whose parent has ended too; a spared child is not."""
    program = """
        import subprocess, sys
        from ddp_magic.system import processes

        processes.adopt_orphans()
        spared = subprocess.Popen(["sleep", "100"])
        orphan = subprocess.run(["sh", "-c", "sleep 100 >/dev/null & echo $!"],
            stdout=subprocess.PIPE, text=True, check=True).stdout
        child = subprocess.Popen(["sleep", "100"])
        killed = processes.sweep(0.0, spare=[spared.pid])
        print(killed, spared.poll(), flush=True)
        print(processes.sweep(0.0), processes.descendants(), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["2 None", "1 []"], done


def test_what_loses_its_parent_during_the_sweep_is_swept_too() -> None:
    """Another thread ends the parent, and reaps it, while the processes are read."""
    program = """
        import os, random, subprocess, threading, time
        from ddp_magic.system import processes

        processes.adopt_orphans()
        for _ in range(40):
            script = "sleep 100 >/dev/null & echo; wait"
            parent = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
            parent.stdout.readline()
            def end():
                time.sleep(random.random() * 0.012)
                parent.kill()
                parent.wait()
            thread = threading.Thread(target=end)
            thread.start()
            processes.sweep(0.0)
            thread.join()
        print(processes.descendants())
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]", done


def test_a_stopped_process_continues_when_its_parent_ends() -> None:
    """It reads the end of its input then, and ends."""
    child = """
        import os, signal, sys
        from ddp_magic.system import processes

        processes.continue_after_parent()
        print("stops", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        print("goes on", flush=True)
    """
    parent = """
        import os, subprocess, sys

        child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(parent), textwrap.dedent(child)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["stops", "goes on"], done


def test_exit_words() -> None:
    """A signal has its name."""
    assert exit_words(3) == "exit code 3"
    assert exit_words(-9) == "killed by SIGKILL"
    assert exit_words(-40) == "killed by signal 40"  # a real-time signal
