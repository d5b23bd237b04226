"""What a rank asks CUDA, with a fake in its place: these tests have no GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ddp_magic.worker.device import cuda_error


def _fake_cuda(monkeypatch: pytest.MonkeyPatch, query: Callable[[], bool]) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(query=query))


def test_cuda_that_was_never_used_is_not_asked() -> None:
    """It would create a context."""
    assert cuda_error() == ""
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("done", [True, False])
def test_a_gpu_that_works_or_is_busy_is_no_error(
    monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """Kernels of the cell may run on after it."""
    _fake_cuda(monkeypatch, lambda: done)
    assert cuda_error() == ""


def test_a_lost_context_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch's advice on how to debug kernels, which the traceback shows."""

    def query() -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nSearch for ...")

    _fake_cuda(monkeypatch, query)
    assert cuda_error() == "CUDA error: an illegal memory access was encountered"
