"""Defaults of the options: `%config DDPMagics`, and IPython's configuration file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel
from tests.integration.test_front_end import _complete

CONFIG = """
c.DDPMagics.nproc_per_node = 1
c.DDPMagics.quiet = True
"""


@pytest.fixture
def configured(tmp_path: Path, new_kernel: Callable[..., Kernel]) -> Kernel:
    """A kernel whose configuration file has defaults."""
    profile = tmp_path / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_config.py").write_text(CONFIG)
    return new_kernel({"IPYTHONDIR": str(tmp_path / "ipython")})


def test_defaults(configured: Kernel) -> None:
    """Of the file, then of `%config`; a line's own option wins, and a session keeps its number."""
    kernel = configured
    first = kernel.run("%%ddp\nprint(world_size)")
    assert first.lines == ["[rank 0] 1"]
    assert first.summary == "", "quiet"
    assert kernel.run("%%ddp --no-quiet\n1").summary.startswith("1 rank · ")
    kernel.run("%%ddp -n 2 -s lab\npass")

    refused = kernel.run("%config DDPMagics.nproc_per_node = 0")
    assert "DDPMagics.nproc_per_node: invalid rank count 0: use 1, 2, ..., gpu," in refused.text
    kernel.run("%config DDPMagics.nproc_per_node = 3")
    assert len(kernel.run("%%ddp\nprint(world_size)").lines) == 3
    assert kernel.run("%%ddp -n 1\nprint(world_size)").lines == ["[rank 0] 1"]
    assert sorted(kernel.run("%%ddp -s lab\nprint(world_size)").lines) == [
        "[rank 0] 2",
        "[rank 1] 2",
    ]
    kernel.run("%ddp_stop --all")

    text = kernel.run("%config DDPMagics").text
    assert "DDPMagics.nproc_per_node=" in text
    assert "Current: 3" in text
    fragment, found = _complete(kernel, "%config DDPMagics.no_r")
    assert found == ["DDPMagics.no_raise_error"], fragment

    ran = kernel.run("import ddp_magic; len(ddp_magic.run('pass', nproc_per_node=None).ranks)")
    assert ran.outputs[-1][1]["data"]["text/plain"] == "2", "%config is for the magic alone"
