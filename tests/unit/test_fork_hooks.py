"""Forks of a slot do without the hooks of threading and logging; all other forks, and all other hooks, are as ever."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

START = """
    import os, sys
    from vinecore.runtime import fork_hooks

    def in_child(fork, ask):
        read, write = os.pipe()
        pid = fork()
        if pid == 0:
            os.write(write, repr(ask()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        return eval(open(read, "rb").read())
"""


def run(script: str) -> str:
    """What the script prints; a process of its own, since hooks cannot be taken back."""
    code = textwrap.dedent(START) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_runtime_leaves_threading_to_be_imported_that_way() -> None:
    assert (
        run("import vinecore.runtime.library_host; print('threading' in sys.modules, 'logging' in sys.modules)")
        == "False False\n"
    )


@pytest.mark.parametrize("fork, is_new", [("fork_hooks.lean_fork", False), ("os.fork", True)])
def test_threading_makes_its_locks_anew_in_usual_forks_only(fork: str, is_new: bool) -> None:
    script = f"""
        fork_hooks.put_off()
        import threading
        before = threading._active_limbo_lock
        print(in_child({fork}, lambda: threading._active_limbo_lock is not before))
    """
    assert run(script) == f"{is_new}\n"


@pytest.mark.parametrize("fork", ["fork_hooks.lean_fork", "os.fork"])
def test_hooks_of_others_run_in_every_fork(fork: str) -> None:
    script = f"""
        fork_hooks.put_off()
        import random
        seen = []
        os.register_at_fork(
            before=lambda: seen.append("before"),
            after_in_child=lambda: seen.append("child"),
            after_in_parent=lambda: seen.append("parent"),
        )
        random.seed(1)
        state = random.getstate()
        print(in_child({fork}, lambda: (seen, random.getstate() != state)), seen)
    """
    assert run(script) == "(['before', 'child'], True) ['before', 'parent']\n"


def test_the_locks_of_logging_are_held_during_a_usual_fork_and_free_after_it() -> None:
    script = """
        fork_hooks.put_off()
        import logging
        calls = []
        real = logging._acquireLock if hasattr(logging, "_acquireLock") else logging._lock.acquire
        print(fork_hooks._before == [real], len(fork_hooks._in_parent), len(fork_hooks._in_child))

        def log():
            logging.getLogger().addHandler(logging.NullHandler())
            logging.warning("in a child")
            return "logged"
        print(in_child(os.fork, log), in_child(fork_hooks.lean_fork, log), log())
    """
    assert run(script) == "True 1 2\nlogged logged logged\n"


def test_a_thread_of_a_usual_fork_in_a_lean_child_is_forgotten_there() -> None:
    script = """
        fork_hooks.put_off()
        import threading

        def ask():
            release = threading.Event()
            thread = threading.Thread(target=release.wait)
            thread.start()
            inner = in_child(os.fork, threading.active_count)
            counted = threading.active_count()
            release.set()
            thread.join()
            return inner, counted
        print(in_child(fork_hooks.lean_fork, ask))
    """
    assert run(script) == "(1, 2)\n"


def test_a_module_that_is_there_already_keeps_its_hooks() -> None:
    script = """
        import threading
        register = os.register_at_fork
        fork_hooks.put_off()
        fork_hooks.put_off()
        before = threading._active_limbo_lock
        print(in_child(fork_hooks.lean_fork, lambda: threading._active_limbo_lock is not before), os.register_at_fork is register)
    """
    assert run(script) == "True True\n"


def test_a_fork_that_fails_leaves_usual_ones_usual() -> None:
    script = """
        fork_hooks.put_off()
        import threading
        real = os.fork

        def refuse():
            raise BlockingIOError(11, "Resource temporarily unavailable")
        os.fork = refuse
        try:
            fork_hooks.lean_fork()
        except BlockingIOError:
            pass
        os.fork = real
        before = threading._active_limbo_lock
        print(in_child(os.fork, lambda: threading._active_limbo_lock is not before))
    """
    assert run(script) == "True\n"
