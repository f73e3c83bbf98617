"""The observers' vocabulary: what happened, in past tense. Built only when somebody subscribed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskMoved:
    """A task changed its state."""

    now: float
    task_id: int
    attempt: int
    before: str
    after: str
    why: str


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker said hello."""

    now: float
    worker_id: int
    hostname: str
    cores: int


@dataclass(frozen=True, slots=True)
class WorkerRemoved:
    """A worker is gone; ``lost`` counts the calls it held."""

    now: float
    worker_id: int
    reason: str
    lost: int


@dataclass(frozen=True, slots=True)
class LibraryMoved:
    """An instance of a library changed its state on a worker."""

    now: float
    library: str
    worker_id: int
    state: str
    text: str


Note = TaskMoved | WorkerJoined | WorkerRemoved | LibraryMoved
