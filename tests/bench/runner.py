"""Runs each measurement in a fresh process with a time limit and leaves nothing behind.

Systems start workers in sessions of their own, so ending a process group is not enough: this process is the reaper of orphans,
hence whatever a measurement started, and only that, is found below it. It must never run two measurements at once.
"""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench import measure

ROOT = Path(__file__).resolve().parents[2]
# How long processes of a finished measurement may take to end by themselves before they count as left behind.
GRACE_S = 5.0
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(slots=True)
class Outcome:
    """What one measurement gave: figures, or the reason why there are none."""

    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""
    stderr: str = ""
    wall_s: float = 0.0


def environment(folder: str) -> dict[str, str]:
    """One thread per numerical library for everybody, and temporary files where they are removed afterwards."""
    values = dict(os.environ)
    values.pop("PYTHONDONTWRITEBYTECODE", None)
    values |= dict.fromkeys(ONE_THREAD, "1")
    inherited = values.get("PYTHONPATH")
    values["PYTHONPATH"] = f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)
    values["TMPDIR"] = folder
    return values


def compile_sources() -> None:
    """Give this checkout the bytecode that an installed package has, as the peers are measured with theirs.

    Without it each interpreter that a measurement starts compiles all it imports: 0.08 s more until the first result.
    """
    for package in ("daskvine", "vinecore", "tests"):
        compileall.compile_dir(ROOT / package, quiet=1)


def _reap() -> None:
    """Collect the exit status of orphans that became ours."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _living() -> list[psutil.Process]:
    """Every process below this one that still runs."""
    living = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
        except psutil.NoSuchProcess:
            continue  # ended since the listing
    return living


def end_descendants(grace_s: float) -> list[str]:
    """Wait for what a measurement started to end, then kill the rest; returns the command lines of those killed."""
    deadline = time.monotonic() + grace_s
    left = _living()
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        _reap()
        left = _living()
    killed = []
    while left:  # killing a parent can hand us children that were not seen before
        for process in left:
            try:
                killed.append(" ".join(process.cmdline()[:6]) or process.name())
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(left, timeout=GRACE_S)
        _reap()
        left = _living()
    _reap()
    return killed


def measure_once(system: str, workload: str, size: int, timeout_s: float) -> Outcome:
    """Run ``python -m tests.bench.one`` and read its line."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        stderr_path = Path(folder, "stderr")
        stdout_path = Path(folder, "stdout")
        begin_s = time.monotonic()
        with stderr_path.open("wb") as stderr, stdout_path.open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.one", system, workload, str(size)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=folder,
                env=environment(folder),
                start_new_session=True,
            )
            timed_out = False
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                timed_out = True
            except BaseException:
                end_descendants(0.0)
                raise
            left = end_descendants(0.0 if timed_out else GRACE_S)
            process.poll()
        outcome = Outcome(stderr=stderr_path.read_text(errors="replace"), wall_s=time.monotonic() - begin_s)
        lines = [line for line in stdout_path.read_text(errors="replace").splitlines() if line.startswith('{"system"')]
    if timed_out:
        outcome.error = f"no result in {timeout_s:g} s; the processes were killed"
        return outcome
    if not lines:
        outcome.error = f"ended with exit code {process.returncode} and no result: {outcome.stderr.strip()[-300:]}"
        return outcome
    answer = json.loads(lines[-1])
    if not answer["ok"]:
        outcome.error = answer["error"]
        return outcome
    outcome.figures = answer["figures"]
    if process.returncode != 0:
        outcome.error = f"gave its result, then ended with exit code {process.returncode}"
    elif left:
        outcome.error = f"left {len(left)} processes behind (killed): {'; '.join(left)[:300]}"
    return outcome


def prepare() -> None:
    """Make this process the reaper of orphans; to be called once, before the first measurement."""
    measure.become_subreaper()
