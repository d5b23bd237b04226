"""Real kernels for the tests: one that many tests share, and fresh ones for those that end it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel
from tests.integration.slurm_cluster import SlurmCluster, missing
from tests.limits import within


@pytest.fixture(scope="module")
def shared_kernel_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the module's kernel."""
    return tmp_path_factory.mktemp("kernel")


@pytest.fixture(scope="module")
def shared_kernel_env() -> dict[str, str]:
    """Variables of the module's kernel beside this process's own. A module may have its own."""
    return {}


@pytest.fixture(scope="module")
def shared_kernel(
    shared_kernel_directory: Path, shared_kernel_env: dict[str, str]
) -> Iterator[Kernel]:
    """A kernel with the extension loaded, for all tests of a module."""
    kernel = Kernel(shared_kernel_directory, shared_kernel_env)
    assert kernel.run("%load_ext ddp_magic").status == "ok"
    yield kernel
    kernel.stop()


@pytest.fixture
def kernel(shared_kernel: Kernel) -> Iterator[Kernel]:
    """The module's kernel; after each test none of its descendants is left."""
    yield shared_kernel
    began = time.monotonic()  # the forkserver forks for a moment, to see that it can
    while (left := shared_kernel.processes()) and within(time.monotonic() - began, 3.0):
        time.sleep(0.02)
    assert left == []


@pytest.fixture
def new_kernel(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    """Makes kernels of the test's own, with the extension loaded."""
    kernels: list[Kernel] = []

    def make(env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()) -> Kernel:
        kernels.append(Kernel(tmp_path, env, prefix))
        assert kernels[-1].run("%load_ext ddp_magic").status == "ok"
        return kernels[-1]

    yield make
    for kernel in kernels:
        kernel.stop()


@pytest.fixture(scope="session")
def slurm_or_none() -> Iterator[SlurmCluster | None]:
    """A Slurm of two nodes; None where there can be none. In CI that is an error."""
    if problem := missing():
        assert "DDP_MAGIC_REQUIRE_SLURM" not in os.environ, problem
        yield None
        return
    cluster = SlurmCluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm(slurm_or_none: SlurmCluster | None) -> SlurmCluster:
    """A Slurm of two nodes; where there can be none, the test is skipped."""
    if slurm_or_none is None:
        pytest.skip(f"no Slurm for the tests: {missing()}")
    return slurm_or_none
