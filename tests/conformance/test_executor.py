"""CPython's own executor suite, taken from the installed interpreter, against ``FuturesExecutor``.

The suite is imported, never copied: one module up to Python 3.11, a package later. Distributions often leave it out; then this
module is skipped. What it checks of private parts of the standard library's executors has no counterpart here: not collected.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from daskvine import FuturesExecutor

PACKAGE = "test.test_concurrent_futures"
MISSING = "this Python was installed without its test suite (Debian: package libpython3-testsuite)"

try:
    suite: ModuleType = importlib.import_module(PACKAGE)
    support: Any = importlib.import_module("test.support")
    script_helper: Any = importlib.import_module("test.support.script_helper")
except ImportError:
    pytest.skip(MISSING, allow_module_level=True)

# Tests that expect a call submitted at once to have started when the next line runs: there the worker is up before they begin.
WARMED = {"test_cancel_futures"}


def part(module: str, name: str) -> Any:
    """A name of the suite, wherever this Python keeps it."""
    home = importlib.import_module(f"{PACKAGE}.{module}") if hasattr(suite, "__path__") else suite
    return getattr(home, name)


def run_with_ours(*arguments: str, **variables: str) -> Any:
    """``assert_python_ok`` whose script finds our executor where it asks for one of the standard library."""
    asked, given = "from concurrent.futures import FuturesExecutor", "from daskvine import FuturesExecutor"
    found = [text.replace(asked, given) for text in arguments]
    path = os.pathsep.join(filter(None, sys.path))
    return script_helper.assert_python_ok(*found, __isolated=False, PYTHONPATH=path, **variables)


class Ours(part("util", "ExecutorMixin")):  # type: ignore[misc]
    """The suite's fixture with our executor."""

    executor_type = FuturesExecutor

    def setUp(self) -> None:
        # Set by the suite's own checks, which only warn: threads or children that a test left behind.
        support.environment_altered = False
        super().setUp()
        if self._testMethodName in WARMED:
            self.assertEqual(self.executor.submit(abs, -1).result(timeout=30), 1)

    def tearDown(self) -> None:
        super().tearDown()
        self.assertFalse(support.environment_altered, "the test left a thread or a process behind")


base = part("util", "BaseTestCase")


class ExecutorTest(Ours, part("executor", "ExecutorTest"), base):  # type: ignore[misc]
    """Submit, map, references, arguments of the constructor."""


class ShutdownTest(Ours, part("test_shutdown", "ExecutorShutdownTest"), base):  # type: ignore[misc]
    """Shutdown in all its forms, and the end of the interpreter."""

    @pytest.fixture(autouse=True)
    def _scripts_find_ours(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        home = sys.modules[part("test_shutdown", "ExecutorShutdownTest").__module__]
        monkeypatch.setattr(home, "assert_python_ok", run_with_ours)
        yield

    def test_context_manager_shutdown(self) -> None:
        """As the suite has it for both executors of the standard library, without their private parts."""
        with FuturesExecutor(max_workers=2) as executor:
            self.assertEqual(list(executor.map(abs, range(-5, 5))), [5, 4, 3, 2, 1, 0, 1, 2, 3, 4])
        assert executor.engine.embedded is not None
        self.assertIsNotNone(executor.engine.embedded.process.returncode)

    def test_del_shutdown(self) -> None:
        """Dropping an executor ends its processes; what was submitted before is computed."""
        executor = FuturesExecutor(max_workers=2)
        results = executor.map(abs, range(-5, 5))
        engine = executor.engine
        del executor
        self.assertEqual(list(results), [5, 4, 3, 2, 1, 0, 1, 2, 3, 4])
        del results
        self.assertTrue(ended(engine), "its worker outlived the executor")

    def test_shutdown_no_wait(self) -> None:
        """``shutdown(wait=False)`` ends the processes when the work is done."""
        executor = FuturesExecutor(max_workers=2)
        results = executor.map(abs, range(-5, 5))
        executor.shutdown(wait=False)
        self.assertTrue(ended(executor.engine), "its worker outlived the executor")
        self.assertEqual(list(results), [5, 4, 3, 2, 1, 0, 1, 2, 3, 4])


class WaitTest(Ours, part("test_wait", "WaitTests"), base):  # type: ignore[misc]
    """``concurrent.futures.wait`` with our futures among others."""


class AsCompletedTest(Ours, part("test_as_completed", "AsCompletedTests"), base):  # type: ignore[misc]
    """``concurrent.futures.as_completed`` with our futures among others."""


def ended(engine: Any) -> bool:
    """Wait until the threads of an executor have ended and its worker is gone; False when that takes too long."""
    pause = threading.Event()
    for _ in range(3000):
        if engine.closed and engine.embedded.process.returncode is not None:
            return not any(thread.name == "vine-close" and thread.join(10) for thread in threading.enumerate())
        pause.wait(0.01)
    return False
