"""Writes docs/task-life.md from the transition tables, so that the picture cannot differ from the program.

``python docs/make_diagrams.py`` rewrites the page; a test calls ``page()`` and compares.
"""

from __future__ import annotations

from pathlib import Path

from vinecore.manager.transitions import INSTANCE, TASK

PAGE = Path(__file__).parent / "task-life.md"

_HEAD = """# The life of a task

Generated from `vinecore/manager/transitions.py` by `docs/make_diagrams.py`; change the table, not this page.

A task's *state* says where it is, its *outcome* (value, exception, lost, cancelled) how it ended: they are never mixed.
`attempt` grows at each placing, and whatever an older attempt still says is dropped by comparison. There is no state
"cancelled": a cancelled task is finished, and its worker is told to give the attempt up.

What users see in `task.state`: INITIAL for new, READY for waiting and ready, RUNNING for placed, RETRIEVED for finished, DONE
once `wait` has returned it.
"""


def _diagram(title: str, table: dict[tuple[str, str], str]) -> str:
    rows = "\n".join(f"    {before} --> {after}: {cause}" for (before, cause), after in table.items())
    return f"\n## {title}\n\n```mermaid\nstateDiagram-v2\n{rows}\n```\n"


def page() -> str:
    """The text of docs/task-life.md."""
    return _HEAD + _diagram("Tasks", TASK) + _diagram("Library instances on a worker", INSTANCE)


if __name__ == "__main__":
    PAGE.write_text(page())
