"""A progress bar for ``get``: it only looks. Shown on a terminal when the package rich is there."""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import TracebackType
from typing import Any

from daskvine.options import GetOptions
from vinecore.api.graphs import GraphSubmission

REFRESH_S = 0.2


class Progress:
    """Show how many vertices of a graph are done while the block runs."""

    def __init__(self, graph: GraphSubmission, size: int, options: GetOptions) -> None:
        self._graph = graph
        self._size = size
        self._label = options.progress_label
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted = not options.progress_disable and sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._wanted and importlib.util.find_spec("rich") is not None:
            self._thread = threading.Thread(target=self._show, name="vine-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()

    def _show(self) -> None:
        # A get that is over before the first look shows nothing.
        if self._stop.wait(REFRESH_S):
            return
        from rich.console import Console
        from rich.progress import Progress as Bar

        bar: Any
        with Bar(console=Console(stderr=True), transient=False) as bar:
            task = bar.add_task(self._label, total=self._size)
            while True:
                over = self._stop.wait(REFRESH_S)
                bar.update(task, completed=self._graph.finished_count)
                if over:
                    return
