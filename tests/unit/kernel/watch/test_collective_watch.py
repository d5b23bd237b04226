"""What is known of the ranks' collectives at the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_magic.display.rank import Rank
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.watch.collective_watch import CollectiveWatch
from ddp_magic.system.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("debug", "code", "told"),
    [("DETAIL", -11, True), ("DETAIL", -6, False), ("INFO", -11, False), ("", -11, False)],
)
def test_a_crash_of_torchs_own_debug_mode_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug: str, code: int, told: bool
) -> None:
    """It is what people set who look for a hang."""
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", debug)
    watch = CollectiveWatch(Options(nproc=2), RunDirectory(tmp_path), 5.0)
    found = watch.reasons([Rank(rank=0, code=code, ended=1.0), Rank(rank=1, code=0)])
    assert any("unset it, and use `--check`" in text for text in found) is told
