"""Kernels for the GPU tests, as for the integration tests."""

from __future__ import annotations

from tests.integration.conftest import *  # noqa: F403 -- all its fixtures, whichever need others
