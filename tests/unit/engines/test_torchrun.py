"""What the kernel holds of a torchrun that it has started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ddp_magic.engines.torchrun import TorchrunAgent


def _agent(log: Path) -> tuple[TorchrunAgent, subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    return TorchrunAgent(process, log), process


def test_it_ends_when_it_is_killed(tmp_path: Path) -> None:
    """And can be killed again."""
    agent, process = _agent(tmp_path / "log")
    with process:
        assert not agent.ended()
        agent.kill()
        assert agent.ended()
        agent.kill()


def test_its_last_words(tmp_path: Path) -> None:
    """The end of its log; nothing, where there is none."""
    agent, process = _agent(tmp_path / "log")
    with process:
        assert agent.last_words() == ""
        (tmp_path / "log").write_text("x" * 10_000 + "the end\n")
        assert agent.last_words().endswith("xthe end")
        assert len(agent.last_words()) < 5000
        agent.kill()
