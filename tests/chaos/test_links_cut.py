"""Connections that are cut without a word, in one direction or both: the worker counts as lost, and is back once they are healed.

The hosts are network namespaces; where the system does not permit these the tests are skipped and say so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from daskvine import DaskVine
from tests.chaos.conftest import Moment
from tests.kit.calls import eventually
from tests.kit.counted import WORKER, Log, tree
from tests.kit.fleet import check_idle, count_deliveries
from tests.kit.namespaces import Net, net_of
from tests.kit.processes import Worker

CPU_S = 0.004
LEAVES = 134
SIZE = 12_500
MARGIN = 0.05
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with net_of(2) as made:
        yield made


@pytest.mark.timeout(240)
@pytest.mark.variants("direction", ["out", "in", "both"])
def test_cut_link(
    net: Net,
    start: Callable[..., Worker],
    tmp_path: Path,
    moment: Moment,
    figure: Callable[[str, float], None],
    direction: str,
) -> None:
    """\"out\": the manager hears nothing of the worker; "in": the worker hears nothing of anybody."""
    log = Log(tmp_path / "log")
    graph, end, element = tree(log, LEAVES, SIZE, CPU_S)
    victim = moment.draw("who").randrange(2)
    at = moment.between(20, len(graph) * 9 // 10)
    with DaskVine(port=0) as m:
        m.set_keepalive_interval(0.2)
        m.set_keepalive_timeout(1.0)
        words = (net.address, m.port, "--cores", 1, "--min-backoff", 0.05, "--max-backoff", 0.2)
        for number, host in enumerate(net.hosts):
            start(*words, prefix=host.prefix, **{WORKER: str(number)})
        instances = m.engine.python.instances
        assert eventually(lambda: m.engine.call_in_loop(lambda: [i.state for i in instances.values()]) == ["up", "up"])
        told = count_deliveries(m.engine)

        def strike() -> None:
            log.wait_for(at)
            net.hosts[victim].cut(direction)
            struck.append(log.count())

        struck: list[int] = []
        cutter = threading.Thread(target=strike)
        cutter.start()
        try:
            result = m.get(graph, end)
        finally:
            cutter.join(LIMIT_S)
            net.hosts[victim].heal()
        assert struck and struck[0] < len(graph), "the graph was over before the link was cut"
        assert np.all(result == element)
        assert set(told.values()) == {1}
        assert eventually(lambda: m.stats.workers_joined == 3 and m.stats.workers_connected == 2, LIMIT_S), m.stats
        again, share = log.recomputed_share(), log.share_of(str(victim))
        figure(f"link cut ({direction}): recomputed - own", again - share)
        assert again <= share + MARGIN, f"recomputed {again:.1%}, the lost worker had done {share:.1%}"
        # It is a worker like any other again, on the same host.
        other = Log(tmp_path / "other")
        graph, end, element = tree(other, LEAVES, SIZE, CPU_S)
        assert np.all(m.get(graph, end) == element)
        assert {worker for _, _, worker, _ in other.records()} == {"0", "1"}
        assert set(other.starts_by_key().values()) == {1}
        check_idle(m.engine)
