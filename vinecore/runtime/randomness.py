"""Why forked slots draw different random numbers.

Slots that are forked after numpy was imported inherit one state of numpy's global generator: each of them seeds it anew.
Python's own ``random`` does so by itself.
"""

from __future__ import annotations

import sys


def reseed() -> None:
    """In a forked child: numpy's global generator starts from fresh entropy, if numpy was imported before the fork."""
    generators = sys.modules.get("numpy.random.mtrand")
    if generators is not None:
        generators.seed()
