"""Kernels for the GPU tests, as for the integration tests."""

from __future__ import annotations

from tests.integration.conftest import (
    kernel,
    new_kernel,
    shared_kernel,
    shared_kernel_directory,
)

__all__ = ["kernel", "new_kernel", "shared_kernel", "shared_kernel_directory"]
