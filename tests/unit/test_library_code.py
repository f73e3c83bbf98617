"""Whether a library's parent may be forked: threads that are ending must not forbid it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vinecore.runtime import library_code

# A thread that Python's threading does not list, as one that was joined just now; the first pause sees it end.
ENDING = """
import _thread, os, time
from vinecore.runtime import library_code

gate = _thread.allocate_lock()
pauses = []

def pause(pause_s, sleep=time.sleep):
    pauses.append(pause_s)
    if len(pauses) == 1:
        gate.release()
        while len(os.listdir("/proc/self/task")) > 1:
            sleep(0.001)

gate.acquire()
_thread.start_new_thread(gate.acquire, ())
time.sleep = pause
assert len(library_code.threads_beside()) == 1 and not pauses
assert library_code.why_unsafe() == "", library_code.why_unsafe()
assert len(pauses) == 1
"""


def test_a_thread_that_is_ending_forbids_no_fork() -> None:
    """The kernel lists a thread a moment longer than its join lasts, so libraries whose context had a pool were not forked, by
    chance."""
    subprocess.run([sys.executable, "-c", ENDING], check=True, timeout=60)


@pytest.mark.parametrize(
    ("looks", "pauses", "text"),
    [
        ([([], [])], 0, ""),
        ([(["mine"], [])], 0, "its context or a module that it imports started 1 thread (mine)"),
        ([(["mine"], ["python"]), (["mine"], [])], 1, "its context or a module that it imports started 1 thread (mine)"),
        ([([], ["python"]), ([], ["python"]), ([], [])], 2, ""),
        ([([], ["native", "native"])] * 20, 6, "its context or a module that it imports started 2 threads (native, native)"),
    ],
)
def test_how_often_threads_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, looks: list[tuple[list[str], list[str]]], pauses: int, text: str
) -> None:
    paused: list[float] = []
    monkeypatch.setattr(library_code.time, "sleep", paused.append)
    monkeypatch.setattr(library_code, "_look_for_threads", iter(looks).__next__)
    assert library_code.why_unsafe() == text
    assert len(paused) == pauses and sum(paused) < 0.1
