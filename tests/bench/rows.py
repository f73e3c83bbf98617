"""The table: what is measured on whom, which figure is shown, and which ratio is required.

Pure data and arithmetic. The required figures are promises of the project; change them only together with the promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.systems import (
    BARE_FORK,
    DASK_THREADS,
    DISTRIBUTED,
    OURS,
    OURS_FUNCTION_CALL,
    OURS_TLS,
    OURS_TWO_WORKERS,
    PPE,
    SUBPROCESS,
)


@dataclass(frozen=True, slots=True)
class Case:
    """One workload on one system. ``repeats_limit`` keeps the slow peers from taking most of the time."""

    workload: str
    system: str
    size: int
    quick_size: int
    repeats_limit: int = 1000


@dataclass(frozen=True, slots=True)
class Check:
    """Ours (divided by ``peer``'s figure, if there is a peer) must be ``at_least`` or ``at_most`` the bound."""

    bound: float
    peer: str | None = None
    at_least: bool = False
    # The figure of the peer where it does not have one of the row's name.
    peer_metric: str | None = None

    def required(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.bound:g} x {self.peer}" if self.peer else f"{sign} {self.bound:g}"

    def passes(self, figure: float) -> bool:
        return figure >= self.bound if self.at_least else figure <= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``beside`` names peers that are shown without being compared."""

    name: str
    workload: str
    metric: str
    unit: str
    checks: tuple[Check, ...]
    cold_metric: str | None = None
    ours: str = OURS
    beside: tuple[str, ...] = ()
    # False: a goal that is shown, not one of the required rows.
    is_required: bool = True


CASES = (
    Case("noop-calls", OURS, 20_000, 2_000),
    Case("noop-calls", OURS_FUNCTION_CALL, 20_000, 2_000),
    Case("noop-calls", OURS_TLS, 20_000, 2_000),
    Case("noop-calls", PPE, 20_000, 2_000),
    Case("noop-calls", DISTRIBUTED, 2_000, 500, 3),
    Case("fork-calls", OURS, 3_000, 500),
    Case("fork-calls", BARE_FORK, 2, 1),
    Case("python-tasks", OURS, 2_000, 300),
    Case("shell-tasks", OURS, 2_000, 300),
    Case("shell-tasks", SUBPROCESS, 2_000, 300),
    Case("latency", OURS, 2_000, 300),
    Case("latency", PPE, 2_000, 300),
    Case("startup", OURS, 1, 1),
    Case("startup", PPE, 1, 1),
    Case("startup", DISTRIBUTED, 1, 1),
    Case("memory", OURS, 100_000, 20_000, 3),
    Case("memory", PPE, 100_000, 20_000, 3),
    Case("dask-tree", OURS, 20_000, 4_000),
    Case("dask-tree", OURS_TWO_WORKERS, 20_000, 4_000),
    Case("dask-tree", DASK_THREADS, 20_000, 4_000),
    Case("dask-tree", DISTRIBUTED, 2_000, 500, 3),
    Case("dask-tree-shares", OURS, 20_000, 4_000, 1),
    Case("dask-wide", OURS, 20_000, 4_000),
    Case("dask-wide", DASK_THREADS, 20_000, 4_000),
    Case("dask-wide", DISTRIBUTED, 2_000, 500, 3),
    Case("dask-wide-shares", OURS, 20_000, 4_000, 1),
    Case("data-chain", OURS, 64, 16),
    Case("data-chain", OURS_TWO_WORKERS, 64, 16),
    Case("data-chain", DISTRIBUTED, 64, 16),
    Case("data-chain", DASK_THREADS, 64, 16, 3),
    Case("data-chain-bytes", OURS, 64, 16, 1),
    Case("data-chain-bytes", OURS_TWO_WORKERS, 64, 16, 1),
    Case("imports", OURS, 200, 20),
    Case("imports", PPE, 200, 20),
    Case("imports", DISTRIBUTED, 200, 20, 3),
    Case("dask-array", OURS, 8_000, 4_000),
    Case("dask-array", DASK_THREADS, 8_000, 4_000),
    Case("dask-array", DISTRIBUTED, 8_000, 4_000, 3),
    Case("shared-graph", OURS, 100, 20, 3),
    Case("shared-graph", DASK_THREADS, 100, 20, 3),
    Case("shared-graph", DISTRIBUTED, 100, 20, 3),
    Case("physics", OURS, 40, 8, 3),
    Case("physics", DASK_THREADS, 40, 8, 3),
    Case("dataframe", OURS, 30, 5, 3),
    Case("dataframe", DASK_THREADS, 30, 5, 3),
)


def _graph_rows(workload: str) -> tuple[Row, ...]:
    plain = (Check(1.3, DASK_THREADS, at_least=True), Check(30, DISTRIBUTED, at_least=True))
    mixed = (Check(1.3, DASK_THREADS, at_least=True), Check(30, DISTRIBUTED, at_least=True, peer_metric="tasks_per_s"))
    shares = f"{workload}-shares"
    return (
        Row(workload, workload, "tasks_per_s", "tasks/s", plain, "cold_tasks_per_s"),
        Row(f"{workload} +50ms", workload, "mixed_tasks_per_s", "tasks/s", mixed),
        Row(f"{workload} second slot", shares, "second_slot_percent", "% of vertices", (Check(25, at_least=True),)),
        Row(f"{workload} in manager", shares, "vertices_in_manager", "vertices", (Check(0),)),
    )


ROWS = (
    Row(
        "noop-calls",
        "noop-calls",
        "calls_per_s",
        "calls/s",
        (Check(3.0, PPE, at_least=True), Check(50, DISTRIBUTED, at_least=True)),
        "cold_calls_per_s",
    ),
    Row(
        "noop-calls TLS",
        "noop-calls",
        "calls_per_s",
        "calls/s",
        (Check(0.85, OURS, at_least=True),),
        "cold_calls_per_s",
        OURS_TLS,
    ),
    Row("latency p50", "latency", "p50_us", "us", (Check(400),), "cold_us", beside=(PPE,)),
    Row("latency p99", "latency", "p99_us", "us", (Check(2_000),), beside=(PPE,)),
    Row("startup", "startup", "startup_s", "s", (Check(0.3), Check(0.35, DISTRIBUTED)), beside=(PPE,)),
    Row("memory", "memory", "bytes_per_call", "bytes/call", (Check(1_500),), beside=(PPE,)),
    Row(
        "function-call",
        "noop-calls",
        "calls_per_s",
        "calls/s",
        (Check(2.0, PPE, at_least=True),),
        "cold_calls_per_s",
        ours=OURS_FUNCTION_CALL,
    ),
    Row(
        "fork-calls",
        "fork-calls",
        "calls_per_s",
        "calls/s",
        (Check(1_000, at_least=True), Check(0.6, BARE_FORK, at_least=True)),
    ),
    Row("python-tasks", "python-tasks", "tasks_per_s", "tasks/s", (Check(400, at_least=True),)),
    Row("shell-tasks", "shell-tasks", "tasks_per_s", "tasks/s", (Check(0.5, SUBPROCESS, at_least=True),)),
    *_graph_rows("dask-tree"),
    Row(
        "dask-tree 2 workers",
        "dask-tree",
        "tasks_per_s",
        "tasks/s",
        (Check(0.8, OURS, at_least=True),),
        "cold_tasks_per_s",
        OURS_TWO_WORKERS,
    ),
    *_graph_rows("dask-wide"),
    Row("data-chain", "data-chain", "wall_s", "s", (Check(0.6, DISTRIBUTED),), "cold_wall_s", beside=(DASK_THREADS,)),
    Row("data-chain bytes", "data-chain-bytes", "manager_mb", "MB", (Check(1.0),)),
    Row("data-chain 2 workers", "data-chain", "wall_s", "s", (Check(0.8, DISTRIBUTED),), "cold_wall_s", OURS_TWO_WORKERS),
    Row("data-chain 2 workers bytes", "data-chain-bytes", "manager_mb", "MB", (Check(1.0),), ours=OURS_TWO_WORKERS),
    Row("imports wall", "imports", "wall_s", "s", (Check(1.0, PPE),), "cold_wall_s", beside=(DISTRIBUTED,)),
    Row("imports CPU", "imports", "cpu_s", "s", (Check(0.6, PPE),), "cold_cpu_s", beside=(DISTRIBUTED,)),
    Row("dask-array", "dask-array", "wall_s", "s", (Check(1.5, DASK_THREADS),), "cold_wall_s", beside=(DISTRIBUTED,)),
    Row(
        "shared-graph",
        "shared-graph",
        "wall_s",
        "s",
        (Check(1.0, DASK_THREADS),),
        "cold_wall_s",
        beside=(DISTRIBUTED,),
        is_required=False,
    ),
    Row("physics", "physics", "wall_s", "s", (Check(0.9, DASK_THREADS),), "cold_wall_s", is_required=False),
    Row("dataframe", "dataframe", "wall_s", "s", (Check(1.2, DASK_THREADS),), "cold_wall_s", is_required=False),
)

# (workload, system) -> figures of each repeat that gave a correct answer
Results = Mapping[tuple[str, str], Sequence[Mapping[str, float]]]


def shown(figure: float) -> str:
    """Three significant digits, no exponents: these are read side by side."""
    if figure == 0:
        return "0"
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.3g}"


def figures_of(results: Results, workload: str, system: str, metric: str | None) -> list[float]:
    if metric is None:
        return []
    return [figures[metric] for figures in results.get((workload, system), ()) if metric in figures]


def _spread(figures: Sequence[float]) -> str:
    if not figures:
        return "-"
    if len(figures) == 1:
        return shown(figures[0])
    return f"{shown(median(figures))} ({shown(min(figures))}-{shown(max(figures))})"


def _check_cells(row: Row, check: Check, ours: Sequence[float], results: Results) -> list[str]:
    """The cells peer median, ratio, required, verdict."""
    peer_cell, ratio_cell, figure = "", "", None
    if check.peer is None:
        figure = median(ours) if ours else None
    else:
        peers = figures_of(results, row.workload, check.peer, check.peer_metric or row.metric)
        peer_cell = f"{check.peer} {_spread(peers)}"
        if ours and peers:
            figure = median(ours) / median(peers)
            ratio_cell = shown(figure)
    if figure is None:
        verdict = "no figure"
    else:
        verdict = "PASS" if check.passes(figure) else "MISS"
    return [peer_cell, ratio_cell, check.required(), verdict if row.is_required else f"{verdict} (goal)"]


def lines_of(row: Row, results: Results) -> list[list[str]]:
    """The cells of one row: a first line for its first check, further lines for further checks and the peers beside."""
    ours = figures_of(results, row.workload, row.ours, row.metric)
    cold = figures_of(results, row.workload, row.ours, row.cold_metric)
    lines = [_check_cells(row, check, ours, results) for check in row.checks]
    for peer in row.beside:
        peers = figures_of(results, row.workload, peer, row.metric)
        ratio = shown(median(ours) / median(peers)) if ours and peers else ""
        lines.append([f"{peer} {_spread(peers)}", ratio, "", ""])
    heads = [[row.name, row.unit, _spread(ours), shown(median(cold)) if cold else ""]] + [[""] * 4] * (len(lines) - 1)
    cold_cells = []
    for name in (*(check.peer for check in row.checks), *row.beside):
        peer_cold = figures_of(results, row.workload, name, row.cold_metric) if name else []
        cold_cells.append(shown(median(peer_cold)) if peer_cold else "")
    return [[*head, line[0], cold_cell, *line[1:]] for head, line, cold_cell in zip(heads, lines, cold_cells, strict=True)]


HEADINGS = ["row", "unit", "ours: median (min-max)", "cold", "peer: median (min-max)", "cold", "ratio", "required", ""]


def table(rows: Sequence[Row], results: Results) -> str:
    """The whole table, aligned, also readable as Markdown."""
    lines = [HEADINGS, *(line for row in rows for line in lines_of(row, results))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)
