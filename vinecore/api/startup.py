"""What a manager starts with: its port, its secret, its certificate, its cores."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vinecore.errors import RangeError, UsageError
from vinecore.model.numbers import CORES_LIMIT, checked_whole, shown

if TYPE_CHECKING:
    from vinecore.shell.manager_loop import ManagerLoop

DEFAULT_PORT = 9123
_DIGITS = 100


def core_count(local_cores: int | bool | None) -> int:
    if local_cores is None or local_cores is False:
        return 0
    if local_cores is True:
        return len(os.sched_getaffinity(0))
    return checked_whole(local_cores, "local_cores", 1, CORES_LIMIT, "a number of cores above 0, True or None")


def secret_of_start(auth: str | None, password_file: str | None, only_embedded: bool) -> bytes | None:
    if auth is None:
        return None
    if auth != "secret":
        raise UsageError(f"auth must be 'secret' (the default) or None to switch authentication off, not {shown(auth)}")
    if only_embedded and password_file is None:
        # Nobody else can join: the run has a secret of its own and nothing of HOME is touched.
        return os.urandom(32).hex().encode()
    from vinecore.shell.secrets import secret_for_manager

    return secret_for_manager(password_file)


def worker_flags(auth: str | None, password_file: str | None) -> str:
    """What a worker must be told so that it proves itself as this manager wants it."""
    if auth is None:
        return " --no-authentication"
    named = password_file or os.environ.get("VINE_PASSWORD_FILE")
    if not named:
        return ""
    import shlex

    return f" --password {shlex.quote(os.path.abspath(os.path.expanduser(named)))}"


def listen(port: int | tuple[int, int] | list[int] | None, cores: int) -> tuple[socket.socket, bool]:
    """A listening socket, and whether only an embedded worker can reach it.

    Raises:
        UsageError: the port is no port, or is in use.
    """
    given = os.environ.get("VINE_PORT")
    if given:
        # Python makes no number of more than 4300 digits.
        if not (given.isascii() and given.isdigit() and len(given) < _DIGITS):
            raise UsageError(f"VINE_PORT={shown(given)} is no port number: set it to a number from 0 to 65535, or unset it")
        port = int(given)
    if port is None and cores:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        return listener, True
    low, high = _port_range(DEFAULT_PORT if port is None else port)
    for number in range(low, high + 1):
        try:
            return _bind(number), False
        except OSError as error:
            last = error
    where = f"port {low} is" if low == high else f"every port from {low} to {high} is"
    raise UsageError(
        f"{where} in use or not allowed ({os.strerror(last.errno or 0)}): choose another with port=, or port=0 for any free one"
    )


def _port_range(port: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    if isinstance(port, tuple | list):
        if len(port) != 2 or not all(type(p) is int and 0 < p < 65536 for p in port):
            raise UsageError(f"a range of ports is (low, high) with numbers from 1 to 65535, not {shown(port)}")
        if port[0] > port[1]:
            raise RangeError(f"a range of ports is (low, high): {port[0]} is above {port[1]}")
        return port[0], port[1]
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise UsageError(f"port must be a number from 0 to 65535 or a range (low, high), not {shown(port)}")
    return port, port


def _bind(port: int) -> socket.socket:
    """Listen on all interfaces, IPv6 too where the machine has it."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("0.0.0.0", port), backlog=1024)


def encrypt(loop: ManagerLoop, ssl: bool | tuple[str, str]) -> None:
    """Give the loop its certificate, and the run one of its own for links between workers.

    Raises:
        UsageError: ``ssl`` names no two files, or they hold no key and certificate.
    """
    from vinecore.shell.tls import Identity, self_signed

    state = loop.machine.state
    if ssl is True:
        state.peer_key, state.peer_certificate = self_signed()
        with tempfile.TemporaryDirectory(prefix="vine-tls-") as directory:
            loop.identity = Identity.of_pem(state.peer_key, state.peer_certificate, Path(directory))
        return
    if not isinstance(ssl, tuple | list) or len(ssl) != 2:
        raise UsageError(f"ssl must be True, None or (key file, certificate file), not {shown(ssl)}")
    loop.identity = Identity.of_files(str(ssl[0]), str(ssl[1]))
    # A user's own key is not handed to workers; without the package they exchange objects through the manager.
    with contextlib.suppress(UsageError):
        state.peer_key, state.peer_certificate = self_signed()
