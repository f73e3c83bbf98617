"""What Python's own modules do around each fork, put off in forks that have no use for it.

After each fork threading and logging make their locks anew in the child, because another thread may have held them. That touches
about seventy pages, each of which is copied then: a sixth of what a short call in a child of its own costs. In a process that has
one thread, nobody else holds anything. So the parent of slots that fork for each call imports these two modules here, which takes
note of their hooks, and the slots fork with ``lean_fork``; around every other fork, of user code in a child say, the hooks run.

Hooks of all other modules are not touched: ``random`` seeds its generator, and what user code has registered is run. One thing is
different in such a child: ``threading.main_thread().native_id`` is still the slot's, as after any fork in Python 3.11
(``threading.get_native_id()`` asks the kernel); setting it would touch twenty pages.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

# What their hooks are good for is known: see above.
_MODULES = ("threading", "logging")

_before: list[Callable[[], object]] = []
_in_parent: list[Callable[[], object]] = []
_in_child: list[Callable[[], object]] = []
_is_lean = False


def put_off() -> None:
    """Import threading and logging, with hooks that ``lean_fork`` does without. One that is there already keeps its own."""
    modules = [name for name in _MODULES if name not in sys.modules]
    if not modules:
        return
    register = os.register_at_fork
    os.register_at_fork = _note
    try:
        for name in modules:
            importlib.import_module(name)
    finally:
        os.register_at_fork = register
    register(before=_run_before, after_in_parent=_run_in_parent, after_in_child=_run_in_child)


def lean_fork() -> int:
    """Fork a process that has no thread but this one, as ``os.fork`` does."""
    global _is_lean
    _is_lean = True
    try:
        return os.fork()
    finally:
        _is_lean = False


def _note(**hooks: Any) -> None:
    for name, table in (("before", _before), ("after_in_parent", _in_parent), ("after_in_child", _in_child)):
        if name in hooks:
            table.append(hooks[name])
    # The order of os.register_at_fork: what was registered last is first before a fork.
    if "before" in hooks:
        _before.insert(0, _before.pop())


def _run_before() -> None:
    if not _is_lean:
        for hook in _before:
            hook()


def _run_in_parent() -> None:
    if not _is_lean:
        for hook in _in_parent:
            hook()


def _run_in_child() -> None:
    if not _is_lean:
        for hook in _in_child:
            hook()
