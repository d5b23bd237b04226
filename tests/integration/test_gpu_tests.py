"""The tests that need a GPU, where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S


@pytest.mark.slow
def test_their_fixtures_exist() -> None:
    """No CI runs them: a fixture that they miss would be found on the GPU machine."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "--setup-plan", "-q"]
    folder = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=2 * HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
