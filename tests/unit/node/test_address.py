"""Which address of a node others reach it at."""

from __future__ import annotations

import socket

import psutil
import pytest

from ddp_magic.node.address import gloo_interface, own_address

OWN = [
    each.address
    for addresses in psutil.net_if_addrs().values()
    for each in addresses
    if each.family == socket.AF_INET and not each.address.startswith("127.")
]
needs_network = pytest.mark.skipif(not OWN, reason="needs a network")


@needs_network
@pytest.mark.parametrize("name", ["", "localhost", "no.such.host.invalid"])
@pytest.mark.parametrize("toward", ["", "127.0.0.1", "no address", "192.0.2.1"])
def test_never_a_loopback_address(name: str, toward: str) -> None:
    """Whatever the names resolve to."""
    address = own_address({"NAME": name, "TOWARD": toward}, "NAME", "TOWARD")
    assert not address.startswith("127.")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))


@needs_network
def test_the_name_in_the_cluster_comes_first() -> None:
    """It is that of the network that the cluster's nodes share."""
    assert own_address({"NAME": OWN[-1]}, "NAME", "") == OWN[-1]


def test_a_setting_of_the_users_stays() -> None:
    assert gloo_interface({"GLOO_SOCKET_IFNAME": "ib0"}, "192.0.2.1") == ""
