"""A network of hosts for the tests, on one machine: each is a network namespace.

The hosts have addresses and names of their own on a bridge. It needs root, and network namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.limits import HANG_S

_PROGRAMS = ("nsenter", "unshare", "ip")


def missing(*programs: str) -> str:
    """Return why there can be no network here, or which programs are absent; empty if none."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in (*_PROGRAMS, *programs) if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    name = f"ddp-magic-{os.getpid()}"
    probe = run(["ip", "netns", "add", name], check=False)
    run(["ip", "netns", "del", name], check=False)
    return f"no network namespaces: {probe.stderr.strip()}" if probe.returncode else ""


class Network:
    """A running network; the bridge lies in the namespace of its first host.

    Args:
        tag: A letter that tells it from other networks of this process.
        hosts: The hosts' names.
        directory: Where its files may lie.
    """

    def __init__(self, tag: str, hosts: Sequence[str], directory: Path) -> None:
        self._tag = f"{tag}{os.getpid() % 10_000}"
        self._net = f"10.{77 + os.getpid() % 100}.0"
        self._numbers = {host: 10 + number for number, host in enumerate(hosts)}
        self._hosts_file = directory / "hosts"

    def start(self) -> None:
        """Make the hosts and connect them."""
        os.environ["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        lines = ["127.0.0.1 localhost", *(f"{self.address(h)} {h}" for h in self._numbers)]
        self._hosts_file.write_text("\n".join(lines) + "\n")
        for host in self._numbers:
            run(["ip", "netns", "add", self.netns(host)])
            run(["ip", "-n", self.netns(host), "link", "set", "lo", "up"])
        first, *others = self._numbers
        bridge = self.netns(first)
        run(["ip", "-n", bridge, "link", "add", "br0", "type", "bridge"])
        run(["ip", "-n", bridge, "addr", "add", f"{self.address(first)}/24", "dev", "br0"])
        run(["ip", "-n", bridge, "link", "set", "br0", "up"])
        for host in others:
            near, far = f"{self._tag}{host}", self.netns(host)
            pair = ["link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", far]
            run(["ip", "-n", bridge, *pair])
            run(["ip", "-n", bridge, "link", "set", near, "master", "br0", "up"])
            run(["ip", "-n", far, "addr", "add", f"{self.address(host)}/24", "dev", "eth0"])
            run(["ip", "-n", far, "link", "set", "eth0", "up"])

    def netns(self, host: str) -> str:
        """Return the name of a host's network namespace."""
        return f"{self._tag}-{host}"

    def address(self, host: str) -> str:
        """Return a host's address."""
        return f"{self._net}.{self._numbers[host]}"

    def inside(self, host: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs another one on a host.

        Not `ip netns exec`, which mounts another /sys, without the cgroups that slurmd looks for.
        """
        setup = f'hostname {host}; mount --bind {self._hosts_file} /etc/hosts; exec "$@"'
        enter = ["nsenter", f"--net=/run/netns/{self.netns(host)}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", setup, "sh", *argv]

    def stop(self) -> None:
        """End every process that is in it, and remove it."""
        for host in self._numbers:
            for pid in run(["ip", "netns", "pids", self.netns(host)], check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run(["ip", "netns", "del", self.netns(host)], check=False)


def run(argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=HANG_S, check=check)
