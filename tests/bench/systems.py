"""Opens and closes the systems under measurement, each with two slots, each as its own documentation says.

``open_pool`` gives something to submit calls to, ``open_graphs`` something to run Dask graphs on. Both yield the moment at
which creation began (imports of the client's side excluded: the startup row measures those), so that a cold figure can hold it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench import calls

SLOTS = 2
# A FunctionCall that is not back in this time will not come back.
CALL_WAIT_S = 10
# Workers that are not connected by then will not come.
JOIN_LIMIT_S = 20.0

OURS = "ours"
OURS_FUNCTION_CALL = "ours-fc"
OURS_TLS = "ours-tls"
OURS_TWO_WORKERS = "ours-2w"
PPE = "ppe"
DISTRIBUTED = "distributed"
DASK_THREADS = "dask-threads"
SUBPROCESS = "subprocess"
BARE_FORK = "bare-fork"
SYSTEMS = (OURS, OURS_FUNCTION_CALL, OURS_TLS, OURS_TWO_WORKERS, PPE, DISTRIBUTED, DASK_THREADS, SUBPROCESS, BARE_FORK)


@dataclass(slots=True)
class Pool:
    """An open executor; ``run_all`` submits one call for each value and gives the results in order."""

    started_s: float
    submit: Callable[..., Any]
    run_all: Callable[[Callable[..., Any], list[int]], list[Any]]
    shutdown: Callable[[], None]


@dataclass(slots=True)
class Graphs:
    """An open Dask scheduler: ``get`` for raw graphs, ``compute`` for collections."""

    started_s: float
    get: Callable[[dict[Any, Any], Any], Any]
    compute: Callable[[Any], Any]


def _executor_pool(executor: Any, started_s: float) -> Pool:
    def run_all(function: Callable[..., Any], values: list[int]) -> list[Any]:
        futures = [executor.submit(function, value) for value in values]
        return [future.result() for future in futures]

    return Pool(started_s, executor.submit, run_all, lambda: executor.shutdown(wait=True, cancel_futures=True))


def _function_call_pool(manager: Any, started_s: float) -> Pool:
    from vinecore import FunctionCall

    def run_all(function: Callable[..., Any], values: list[int]) -> list[Any]:
        order = [manager.submit(FunctionCall("lib", function.__name__, value)) for value in values]
        outputs: dict[Any, Any] = {}
        while len(outputs) < len(order):
            task = manager.wait(CALL_WAIT_S)
            if task is None:
                raise TimeoutError(f"{len(order) - len(outputs)} of {len(order)} FunctionCalls did not finish in {CALL_WAIT_S} s")
            outputs[task.id] = task.output
        return [outputs[task_id] for task_id in order]

    def submit(function: Callable[..., Any], *arguments: Any) -> Any:
        return manager.submit(FunctionCall("lib", function.__name__, *arguments))

    return Pool(started_s, submit, run_all, lambda: None)


@contextmanager
def two_workers(host: str = "127.0.0.1", before: Callable[[], None] | None = None) -> Iterator[tuple[Any, float]]:
    """A DaskVine with two worker processes of one core each, and the moment at which its creation began.

    Parameters:
        host: where the workers find the manager. before: runs in each worker's process before the worker does.
    """
    from daskvine import DaskVine

    with TemporaryDirectory(prefix="vine-bench-") as folder:
        password = Path(folder, "password")
        password.touch(mode=0o600)
        password.write_bytes(os.urandom(32).hex().encode())
        started_s = time.perf_counter()
        workers: list[subprocess.Popen[bytes]] = []
        with DaskVine(port=0, password_file=str(password)) as manager:
            words = [sys.executable, "-m", "vinecore.cli.worker", host, str(manager.port), "--password", str(password)]
            try:
                for _ in range(SLOTS):
                    command = [*words, "--cores", "1"]
                    workers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=before))
                deadline_s = time.monotonic() + JOIN_LIMIT_S
                while manager.stats.workers_connected < SLOTS:
                    if time.monotonic() > deadline_s:
                        raise TimeoutError(f"the {SLOTS} workers did not connect in {JOIN_LIMIT_S:g} s")
                    time.sleep(0.005)
                yield manager, started_s
            finally:
                for worker in workers:
                    worker.terminate()
                for worker in workers:
                    worker.wait(JOIN_LIMIT_S)


@contextmanager
def _distributed_client() -> Iterator[tuple[Any, float]]:
    from distributed import Client, LocalCluster

    started_s = time.perf_counter()
    options = {"dashboard_address": None, "worker_dashboard_address": None, "silence_logs": logging.CRITICAL}
    with (
        LocalCluster(n_workers=SLOTS, threads_per_worker=1, processes=True, host="127.0.0.1", **options) as cluster,
        Client(cluster) as client,
    ):
        yield client, started_s


@contextmanager
def open_pool(system: str) -> Iterator[Pool]:
    """Open a system for calls.

    Raises:
        ValueError: the system has no calls.
    """
    if system in (OURS, OURS_TLS):
        from daskvine import FuturesExecutor

        started_s = time.perf_counter()
        with FuturesExecutor(max_workers=SLOTS, ssl=system == OURS_TLS) as executor:
            yield _executor_pool(executor, started_s)
    elif system == OURS_FUNCTION_CALL:
        from vinecore import Manager

        started_s = time.perf_counter()
        with Manager(local_cores=SLOTS) as manager:
            library = manager.create_library_from_functions("lib", calls.inc, exec_mode="direct")
            library.set_function_slots(SLOTS)
            manager.install_library(library)
            yield _function_call_pool(manager, started_s)
    elif system == PPE:
        from concurrent.futures import ProcessPoolExecutor

        started_s = time.perf_counter()
        with ProcessPoolExecutor(SLOTS) as executor:
            yield _executor_pool(executor, started_s)
    elif system == DISTRIBUTED:
        with _distributed_client() as (client, started_s):

            def submit(function: Callable[..., Any], *arguments: Any) -> Any:
                return client.submit(function, *arguments, pure=False)

            def run_all(function: Callable[..., Any], values: list[int]) -> list[Any]:
                # gather is the quickest way that distributed has for many results
                return list(client.gather([submit(function, value) for value in values]))

            yield Pool(started_s, submit, run_all, lambda: None)
    else:
        raise ValueError(
            f"{system!r} cannot run calls; choose from {OURS}, {OURS_FUNCTION_CALL}, {OURS_TLS}, {PPE}, {DISTRIBUTED}"
        )


@contextmanager
def open_graphs(system: str) -> Iterator[Graphs]:
    """Open a system for Dask graphs.

    Raises:
        ValueError: the system has no graphs.
    """
    if system == OURS:
        from daskvine import DaskVine

        started_s = time.perf_counter()
        with DaskVine(local_cores=SLOTS) as manager:
            yield Graphs(started_s, manager.get, lambda collection: collection.compute(scheduler=manager.get))
    elif system == OURS_TWO_WORKERS:
        with two_workers() as (manager, started_s):
            yield Graphs(started_s, manager.get, lambda collection: collection.compute(scheduler=manager.get))
    elif system == DASK_THREADS:
        from dask.threaded import get

        def threads_get(graph: dict[Any, Any], keys: Any) -> Any:
            return get(graph, keys, num_workers=SLOTS)

        started_s = time.perf_counter()
        yield Graphs(started_s, threads_get, lambda collection: collection.compute(scheduler="threads", num_workers=SLOTS))
    elif system == DISTRIBUTED:
        with _distributed_client() as (client, started_s):
            yield Graphs(started_s, client.get, lambda collection: collection.compute(scheduler=client.get))
    else:
        raise ValueError(f"{system!r} cannot run graphs; choose from {OURS}, {OURS_TWO_WORKERS}, {DASK_THREADS}, {DISTRIBUTED}")
