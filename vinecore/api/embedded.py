"""The embedded worker: ``vine_worker`` exec'd from the user's process, on loopback, with the run's own secret.

It ends with us: its lifeline is a pipe whose other end only this process holds. Nothing of HOME is touched, the user's process
is never forked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys

from vinecore.runtime.ends import end_text
from vinecore.runtime.places import remove_tree

_CODE = "import sys; from vinecore.cli.worker import main; sys.exit(main())"
# After a polite request to end, a worker gets this long before it is killed.
END_GRACE_S = 5.0
# Between the end of its link and that of its process may lie this much; one that lives longer is frozen or stuck.
LINK_GRACE_S = 1.0


class EmbeddedWorker:
    """A worker process of this machine; ``stop`` ends it with its tree.

    Parameters:
        port: of the manager, on loopback.
        secret: of the run; handed over through an inherited descriptor.
        cores: number of cores it offers.
        extra: more command-line arguments.
    """

    def __init__(self, port: int, secret: bytes | None, cores: int, extra: tuple[str, ...] = ()) -> None:
        self.cores = cores
        self.extra = extra
        # Chosen here, so that it can be removed when the worker was killed and could not do so.
        base = os.environ.get("TMPDIR") or "/tmp"
        self._workspace = os.path.join(base, f"vine-worker-{os.getuid()}-{os.urandom(6).hex()}")
        secret_read, secret_write = _pipe()
        lifeline_read, self._lifeline = _pipe()
        os.write(secret_write, secret or b"")
        os.close(secret_write)
        # Where this process finds modules the worker's libraries must find them too.
        paths = [os.path.abspath(path) for path in sys.path if path != "" and os.path.isdir(path)]
        with contextlib.suppress(FileNotFoundError):  # the current directory may have been removed
            paths.insert(0, os.getcwd())
        environment = {**os.environ, "VINE_EXTRA_PATH": os.pathsep.join(paths)}
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"import sys; sys.path.append({root!r}); {_CODE}",
                    "127.0.0.1",
                    str(port),
                    *("--secret-fd", str(secret_read), "--lifeline-fd", str(lifeline_read)),
                    *("--cores", str(cores), "--gpus", "0", "--single-shot", "--idle-timeout", "1e9"),
                    *("--min-backoff", "0.05", "--connect-timeout", "60"),
                    *("--workspace", self._workspace),
                    *extra,
                ],
                pass_fds=(secret_read, lifeline_read),
                stdin=subprocess.DEVNULL,
                # Closed at our start, the number may be a socket's by now.
                stdout=None if sys.__stdout__ is not None else subprocess.DEVNULL,
                stderr=None if sys.__stderr__ is not None else subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(secret_read)
            os.close(lifeline_read)

    def end_text(self) -> str:
        """How it ended, for people; empty while it lives."""
        try:
            code = self.process.wait(LINK_GRACE_S)
        except subprocess.TimeoutExpired:
            return ""
        return end_text(code)

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL after the grace. Safe to call twice."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                self.process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if os.path.isdir(self._workspace):
            # It was killed: an orderly end removes its own.
            remove_tree(self._workspace)
        self.close_lifeline()

    def close_lifeline(self) -> None:
        """Let go of the pipe; the worker ends when nobody holds it."""
        if self._lifeline >= 0:
            fd, self._lifeline = self._lifeline, -1
            os.close(fd)


def _pipe() -> tuple[int, int]:
    """A pipe whose numbers are none of the standard ones, which a program may have closed."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))
        os.close(end)
    return ends[0], ends[1]
