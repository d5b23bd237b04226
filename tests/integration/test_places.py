"""Where a run keeps its files: what is in the way there, full disks, cleaners of old files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel

SUM = "t = torch.ones(1); dist.all_reduce(t); print('sum', t.item())"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="d-") as name:
        yield Path(name)


def test_something_in_the_place_of_the_logs(
    new_kernel: Callable[..., Kernel], short_path: Path
) -> None:
    """It is said in one line, once; the runs go on."""
    (short_path / "other").mkdir()
    (short_path / "ddp_magic").symlink_to(short_path / "other")
    kernel = new_kernel({"XDG_CACHE_HOME": str(short_path)})
    first = kernel.run(f"%%ddp -n 2\n{SUM}")
    assert first.status == "ok", first.traceback
    (line,) = [line for line in first.lines if not line.startswith("[rank")]
    assert f"{short_path}/ddp_magic: it is a symbolic link" in line
    second = kernel.run(f"%%ddp -n 2\n{SUM}")
    assert sorted(second.lines) == ["[rank 0] sum 2.0", "[rank 1] sum 2.0"], second
    assert list((short_path / "other").iterdir()) == []
