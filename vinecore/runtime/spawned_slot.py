"""A slot that is an interpreter of its own, for libraries whose parent has threads and so cannot fork.

    library parent --spawn, descriptors--> this process --loads the library itself--> the usual slot

What it cannot load it says in its last words, a file in memory that the parent reads when it has ended.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys

from vinecore.runtime import error_texts
from vinecore.runtime.forking_slot import ForkingSlot
from vinecore.runtime.library_code import load_functions
from vinecore.runtime.lifeline import die_with_parent
from vinecore.runtime.slot import CLAIM_BYTES, Slot
from vinecore.runtime.streams import fill_streams, flush_streams
from vinecore.wire import messages

CODE = "from vinecore.runtime.spawned_slot import main; main()"


def spawn(begin: messages.Begin, sock_fd: int, claim_fd: int, words_fd: int) -> int:
    """Start one and return its process id. The descriptors stay open here; the child has copies."""
    begin_fd = os.memfd_create("vine-begin", 0)
    try:
        with open(begin_fd, "wb", closefd=False) as file:
            file.write(messages.encode(begin))
        for fd in (sock_fd, claim_fd, words_fd):
            os.set_inheritable(fd, True)
        arguments = [sys.executable, "-c", CODE, *map(str, (begin_fd, sock_fd, claim_fd, words_fd, os.getpid()))]
        environment = {**os.environ, "VINE_EXTRA_PATH": os.pathsep.join(sys.path)}
        flush_streams()
        return os.posix_spawn(sys.executable, arguments, environment, setpgroup=0, setsigdef=[signal.SIGCHLD, signal.SIGTERM])
    finally:
        os.close(begin_fd)


def extend_path() -> None:
    """Let imports find what the process that started this one finds."""
    for path in filter(None, os.environ.pop("VINE_EXTRA_PATH", "").split(os.pathsep)):
        if path not in sys.path:
            sys.path.append(path)


def main() -> None:
    """Entry: descriptors of Begin, socket, claims and last words, then the parent's process id."""
    begin_fd, sock_fd, claim_fd, words_fd, parent_pid = map(int, sys.argv[1:6])
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv = ["vine_library"]
    extend_path()
    code, is_loading = 0, True
    try:
        os.lseek(begin_fd, 0, os.SEEK_SET)
        with open(begin_fd, "rb") as file:
            begin = messages.decode_to_library(file.read())
        assert isinstance(begin, messages.Begin)
        claims = memoryview(mmap.mmap(claim_fd, CLAIM_BYTES)).cast("Q")
        os.close(claim_fd)
        # What calls start must not keep these open, nor write into them.
        for fd in (sock_fd, words_fd):
            os.set_inheritable(fd, False)
        sock = socket.socket(fileno=sock_fd)
        if begin.exec_mode == "fork":
            # Nothing of the user's is loaded here: each call's child does it, and what it starts ends with it.
            slot: Slot = ForkingSlot(sock, claims, begin, {}, lazy=True)
        else:
            slot = Slot(sock, claims, begin, load_functions(begin))
        fill_streams()
        is_loading = False
        slot.say_ready()
        slot.serve()
    except BaseException as error:
        # The worker has gone away; while the library is loaded it is what the user's code talks to.
        if is_loading or not isinstance(error, BrokenPipeError | ConnectionResetError):
            code = 1
            os.write(words_fd, error_texts.line_of(error).encode()[:4000])
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        try:
            flush_streams()
        finally:
            os._exit(code)
