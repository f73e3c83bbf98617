"""(state, cause) -> state for tasks and library instances: data only. The diagrams in docs/task-life.md are generated from it."""

from __future__ import annotations

# Task states. Plain strings: they are compared by identity, print well, and need no lookup on the hot path.
NEW = "new"
WAITING = "waiting"  # some input is not available
READY = "ready"  # could run now
PLACED = "placed"  # sent to a worker, or waiting there
FINISHED = "finished"  # has its outcome

TASK: dict[tuple[str, str], str] = {
    (NEW, "submitted"): WAITING,
    (WAITING, "inputs available"): READY,
    (READY, "input lost"): WAITING,
    (WAITING, "bundled"): PLACED,
    (READY, "placed"): PLACED,
    (PLACED, "lost"): WAITING,
    (PLACED, "handed back"): WAITING,
    (PLACED, "raised, retries left"): WAITING,
    (PLACED, "done"): FINISHED,
    (PLACED, "failed"): FINISHED,
    (WAITING, "failed"): FINISHED,
    (READY, "failed"): FINISHED,
    (WAITING, "cancelled"): FINISHED,
    (READY, "cancelled"): FINISHED,
    (PLACED, "cancelled"): FINISHED,
    (FINISHED, "output lost"): WAITING,
}

STARTING = "starting"
UP = "up"
GONE = "gone"

INSTANCE: dict[tuple[str, str], str] = {
    (STARTING, "ready"): UP,
    (STARTING, "failed"): GONE,
    (STARTING, "worker left"): GONE,
    (UP, "failed"): GONE,
    (UP, "removed"): GONE,
    (UP, "worker left"): GONE,
}
