"""The manager's process is killed amid work: embedded workers end within 2 s, standalone ones within their timeout, traceless."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import Moment
from tests.kit.calls import LIMIT_S, eventually
from tests.kit.counted import Log
from tests.kit.proc import descendants_of
from tests.kit.processes import Script, Worker

# Of the standalone workers.
TIMEOUT_S = 2.0
# An orderly end of a worker takes this long at most, beside a busy neighbour.
ORDERLY_S = 4.0

PROGRAM = """
    from daskvine import DaskVine
    from tests.kit.calls import eventually
    from tests.kit.counted import Log, tree

    if __name__ == "__main__":
        m = DaskVine(port=0, local_cores=1)
        print(m.port, flush=True)
        assert eventually(lambda: m.stats.workers_connected == 3)
        graph, end, element = tree(Log({log!r}), 400, 12_500, 0.003)
        m.get(graph, end)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    made: list[Script] = []

    def run(text: str, **environment: str) -> Script:
        made.append(Script(tmp_path, text, **environment))
        return made[-1]

    yield run
    for script in made:
        script.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_killed_manager(
    start: Callable[..., Worker],
    program: Callable[..., Script],
    started_by_test: Callable[[], list[int]],
    tmp_path: Path,
    moment: Moment,
    figure: Callable[[str, float], None],
    how: signal.Signals,
) -> None:
    log = Log(tmp_path / "log")
    mine = tmp_path / "program"
    mine.mkdir()
    script = program(PROGRAM.format(log=log.path), TMPDIR=str(mine))
    port = int(script.line())
    words = ("127.0.0.1", port, "--cores", 1, "--min-backoff", 0.05, "--connect-timeout", TIMEOUT_S)
    workers = [start(*words, VINE_CHAOS_WORKER=str(number)) for number in range(2)]
    log.wait_for(moment.between(20, 1100))
    assert script.process.poll() is None, script.end()
    killed = time.monotonic()
    script.process.send_signal(how)
    assert script.process.wait(LIMIT_S) == -how
    assert script.left_after(2.0) == [], "the embedded worker and its tree"
    figure("killed manager: seconds until the embedded worker's tree is gone", time.monotonic() - killed)
    # Nobody wants what was running; the workers look for another manager meanwhile, with no slot at work.
    assert eventually(lambda: all(len(descendants_of(worker.process.pid)) == 0 for worker in workers), ORDERLY_S)
    count = log.count()
    assert [worker.ended(TIMEOUT_S + ORDERLY_S) for worker in workers] == [0, 0]
    figure("killed manager: seconds until standalone workers with 2 s of patience are gone", time.monotonic() - killed)
    assert time.monotonic() - killed < TIMEOUT_S + ORDERLY_S
    assert log.count() == count, "something ran on"
    assert eventually(lambda: started_by_test() == [], ORDERLY_S)
    assert [list(place.iterdir()) for place in (mine, *(worker.tmp for worker in workers))] == [[], [], []]
