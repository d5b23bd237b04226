"""Real kernels for the tests: one that many tests share, and fresh ones for those that end it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration import ray_cluster, slurm_cluster
from tests.integration.kernel import Kernel
from tests.integration.ray_cluster import RayCluster
from tests.integration.slurm_cluster import SlurmCluster
from tests.limits import within


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks: that file takes longest, and the tests of a file stay together."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(scope="module")
def shared_kernel_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the module's kernel."""
    return tmp_path_factory.mktemp("kernel")


@pytest.fixture(scope="module")
def shared_kernel_env() -> dict[str, str]:
    """Variables of the module's kernel beside this process's own. A module may have its own."""
    return {}


@pytest.fixture(scope="module")
def shared_kernel_prefix() -> tuple[str, ...]:
    """Words before the command of the module's kernel. A module may have its own."""
    return ()


@pytest.fixture(scope="module")
def shared_kernel(
    shared_kernel_directory: Path,
    shared_kernel_env: dict[str, str],
    shared_kernel_prefix: tuple[str, ...],
) -> Iterator[Kernel]:
    """A kernel with the extension loaded, for all tests of a module."""
    kernel = Kernel(shared_kernel_directory, shared_kernel_env, shared_kernel_prefix)
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
def slurm() -> Iterator[SlurmCluster]:
    """A Slurm of two nodes; where there can be none, the test is skipped. In CI it fails."""
    if problem := slurm_cluster.missing():
        assert "DDP_MAGIC_REQUIRE_SLURM" not in os.environ, problem
        pytest.skip(f"no Slurm for the tests: {problem}")
    cluster = SlurmCluster()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def ray() -> Iterator[RayCluster]:
    """A Ray of two nodes; where there can be none, the test is skipped. In CI it fails."""
    if problem := ray_cluster.missing():
        assert "DDP_MAGIC_REQUIRE_RAY" not in os.environ, problem
        pytest.skip(f"no Ray for the tests: {problem}")
    cluster = RayCluster()
    yield cluster
    cluster.stop()
