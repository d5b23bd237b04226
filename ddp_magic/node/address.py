"""Which address of a node the other nodes reach it at, where a run has several nodes."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping

import psutil


def own_address(env: Mapping[str, str], name_variable: str, toward: str) -> str:
    """Return the address of this node on the network that the nodes share.

    Args:
        env: The environment.
        name_variable: Variable in which the engine leaves the node's name in the cluster.
        toward: Variable with the address of a machine on that network, such as the one that
            started the run; empty if there is none.

    Raises:
        OSError: It has only its loopback address.
    """
    names = (env.get(name_variable, ""), socket.gethostname())
    for address in (*_of_names(names), *_toward(env.get(toward, "")), *_of_interfaces()):
        if not _is_loopback(address) and _is_ours(address):
            return address
    raise OSError(f"{socket.gethostname()} has no address that other nodes could reach")


def gloo_interface(env: Mapping[str, str], address: str) -> str:
    """Return the network interface that gloo must be told; empty if it finds a right one itself.

    gloo takes the address that the host's name has. Where that is a loopback address, or there is
    none, ranks on other nodes could not connect.

    Args:
        env: The environment; a setting of the user's stays.
        address: The node's own.
    """
    if env.get("GLOO_SOCKET_IFNAME"):
        return ""
    found = list(_of_names([socket.gethostname()]))
    if found and not any(map(_is_loopback, found)):
        return ""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    return ""


def _of_names(names: tuple[str, ...] | list[str]) -> Iterator[str]:
    for name in filter(None, names):
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:  # it does not resolve
            continue
        for family in (socket.AF_INET, socket.AF_INET6):
            yield from dict.fromkeys(str(each[4][0]) for each in found if each[0] == family)


def _toward(address: str) -> Iterator[str]:
    """Yield the address with which this node would send something there; nothing is sent."""
    if not address:
        return
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 9))
            yield str(sock.getsockname()[0])
    except OSError:
        return


def _of_interfaces() -> Iterator[str]:
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET:
                yield each.address


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    return parsed.is_loopback or parsed.is_link_local


def _is_ours(address: str) -> bool:
    """Return whether this machine can listen there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True
