"""Names of things as distinct types, so that a task id cannot be passed where a worker id is meant."""

from __future__ import annotations

from typing import NewType

TaskId = NewType("TaskId", int)
WorkerId = NewType("WorkerId", int)
LibraryId = NewType("LibraryId", int)
CodeId = NewType("CodeId", int)
SlotId = NewType("SlotId", int)
CacheName = NewType("CacheName", str)
