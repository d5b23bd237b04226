"""The project's own files: its commands' environments, and the versions that it declares."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ddp_magic.kernel.options.help import markdown_table

ROOT = Path(__file__).parents[2]
REQUIREMENT = re.compile(r'^\s*"([\w-]+)>=([\d.]+)(?:,<[\d.]+)?",', re.MULTILINE)
PIN = re.compile(r"^([\w-]+)==([\d.]+)$", re.MULTILINE)


def _commands(target: str) -> list[str]:
    """Return what `make` would run for a target on a clean clone."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if not line.startswith("echo")]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("test", ".venv"),
        ("demo", ".venv"),
        ("bench", ".venv-bench"),
        ("chaos", ".venv"),
        ("test-oldest", ".venv-oldest"),
    ],
)
def test_each_command_has_its_environment(target: str, folder: str) -> None:
    """What one installs never reaches another's: a JupyterLab extension broke the browser tests."""
    found = {name for line in _commands(target) for name in re.findall(r"\.venv[-\w]*", line)}
    assert found == {folder}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_no_command_is_silent() -> None:
    """Installing takes minutes on a slow machine: pip shows what it does."""
    for target in ("test", "demo", "bench", "test-oldest"):
        installs = [line for line in _commands(target) if "pip install" in line]
        assert len(installs) >= 3
        assert not [
            line for line in installs if re.search(r"--quiet|\s-q|--progress-bar off", line)
        ]


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    """constraints-oldest.txt pins each lower bound of pyproject.toml, and nothing else."""
    text = (ROOT / "pyproject.toml").read_text()
    begin, end = text.index("\ndependencies = ["), text.index("\nbench = [")
    declared = dict(REQUIREMENT.findall(text[begin:end]))
    pinned = dict(PIN.findall((ROOT / "constraints-oldest.txt").read_text()))
    assert len(declared) > 20
    del pinned["torchvision"]  # of one test, which pyproject.toml does not know
    assert pinned == declared


def test_the_readme_lists_the_options() -> None:
    """As they are declared; the message is the table to put there."""
    text = (ROOT / "README.md").read_text()
    begin, end = "<!-- options -->\n", "<!-- /options -->"
    assert text.partition(begin)[2].partition(end)[0] == markdown_table()
