"""Waiting for descriptors, also for those from number 1024 on."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import time

import pytest

from ddp_magic.system.readable import readable


def test_what_can_be_read_and_what_has_ended() -> None:
    (a, b), (c, d) = socket.socketpair(), socket.socketpair()
    read, write = os.pipe()
    b.send(b"x")
    d.close()
    assert readable([a, c, read], 0) == [a, c]
    os.close(write)
    assert readable([a, c, read], 0) == [a, c, read]
    for end in (a, b, c):
        end.close()
    os.close(read)


def test_it_waits_no_longer_than_it_may() -> None:
    read, write = os.pipe()
    began = time.monotonic()
    assert readable([read], 0.05) == []
    assert time.monotonic() - began >= 0.05
    assert readable([], 0) == []
    os.close(read)
    os.close(write)


def test_a_high_number() -> None:
    """A notebook that has opened a thousand files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this machine allows fewer")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    read, write = os.pipe()
    high = fcntl.fcntl(read, fcntl.F_DUPFD, 1500)
    assert readable([high], 0) == []
    os.write(write, b"x")
    assert readable([high], None) == [high]
    for fd in (read, write, high):
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
