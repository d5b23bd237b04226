"""The shell of a rank, in a process of its own: IPython has one a process, and keeps it."""

from __future__ import annotations

import subprocess
import sys


def _in_a_rank(code: str) -> str:
    """Return what a script prints in which the shell is made as in the forkserver."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\nfrom ddp_magic.worker import shell\nshell.preload()\n{code}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shell_has_no_prompts() -> None:
    """A library that looks when it is imported, and remembers, finds a script."""
    assert _in_a_rank("print([hasattr(sys, f'ps{n}') for n in (1, 2, 3)])") == (
        "[False, False, False]\n"
    )
