"""Engines of several nodes by their names: ours, and those of other packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_magic.engines import remote, slurm


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed packages, of which one cannot be imported."""
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ddp_magic.engines]\nmine = my_engine_module\nbroken = no_such_engine_module\n"
    )
    (tmp_path / "my_engine_module.py").write_text("START = {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_ours() -> None:
    assert remote.find("slurm") is slurm


@pytest.mark.usefixtures("packages")
def test_another_packages() -> None:
    assert remote.find("mine").START == {}
    assert remote.names() == ["local", "torchrun", "slurm", "ray", "mine", "broken"]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mien", "unknown engine 'mien': did you mean mine?"),
        ("zzz", "use local, torchrun, slurm, ray, mine, broken"),
        ("broken", "engine 'broken' .* cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_there_is_none(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        remote.find(name)
