"""Programs that end in every way, at random moments of their lives: afterwards no process of theirs is left, and no file.

The moment is a stage of the program (imported, manager made), or a number of executions that had begun.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.conftest import FIRST_SEED, IS_FULL, MOMENTS
from tests.kit.calls import LIMIT_S, eventually
from tests.kit.counted import Log
from tests.kit.processes import Script

KINDS = ("return", "exception", "sys.exit", "SIGTERM", "SIGKILL", "Ctrl-C twice")
# A thousand in all at full size.
EACH = 167 if IS_FULL else MOMENTS
AT_ONCE = 3
CALLS = 40
# What a program leaves to the worker (a killed one cannot clean up itself) is gone within this time.
GONE_S = 6.0

PROGRAM = """
    import sys, threading
    from pathlib import Path
    print("imported", flush=True)
    from daskvine import DaskVine, FuturesExecutor
    from tests.kit.calls import eventually
    from tests.kit.counted import Log, leaf, plus, tree
    from vinecore import Manager, PythonTask, Task

    log = Log({log!r})
    stage, at, kind = {stage!r}, {at}, {kind!r}

    class OfTheUser(Exception):
        pass

    def end():
        if kind == "exception":
            raise OfTheUser("as planned")
        if kind == "sys.exit":
            sys.exit(7)
        if kind == "return":
            return
        # A signal is on its way.
        threading.Event().wait(60)

    def is_mine():
        return kind in ("return", "exception", "sys.exit")

    def futures(ex):
        found = [ex.submit(leaf, log.path, "l%d" % i, 0.002, 12_500, i) for i in range({calls})]
        found += [ex.submit(plus, log.path, "s%d" % i, 0.002, found[i], found[-i]) for i in range({calls})]
        return found

    def by_futures_in_block():
        with FuturesExecutor(max_workers=2) as ex:
            print("made", flush=True)
            if stage == "made":
                return end()
            found = futures(ex)
            log.wait_for(at)
            if is_mine():
                return end()
            [future.result() for future in found]
            end()

    def by_futures_left_open():
        ex = FuturesExecutor(max_workers=2)
        print("made", flush=True)
        if stage == "made":
            return end()
        found = futures(ex)
        log.wait_for(at)
        if is_mine():
            return end()
        [future.result() for future in found]
        end()

    def by_get():
        m = DaskVine(local_cores=2)
        print("made", flush=True)
        if stage == "made":
            return end()
        graph, last, _ = tree(log, {calls}, 12_500, 0.002)
        if is_mine():
            thread = threading.Thread(target=m.get, args=(graph, last), daemon=True)
            thread.start()
            log.wait_for(at)
            return end()
        m.get(graph, last)
        end()

    def by_tasks():
        m = Manager(local_cores=2)
        print("made", flush=True)
        if stage == "made":
            return end()
        for i in range({calls}):
            task = PythonTask(leaf, log.path, "t%d" % i, 0.002, 12_500, i) if i % 2 else Task("sleep 60 & setsid sleep 60 & true")
            task.set_cores(1)
            m.submit(task)
        log.wait_for(min(at, {calls} // 2))
        if is_mine():
            return end()
        while not m.empty():
            m.wait(5)
        end()

    if __name__ == "__main__":
        {surface}()
"""


@dataclass(frozen=True)
class Plan:
    """One exit, decided by its seed."""

    kind: str
    seed: int
    surface: str
    stage: str
    at: int

    @classmethod
    def drawn(cls, kind: str, seed: int) -> Plan:
        chance = random.Random(f"{kind} {seed}")
        surface = chance.choice(["by_futures_in_block", "by_futures_left_open", "by_get", "by_tasks"])
        stage = chance.choices(["imported", "made", "running"], [1, 1, 6])[0]
        return cls(kind, seed, surface, stage, chance.randint(1, CALLS))


def end_one(directory: Path, plan: Plan) -> str:
    """Run a program until it has ended as planned; returns what is wrong, empty if nothing is."""
    place = directory / f"{plan.kind.replace(' ', '-')}-{plan.seed}"
    temporary = place / "tmp"
    temporary.mkdir(parents=True)
    log = Log(place / "log")
    text = PROGRAM.format(log=log.path, stage=plan.stage, at=plan.at, kind=plan.kind, calls=CALLS, surface=plan.surface)
    script = Script(place, text, TMPDIR=str(temporary))
    try:
        wrong = _ended(script, plan, log)
        left = script.left_after(GONE_S)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left if os.path.exists(f"/proc/{pid}")]
        # The last act of a worker is to remove its workspace; of the killed ones nobody else would.
        clean = eventually(lambda: not list(temporary.iterdir()), 1.0)
        if left or not clean:
            wrong += f" left: {len(left)} processes {commands}, files {[path.name for path in temporary.iterdir()]}"
        return f"{plan}: {wrong}" if wrong else ""
    finally:
        script.kill()


def _ended(script: Script, plan: Plan, log: Log) -> str:
    """Bring the program to its end; what is wrong with that."""
    stages = ["imported"] if plan.stage == "imported" else ["imported", "made"]
    signals = {"SIGTERM": [signal.SIGTERM], "SIGKILL": [signal.SIGKILL], "Ctrl-C twice": [signal.SIGINT, signal.SIGINT]}
    sent = signals.get(plan.kind, [])
    if sent:
        for stage in stages:
            line = script.line()
            if line != stage:
                return f"it said {line!r} instead of {stage!r}: {script.end()[1][-2000:]}"
        if plan.stage == "running":
            log.wait_for(plan.at if plan.surface != "by_tasks" else min(plan.at, CALLS // 2))
    for number in sent:
        # The second one comes while the program deals with the first.
        if script.process.poll() is None:
            os.killpg(script.process.pid, number)
            time.sleep(random.Random(plan.seed).random() * 0.2)
    try:
        _, err, code = script.end(LIMIT_S)
    except Exception as error:
        return f"it did not end: {error!r}"
    expected = {"return": [0], "exception": [1], "sys.exit": [7], "SIGTERM": [-15], "SIGKILL": [-9], "Ctrl-C twice": [1, -2, 130]}
    if code not in expected[plan.kind]:
        return f"it ended with {code}: {err[-2000:]}"
    return ""


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", KINDS)
def test_exits(tmp_path: Path, kind: str, figure: Callable[[str, float], None]) -> None:
    plans = [Plan.drawn(kind, FIRST_SEED + number) for number in range(EACH)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [text for text in pool.map(lambda plan: end_one(tmp_path, plan), plans) if text]
    figure(f"exits by {kind}: with something left or wrong, of {len(plans)}", len(wrong))
    assert not wrong, "\n".join([f"{len(wrong)} of {len(plans)}:", *wrong])
