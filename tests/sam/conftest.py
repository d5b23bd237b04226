"""Fixtures of all tests of ddp_magic.sam."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread for arithmetic, which is as fast with models this small.

    With two threads, beside another test that runs at the same time, it takes ten times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
