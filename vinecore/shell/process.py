"""Library parents and their slots as the worker's loop sees them: start, descriptors, claims, end."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from vinecore.shell.local_link import SOCKET_BUFFER_BYTES, LocalLink
from vinecore.worker.state import NOT_REVOKED

CLAIM_BYTES = 16
# A parent that was told to end gets this long before it is killed.
END_GRACE_S = 2.0
_HOST_CODE = "from vinecore.runtime.library_host import main; main()"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "MKL_NUM_THREADS")


class HostProcess:
    """An exec'd interpreter that becomes the parent of a library's slots."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # Set before any import of user code: numerical libraries read them once.
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOST_CODE, str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self.sock = ours
        self.link: LocalLink | None = None

    def end_text(self) -> str:
        """How it ended, for people; call it when its socket has closed."""
        try:
            code = self.process.wait(END_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def ask_end(self) -> None:
        """Close the socket: the parent then kills its slots and exits."""
        if self.link is not None:
            self.link.close()
        else:
            self.sock.close()


class SlotProcess:
    """The worker's end of one slot: socket, claims, pid once it is known."""

    def __init__(self) -> None:
        self.sock, self._theirs = socket.socketpair()
        for end in (self.sock, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._claim_fd = os.memfd_create("vine-claims", os.MFD_CLOEXEC)
        os.ftruncate(self._claim_fd, CLAIM_BYTES)
        self._map = mmap.mmap(self._claim_fd, CLAIM_BYTES)
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


def kill_group(pid: int) -> None:
    """SIGKILL to a process and its group; one that is gone is no error."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def open_descendants() -> list[int]:
    """Handles (pidfds) of every process below this one; they name the process even after its parent and its number are gone."""
    opened: list[int] = []
    pending = [os.getpid()]
    while pending:
        pid = pending.pop()
        try:
            lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        except OSError:
            continue  # it has just ended
        for child in map(int, " ".join(lists).split()):
            pending.append(child)
            with contextlib.suppress(OSError):
                opened.append(os.pidfd_open(child))
    return opened


def end_opened(opened: list[int]) -> None:
    """SIGKILL to the processes of these handles that still live; closes the handles."""
    for handle in opened:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


def end_hosts(hosts: list[HostProcess], slot_pids: list[int]) -> None:
    """End parents and slots, all of them, within the grace; called when the worker leaves."""
    for host in hosts:
        host.ask_end()
    for pid in slot_pids:
        kill_group(pid)
    deadline = time.monotonic() + END_GRACE_S
    for host in hosts:
        try:
            host.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            host.process.kill()
            host.process.wait()
