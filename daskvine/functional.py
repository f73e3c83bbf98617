"""``map``, ``pair``, ``tree_reduce`` over a manager, and the ``Manager`` that has them.

Chunks are calls of the engine; partial values of a tree stay on workers and move as inputs of the next level.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from daskvine.futures import FuturesExecutor, VineFuture
from vinecore import Manager as CoreManager
from vinecore.errors import UsageError


class Manager(CoreManager):
    """vinecore's Manager with the functional helpers."""

    def map(self, fn: Callable[[Any], Any], seq: Sequence[Any], chunksize: int = 1) -> list[Any]:
        """``[fn(x) for x in seq]``, ``chunksize`` consecutive items to a call. After an error or Ctrl-C, the rest is cancelled.

        Raises:
            UsageError: chunksize below 1. Exception: what ``fn`` raised.
        """
        chunks = _chunks(list(seq), _checked(chunksize, 1))
        with _all_or_none() as submitted:
            for chunk in chunks:
                submitted.append(self._executor.submit(_map_chunk, fn, chunk))
            return [value for future in submitted for value in future.result()]

    def pair(
        self, fn: Callable[[tuple[Any, Any]], Any], seq1: Sequence[Any], seq2: Sequence[Any], chunksize: int = 1
    ) -> list[Any]:
        """``[fn((a, b)) for a in seq1 for b in seq2]``; ``fn`` takes one tuple.

        Raises:
            UsageError: chunksize below 1. Exception: what ``fn`` raised.
        """
        return self.map(fn, list(itertools.product(seq1, seq2)), chunksize)

    def tree_reduce(self, fn: Callable[[list[Any]], Any], seq: Sequence[Any], chunksize: int = 2) -> Any:
        """Replace chunks of the sequence by ``fn(chunk)`` until one value is left; ``fn`` takes one list.

        A sequence of one item is that item. Levels are submitted at once: values between them stay on the workers. After an error
        or Ctrl-C, the rest is cancelled.

        Raises:
            IndexError: the sequence is empty. UsageError: chunksize below 2. Exception: what ``fn`` raised.
        """
        size = _checked(chunksize, 2)
        level: list[Any] = list(seq)
        if not level:
            raise IndexError("tree_reduce of an empty sequence has no value")
        if len(level) == 1:
            return level[0]
        with _all_or_none() as submitted:
            while len(level) > 1:
                start = len(submitted)
                for chunk in _chunks(level, size):
                    submitted.append(self._executor.submit(fn, chunk))
                level = submitted[start:]
            return level[0].result()

    @property
    def _executor(self) -> FuturesExecutor:
        executor = self.__dict__.get("_functional")
        if executor is None:
            executor = self.__dict__["_functional"] = FuturesExecutor(manager=self)
        return executor


@contextlib.contextmanager
def _all_or_none() -> Iterator[list[VineFuture]]:
    """A list for futures: on an error, also one of submitting, those that have not been sent to a worker are cancelled."""
    futures: list[VineFuture] = []
    try:
        yield futures
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _checked(chunksize: int, least: int) -> int:
    if isinstance(chunksize, bool) or not isinstance(chunksize, int) or chunksize < least:
        raise UsageError(f"chunksize must be a whole number >= {least}, not {chunksize!r}")
    return chunksize


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _map_chunk(fn: Callable[[Any], Any], chunk: list[Any]) -> list[Any]:
    return [fn(item) for item in chunk]
