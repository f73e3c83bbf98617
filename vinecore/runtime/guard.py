"""The process that outlives a forking slot by a moment: it ends what the slot's task had started, and removes its sandbox.

    slot --fork--> guard, waiting for the end of a pipe that only the slot holds
    slot killed (with its worker, or to cancel a call) --> guard: kill the task's group and whoever lives in its
                                                           sandbox, remove that, exit

A slot that is killed cannot clean up, and the kernel's wish to die with the parent does not reach grandchildren: without the
guard ``make -j`` of a lost worker would go on. It runs no user code and never speaks to anybody.
"""

from __future__ import annotations

import mmap
import os
import signal

from vinecore.runtime.places import Place

_GROUP_BYTES = 8


class Guard:
    """The slot's side: start it once, then note which process group is the running task's.

    Parameters:
        sandboxes: directory whose content is the slot's alone.
    """

    def __init__(self, sandboxes: Place) -> None:
        self._map = mmap.mmap(-1, _GROUP_BYTES)
        # The group of the running task; 0: none.
        self.group = memoryview(self._map).cast("Q")
        # In a child of the slot: close it, since only the slot may keep the guard waiting.
        receive, self.alive_fd = os.pipe()
        slot = os.getpid()
        # Forked twice: the slot takes every child of its own for something that a task left behind.
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                self._watch(receive, slot, sandboxes)
            os._exit(0)
        os.waitpid(between, 0)
        os.close(receive)

    def _watch(self, receive: int, slot: int, sandboxes: Place) -> None:
        """Wait for the slot's end, in a session of its own: what kills the slot's group must not reach this."""
        try:
            os.setsid()
            os.dup2(receive, 0)
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            while os.read(0, 1):
                pass
            kill_group(slot)
            kill_group(self.group[0])
            if _content(str(sandboxes.path)):
                _end_dwellers(str(sandboxes.path))
            # What a task has moved away goes with the worker.
            sandboxes.remove_all()
        finally:
            os._exit(0)


def kill_group(group: int) -> None:
    """SIGKILL to a process group; 0 and one that is gone are no error."""
    if group:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _content(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _end_dwellers(directory: str) -> None:
    """SIGKILL to every process whose working directory is in there: those that left the task's group."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if os.readlink(f"/proc/{name}/cwd").startswith(directory + "/"):
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                continue
