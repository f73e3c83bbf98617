"""A worker's way to a manager: it asks every address of its list in turn until one lets it in.

Where there are several, each has its share of the time only: one that drops packets, or accepts and says nothing, must not keep
the worker from the others. One that refuses it is not asked again. One that lets it in only to send it away, since it is full,
is asked again when the others have been.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from vinecore.errors import AuthenticationError, PeerError, ProtocolError, VersionError
from vinecore.shell.own_words import STDERR, say
from vinecore.shell.stream import Link
from vinecore.shell.tls import CONTROL_PREAMBLE, GO_AHEAD, binding_of
from vinecore.wire.handshake import HANDSHAKE_TIMEOUT_S, Dialer

T = TypeVar("T")
Place = tuple[str, int]

# However short --connect-timeout is, one try gets this long; one of several gets at most the other.
LEAST_TRY_S = 1.0
MOST_TRY_S = 10.0


class SentAway(Exception):
    """A manager answered, and has no use for this worker now: it may have one later."""


@dataclass
class Way:
    """A link that is ready, to which place of the list, at which address; the event is set when it is lost."""

    link: Link
    place: Place
    address: Place
    disconnected: asyncio.Event


class ManagerDial:
    """Reaches one of several managers.

    Parameters:
        managers: host and port of each.
        tls: the context of an encrypted link, and the name that is told there; None for a plain one.
        stop: when set, ``reach`` returns.
        told: takes a line for people.
    """

    def __init__(
        self,
        managers: list[Place],
        secret: bytes | None,
        tls: tuple[ssl.SSLContext, str] | None,
        on_payloads: Callable[[Link, list[bytes]], None],
        stop: asyncio.Event,
        told: Callable[[str], None],
    ) -> None:
        # Those that have not refused us.
        self.managers = list(dict.fromkeys(managers))
        # Why each did not let us in, in the last round; and the last refusal, when all have refused.
        self.failures: dict[Place, Exception] = {}
        self.refusal = ""
        self._secret = secret
        self._tls = tls
        self._on_payloads = on_payloads
        self._stop = stop
        self._tell = told
        self._has_several = len(self.managers) > 1
        # Places of which a line has said that they keep us waiting.
        self._slow: set[Place] = set()
        # Who was still to be asked when somebody let us in; and whether that one has sent us away.
        self._waiting: list[Place] = []
        self._goes_on = False

    def sent_away(self, way: Way, reason: str) -> bool:
        """The manager there let us in, but has no use for us: ``reach`` goes on behind it. False: all have been asked."""
        self.failures[way.place] = SentAway(reason)
        self._goes_on = bool(self._waiting)
        return self._goes_on

    def is_wanted_later(self) -> bool:
        """Whether one of those that did not let us in has answered."""
        return any(isinstance(error, SentAway) for error in self.failures.values())

    def failed_at(self) -> str:
        """Who did not let us in and why, for people."""
        return ", ".join(f"{host}:{port} ({_reason(error)})" for (host, port), error in self.failures.items())

    def waits_for(self, left_s: float) -> str:
        """The same before the next round."""
        if self.is_wanted_later():
            return f"no manager lets this worker in: {self.failed_at()}; trying again"
        return f"no manager answers at {self.failed_at()}; trying again for {left_s:.0f} s"

    def failed_within(self, limit_s: float) -> str:
        """The same at the end of all tries."""
        if len(self.failures) > 1:
            return f"no manager answered within {limit_s:g} s at {self.failed_at()}"
        (((host, port), error),) = self.failures.items()
        return f"no manager answered at {host}:{port} within {limit_s:g} s: {_reason(error)}"

    async def reach(self, give_up: float) -> Way | None:
        """Ask each once; None when nobody let us in, or it was told to stop."""
        if not self._goes_on:
            self.failures = {}
            self._waiting = list(self.managers)
        self._goes_on = False
        waiting = self._waiting
        is_only = len(self.managers) == 1
        while waiting and not self._stop.is_set():
            began = time.monotonic()
            limit_s = _share(give_up - began, 0 if is_only else len(waiting))
            host, port = place = waiting.pop(0)
            try:
                return await self._try_place(place, limit_s)
            except (OSError, PeerError) as error:
                self.failures[place] = error
                if isinstance(error, AuthenticationError | VersionError):
                    self._refused(place, error)
                elif waiting and time.monotonic() - began >= LEAST_TRY_S and not self._stop.is_set() and place not in self._slow:
                    self._slow.add(place)
                    self._tell(f"no manager answers at {host}:{port} ({_reason(error)}); trying the next one")
        return None

    def _refused(self, place: Place, error: Exception) -> None:
        self.managers.remove(place)
        text = f"{place[0]}:{place[1]}: {error}" if self._has_several else str(error)
        if self.managers:
            del self.failures[place]
            say(STDERR, f"vine_worker: {text}")
        else:
            self.refusal = text

    async def _try_place(self, place: Place, limit_s: float) -> Way:
        """Every address of its name.

        Raises:
            OSError, PeerError: none let us in; a refusal goes before other reasons.
        """
        until = time.monotonic() + limit_s
        look_up = asyncio.get_running_loop().getaddrinfo(*place, type=socket.SOCK_STREAM)
        try:
            found = await self._in_time(look_up, limit_s)
        except UnicodeError:
            raise PeerError("that is no name of a host") from None
        is_only = len(found) == 1
        error: Exception = PeerError("no address to connect to")
        while found and not self._stop.is_set():
            limit_s = _share(until - time.monotonic(), 0 if is_only else len(found))
            address = found.pop(0)[4]
            try:
                return await self._in_time(self._try_address(place, (str(address[0]), int(address[1]))), limit_s)
            except (OSError, PeerError) as failure:
                if not isinstance(error, AuthenticationError | VersionError):
                    error = failure
        raise error

    async def _in_time(self, work: Awaitable[T], limit_s: float) -> T:
        """Do it, but not for longer than this, and not when told to stop: a host that drops packets says nothing for minutes.

        Raises:
            PeerError: the time is over.
        """
        attempt = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((attempt, stop), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not attempt.done():
            attempt.cancel()
            await asyncio.wait((attempt,))
            if attempt.cancelled():
                raise PeerError("no answer came")
        return attempt.result()

    async def _try_address(self, place: Place, address: Place) -> Way:
        ready: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        disconnected = asyncio.Event()
        made: list[Link] = []

        def on_ready(link: Link) -> None:
            if not ready.done():
                ready.set_result(None)

        def on_lost(link: Link, error: Exception | None) -> None:
            if not ready.done():
                ready.set_result(error or PeerError("the manager closed the connection during the handshake"))
            disconnected.set()

        def handshake(transport: asyncio.Transport) -> Dialer:
            encrypted = transport.get_extra_info("ssl_object")
            binding = b"" if encrypted is None else binding_of(encrypted.getpeercert(True))
            return Dialer(self._secret, os.urandom(32), "worker", binding)

        def make() -> Link:
            made.append(Link(handshake, on_ready, self._on_payloads, on_lost))
            return made[0]

        try:
            if self._tls is None:
                await asyncio.get_running_loop().create_connection(make, *address)
            else:
                await _dial_tls(make, address, *self._tls)
            error = await ready
        except asyncio.CancelledError:
            # Nobody waits for it any more: a manager would count it as a worker that says nothing.
            for link in made:
                link.fail(PeerError("no answer came in time"))
            raise
        if error is not None:
            raise error
        return Way(made[0], place, address, disconnected)


async def _dial_tls(make: Callable[[], Link], address: Place, context: ssl.SSLContext, name: str) -> None:
    """Connect, say in the clear what this will be, and begin TLS when the manager agrees.

    Raises:
        OSError: it cannot be reached, or TLS failed. AuthenticationError: it does not speak TLS.
    """
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, CONTROL_PREAMBLE)
        if await asyncio.wait_for(loop.sock_recv(sock, 1), HANDSHAKE_TIMEOUT_S) != GO_AHEAD:
            raise AuthenticationError("the manager does not speak TLS: start vine_worker without --ssl")
        await loop.create_connection(make, sock=sock, ssl=context, server_hostname=name)
    except BaseException:
        sock.close()
        raise


def _share(left_s: float, count: int) -> float:
    """What the next of so many tries may take; 0: it is the only one, and always was."""
    return max(LEAST_TRY_S, min(MOST_TRY_S, left_s / count) if count else left_s)


def _reason(error: Exception) -> str:
    """Why a connection could not be made, without the address, which is said beside it."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    if isinstance(error, ProtocolError):
        return f"what answers there is no manager of this kind: {error}"
    return str(error)
