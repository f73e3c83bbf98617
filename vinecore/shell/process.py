"""Library parents and their slots as the worker's loop sees them: start, descriptors, claims, end."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vinecore.shell.descriptors import restore_descriptors
from vinecore.shell.guard import VARIABLE, marks_with
from vinecore.shell.local_link import SOCKET_BUFFER_BYTES, LocalLink
from vinecore.shell.own_words import STDERR, say
from vinecore.wire import messages
from vinecore.worker.state import NOT_REVOKED

CLAIM_BYTES = 16
# A parent that was told to end gets this long before it is killed.
END_GRACE_S = 2.0
# A slot whose socket closed is reaped by its parent within this time, or nobody knows how it ended.
EXIT_WAIT_S = 0.25
# The end of what a failed init command said goes into the error.
INIT_TEXT_BYTES = 2000
_INIT_HINT = (
    " (the init_command is put in front of the interpreter's command line, which has not run:"
    " let it end with '&&', or be a program that runs the command line after it)"
)
_CLOSED_HINT = (
    " (code of the library most likely closed descriptors that it had not opened, as os.closerange(3, 100) does:"
    " the connection to the worker is one of them)"
)
_HOST_CODE = "from vinecore.runtime.library_host import main; main()"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "MKL_NUM_THREADS")


class HostProcess:
    """An exec'd interpreter that becomes the parent of a library's slots.

    Parameters:
        temporary: directory for temporary files of user code.
        remove_files: removes the files of its library, given its process id.
        mark: by which the worker's guard knows what runs on behalf of its calls.
    """

    def __init__(self, temporary: str, remove_files: Callable[[int], None], mark: str) -> None:
        ours, theirs = socket.socketpair()
        # Set before any import of user code: numerical libraries read them once.
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1"), "TMPDIR": temporary, VARIABLE: marks_with(mark)}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _HOST_CODE, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=environment,
                # What its library's code or init command starts is in its group, and ends with it.
                process_group=0,
            )
            try:
                # Readable when it has ended. Its socket may live on without it, in something that its library's context forked.
                self.handle = os.pidfd_open(self.process.pid)
            except OSError:
                self.process.kill()
                self.process.wait()
                raise
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        restore_descriptors(self.process.pid)
        self.sock = ours
        self.link: LocalLink | None = None
        # It had to be killed, as it did not end by itself.
        self.was_killed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._remove_files = remove_files
        # What the library's init command says, until the command has ended well (the parent writes and removes it).
        self._init_log = Path(temporary) / f"init-{self.process.pid}.log"

    def connect(
        self, loop: asyncio.AbstractEventLoop, said: Callable[[list[bytes]], None], gone: Callable[[], None]
    ) -> LocalLink:
        """Begin to listen; ``gone`` is called when it has closed its socket, and when it has ended."""
        link = self.link = LocalLink(loop, self.sock, said, gone)
        self._loop = loop

        def ended() -> None:
            loop.remove_reader(self.handle)
            link.read_rest()
            gone()

        loop.add_reader(self.handle, ended)
        return link

    def end(self, limit_s: float) -> int:
        """Give it so much time to end by itself, then end it and what is left of its group; returns its exit code."""
        if self.process.returncode is None:
            poll = select.poll()
            poll.register(self.handle, select.POLLIN)
            self.was_killed = not poll.poll(limit_s * 1000)
            # Before its number is free for others.
            kill_group(self.process.pid)
            self.process.wait()
            os.close(self.handle)
        return self.process.returncode

    def end_text(self) -> str:
        """How it ended, for people; call it when its socket has closed."""
        code = self.end(END_GRACE_S)
        said = self._init_text()
        if not said and (self.was_killed or code == messages.NO_CHANNEL):
            how = "closed its connection to the worker, and was ended" if self.was_killed else end_text(code)
            return f"its process {how}{_CLOSED_HINT}"
        return f"its process {end_text(code)}{said}{_INIT_HINT if said and code == 0 else ''}"

    def remove_files(self) -> None:
        """Remove its library's directory, if it could not do so itself; call it when it has ended, in a thread that may block."""
        self._remove_files(self.process.pid)

    def end_and_clean(self) -> None:
        """Wait for its end, in a thread that may block; nobody asks how it was."""
        self.end_text()
        self.remove_files()

    def _init_text(self) -> str:
        try:
            with open(self._init_log, "rb") as log:
                log.seek(-min(INIT_TEXT_BYTES, log.seek(0, os.SEEK_END)), os.SEEK_END)
                said = log.read(INIT_TEXT_BYTES)
            self._init_log.unlink()
        except OSError:
            return ""
        say(STDERR, said.decode(errors="replace").removesuffix("\n"))
        return f" in its init_command: {said.decode(errors='replace').strip() or 'it said nothing'}"

    def ask_end(self) -> None:
        """Close the socket: the parent then kills its slots and exits. Safe to call twice."""
        if self._loop is not None:
            self._loop.remove_reader(self.handle)
            self._loop = None
        if self.link is not None:
            self.link.close()
        else:
            self.sock.close()


class SlotProcess:
    """The worker's end of one slot: socket, claims, pid once it is known."""

    def __init__(self) -> None:
        self.sock, self._theirs = socket.socketpair()
        try:
            for end in (self.sock, self._theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            self._claim_fd = os.memfd_create("vine-claims", os.MFD_CLOEXEC)
        except OSError:
            self.sock.close()
            self._theirs.close()
            raise
        os.ftruncate(self._claim_fd, CLAIM_BYTES)
        try:
            self._map = mmap.mmap(self._claim_fd, CLAIM_BYTES)
        except OSError:
            self.sock.close()
            self.sent()
            raise
        self.claims = memoryview(self._map).cast("Q")
        self.claims[0] = NOT_REVOKED  # nothing started yet
        self.claims[1] = NOT_REVOKED
        self.link: LocalLink | None = None
        self.pid = 0
        self.kill_wanted = False

    def descriptors(self) -> tuple[int, int]:
        """What the slot needs: its end of the socket and the claims."""
        return self._theirs.fileno(), self._claim_fd

    def sent(self) -> None:
        """The descriptors are on their way: close our copies."""
        self._theirs.close()
        os.close(self._claim_fd)

    def kill(self) -> None:
        """Kill the slot with everything it started; remembered when the pid is not known yet."""
        if self.pid:
            kill_group(self.pid)
        else:
            self.kill_wanted = True

    def close(self) -> None:
        """Let go of the socket and the claims."""
        if self.link is not None:
            self.link.close()
        self.claims.release()
        self._map.close()


class SlotEnds:
    """Brings together the two ends of a slot: its socket closes here, and its parent tells how the process ended.

    A socket may stay open when the process has ended: what a call forked without exec has it too. What is left to read gets a
    short time then.

    Parameters:
        held: called with the id of a slot that ended, and whose socket is still open after that time; it closes it.
        report: called once for each slot that ended, with its id, the last number it had claimed, and how it ended ("" if
            nobody told).
    """

    def __init__(self, held: Callable[[int], None], report: Callable[[int, int, str], None]) -> None:
        self._held = held
        self._report = report
        # How those ended whose sockets have not been seen to close, and what looks after these.
        self._codes: dict[int, tuple[str, asyncio.TimerHandle]] = {}
        self._closed: dict[int, tuple[int, asyncio.TimerHandle]] = {}

    def closed(self, loop: asyncio.AbstractEventLoop, slot_id: int, started: int) -> None:
        """Its socket closed; its parent is waited for, for a short time."""
        if slot_id in self._codes:
            how, timer = self._codes.pop(slot_id)
            timer.cancel()
            self._report(slot_id, started, how)
        else:
            self._closed[slot_id] = started, loop.call_later(EXIT_WAIT_S, self._untold, slot_id)

    def exited(self, loop: asyncio.AbstractEventLoop, message: messages.SlotExited, still_open: bool) -> None:
        """Its parent reaped it, or could not make it. ``still_open``: its socket has not been seen to close yet."""
        slot_id, words = message.slot_id, message.text
        how = ": ".join(filter(None, (end_text(message.status) if message.pid else "", words)))
        if slot_id in self._closed:
            started, timer = self._closed.pop(slot_id)
            timer.cancel()
            self._report(slot_id, started, how)
        elif still_open:
            self._codes[slot_id] = how, loop.call_later(EXIT_WAIT_S, self._held, slot_id)

    def dropped(self, slot_id: int) -> None:
        """Nobody waits for it any more."""
        if slot_id in self._codes:
            self._codes.pop(slot_id)[1].cancel()

    def _untold(self, slot_id: int) -> None:
        started, _ = self._closed.pop(slot_id)
        self._report(slot_id, started, "")

    def clear(self) -> None:
        """The manager is gone: nobody is told any more."""
        for _, timer in [*self._closed.values(), *self._codes.values()]:
            timer.cancel()
        self._closed.clear()
        self._codes.clear()


def end_text(code: int) -> str:
    """What an exit code says; a negative one is that of the signal which killed the process. Most real-time ones have no name."""
    if code >= 0:
        return f"ended with exit code {code}"
    named = -code in set(signal.Signals)
    return f"was killed by {signal.Signals(-code).name if named else f'signal {-code}'}"


def kill_group(pid: int) -> None:
    """SIGKILL to a process and its group; one that is gone is no error."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def end_hosts(hosts: list[HostProcess], slot_pids: list[int]) -> None:
    """End parents and slots, all of them, within the grace; called when the worker leaves."""
    for host in hosts:
        host.ask_end()
    for pid in slot_pids:
        kill_group(pid)
    deadline = time.monotonic() + END_GRACE_S
    for host in hosts:
        host.end(max(0.0, deadline - time.monotonic()))
        host.remove_files()
