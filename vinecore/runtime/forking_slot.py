"""A slot that forks a child for each call: what the call changes is lost with it, what kills it kills only it.

The child writes its Result to a pipe and exits; the slot reads to the end of the pipe, reaps, and reports. A child that leaves no Result was
killed or left on its own (``os._exit``): the call counts as lost.
"""

from __future__ import annotations

import os
import signal
import sys
from time import perf_counter

from vinecore.runtime.slot import Slot
from vinecore.wire import messages
from vinecore.wire.messages import Call, Result

_READ_BYTES = 65536


class ForkingSlot(Slot):
    """Runs every call in a child of its own."""

    def execute(self, call: Call) -> Result:
        """Fork, let the child run the call, take over its Result."""
        started = perf_counter()
        receive, send = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._child(call, receive, send)
        os.close(send)
        parts = []
        while data := os.read(receive, _READ_BYTES):
            parts.append(data)
        os.close(receive)
        _, status = os.waitpid(pid, 0)
        results = b"".join(parts)
        if results:
            done = messages.decode_from_slot(results)
            assert isinstance(done, messages.Done)
            result = done.results[0]
        else:
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            result = Result(call.task_id, call.attempt, messages.LOST, 0, f"its process {how}".encode())
        result.duration_us = int((perf_counter() - started) * 1e6)
        return result

    def _child(self, call: Call, receive: int, send: int) -> None:
        """Run the call, write its Result, leave without the slot's clean-up."""
        code = 1
        try:
            os.close(receive)
            self.sock.close()
            result = super().execute(call)
            data = memoryview(messages.encode(messages.Done([result])))
            while data:
                data = data[os.write(send, data) :]
            code = 0
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
