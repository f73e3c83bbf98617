"""The command: plans the measurements, interleaves the systems, prints the table.

Exit code 0 however slow anybody was; 1 when a measurement failed, with the reason; 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench import runner
from tests.bench.rows import CASES, ROWS, Case, Results, Row, shown, table
from tests.bench.systems import SYSTEMS

PACKAGES = ("dask", "distributed", "numpy", "pandas", "scipy", "awkward")
# Above this the machine was not idle when we began, and a run is worth less.
BUSY_LOAD = 0.5


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(row.name for row in ROWS)
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure ours against the peers; print ratios.")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (default 5); slow peers are capped at 3")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"rows whose name begins so; may be given again: {names}")
    parser.add_argument("--systems", help=f"comma-separated, of {', '.join(SYSTEMS)} (default all)")
    parser.add_argument("--quick", action="store_true", help="one repeat of small sizes: does it run at all?")
    parser.add_argument("--timeout", type=float, default=90.0, metavar="S", help="limit for one process (default 90)")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every repeat")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    options.systems = options.systems.split(",") if options.systems else list(SYSTEMS)
    for system in options.systems:
        if system not in SYSTEMS:
            parser.error(f"unknown system {system!r}; choose from {', '.join(SYSTEMS)}")
    available = [row for row in ROWS if row.workload != "physics" or importlib.util.find_spec("awkward")]
    options.rows = [row for row in available if not options.only or any(row.name.startswith(name) for name in options.only)]
    if not options.rows:
        parser.error(f"no row begins with {' or '.join(options.only)}; rows: {names}")
    return options


def cases_for(rows: Sequence[Row], systems: Sequence[str]) -> list[Case]:
    """The measurements that these rows read."""
    wanted = {
        (row.workload, system)
        for row in rows
        for system in (row.ours, *row.beside, *(check.peer for check in row.checks if check.peer))
        if system in systems
    }
    return [case for case in CASES if (case.workload, case.system) in wanted]


def interleaved(cases: Sequence[Case], repeats: int) -> list[tuple[int, Case]]:
    """All cases once, then all again: what the machine does in a bad minute hits everybody.

    The systems of a workload take turns in going first.
    """
    plan: list[tuple[int, Case]] = []
    workloads = list(dict.fromkeys(case.workload for case in cases))
    for repeat in range(repeats):
        for workload in workloads:
            group = [case for case in cases if case.workload == workload]
            turn = repeat % len(group)
            plan += [(repeat, case) for case in group[turn:] + group[:turn] if repeat < case.repeats_limit]
    return plan


def run_all(plan: Sequence[tuple[int, Case]], is_quick: bool, timeout_s: float) -> tuple[Results, dict[tuple[str, str], str]]:
    """Run the plan; a pair that failed once is not tried again, its reason is kept."""
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    errors: dict[tuple[str, str], str] = {}
    for number, (repeat, case) in enumerate(plan, start=1):
        pair = (case.workload, case.system)
        if pair in errors:
            continue
        outcome = runner.measure_once(case.system, case.workload, case.quick_size if is_quick else case.size, timeout_s)
        if outcome.figures:
            results.setdefault(pair, []).append(outcome.figures)
        if outcome.error:
            errors[pair] = f"repeat {repeat + 1}: {outcome.error}"
        text = outcome.error or ", ".join(f"{name} {shown(figure)}" for name, figure in outcome.figures.items())
        head = f"[{number}/{len(plan)}] {case.workload} {case.system} ({outcome.wall_s:.1f} s)"
        print(f"{head}: {text}", file=sys.stderr, flush=True)
        if outcome.error and outcome.stderr.strip():
            print("    " + "\n    ".join(outcome.stderr.strip().splitlines()[-6:]), file=sys.stderr, flush=True)
    return results, errors


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        **versions,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; see the module's text for the exit code."""
    options = parse(arguments)
    runner.prepare()
    runner.compile_sources()
    about = machine()
    if float(str(about["load_before"])) > BUSY_LOAD:
        print(f"warning: the load average is {about['load_before']}; ratios of a busy machine mean little", file=sys.stderr)
    begin_s = time.monotonic()
    plan = interleaved(cases_for(options.rows, options.systems), 1 if options.quick else options.repeats)
    results, errors = run_all(plan, options.quick, options.timeout)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if options.quick:
        print("--quick: small sizes, one repeat; verdicts are only meant for the sizes of a full run")
    print(table(options.rows, results))
    print(f"{len(plan)} measurements planned, {time.monotonic() - begin_s:.0f} s")
    for (workload, system), error in errors.items():
        print(f"ERROR {workload} on {system}: {error}")
    if options.json:
        record = {
            "machine": about,
            "quick": options.quick,
            "results": [{"workload": pair[0], "system": pair[1], "repeats": list(figures)} for pair, figures in results.items()],
            "errors": [{"workload": pair[0], "system": pair[1], "error": error} for pair, error in errors.items()],
            "cases": [asdict(case) for case in cases_for(options.rows, options.systems)],
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
