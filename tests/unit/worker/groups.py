"""The end of a process group in the tests' own process."""

from __future__ import annotations

import time

import torch.distributed as dist

LET_GO_S = 0.05


def leave_group() -> None:
    """Destroy the default group, once gloo's threads have let go of what they reduced or sent.

    torch's destructor waits for those threads and holds the interpreter lock, which a thread needs
    to free a tensor that nobody else holds any more: once in some hundred runs of the tests, both
    waited for ever (torch 2.6).
    """
    time.sleep(LET_GO_S)
    dist.destroy_process_group()
