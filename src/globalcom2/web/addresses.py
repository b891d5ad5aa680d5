"""Where the page's server listens: hosts and ports. Imports nothing heavy, so that flags are checked at once."""

from __future__ import annotations

import errno
import ipaddress
import socket

from globalcom2.errors import InputError

PORTS_TRIED = 100


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str, port: int) -> int:
    """The first free port from `port` on.

    Raises:
        InputError: None of the next hundred is free, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except PermissionError:
                continue
            except socket.gaierror:
                raise _no_address(host) from None
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise _no_address(host) from None
                continue
            return candidate
    raise InputError(f"--port must have a free port among the next {PORTS_TRIED}, got {port}. Choose another one.")


def _no_address(host: str) -> InputError:
    return InputError(f"--host must be an address of this machine, got {host!r}. Use 127.0.0.1.")
