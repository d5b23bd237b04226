"""The benchmark of many nodes: what it pretends to be is what relays say."""

from __future__ import annotations

import subprocess
import sys

from tests.limits import HANG_S


def test_nodes_that_are_not_there() -> None:
    """Every line of their ranks arrives."""
    command = [sys.executable, "-m", "tests.benchmarks.many_nodes"]
    ended = subprocess.run(
        [*command, "--nodes", "2", "--seconds", "1"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 nodes x 8 ranks" in ended.stdout
    assert "lines in each log: 10 of 10" in ended.stdout
