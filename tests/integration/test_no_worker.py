"""Work and no worker: the manager says so once, with a command that works, and who it did not let in and why."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import eventually
from tests.kit.processes import worker_of
from tests.kit.rogue import LIMIT_S, rest_of
from vinecore import FunctionCall, Manager
from vinecore.wire.framing import FrameWriter
from vinecore.wire.handshake import needs_tls

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()


def add(x: Any, y: Any = 1) -> Any:
    return x + y


@pytest.fixture
def path_with_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``vine_worker`` on the PATH, as an installation puts it there."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "vine_worker"
    script.write_text(
        textwrap.dedent(f"""\
        #!{sys.executable}
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from vinecore.cli.worker import main
        sys.exit(main())
        """)
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("kind", ["secret", "password", "none"])
def test_no_worker_is_told_once_with_a_command_that_works(
    kind: str, config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], path_with_command: None
) -> None:
    options: dict[str, Any] = {}
    if kind == "none":
        options["auth"] = None
    if kind == "password":
        password = tmp_path / "my pass word"
        password.write_text("open sesame")
        options["password_file"] = str(password)
    with Manager(port=0, **options) as manager:
        assert manager.tune("no-worker-notice", 0.2) == 0
        manager.install_library(manager.create_library_from_functions("lib", add, exec_mode="direct"))
        calls = [FunctionCall("lib", "add", i) for i in range(3)]
        for call in calls:
            manager.submit(call)
        told = ""

        def line() -> str:
            nonlocal told
            told += capfd.readouterr().err
            return told

        assert eventually(lambda: line().endswith("\n"), 10.0)
        # Many times the limit later it is still the one line.
        assert manager.wait(1.0) is None and line().count("\n") == 1
        found = re.fullmatch(r"vine: 3 tasks wait and no worker is connected; start one with:  (vine_worker .*)\n", told)
        assert found is not None, told
        process = subprocess.Popen(found[1], shell=True, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            for _ in calls:
                assert manager.wait(15.0) is not None, f"{found[1]} does not work: {line()}"
            assert sorted(call.output for call in calls) == [1, 2, 3]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait(LIMIT_S)
        assert line().count("\n") == 1


def test_no_worker_is_told_again_after_the_next_stall(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Manager(port=0) as manager:
        manager.tune("no-worker-notice", 0.2)
        manager.install_library(manager.create_library_from_functions("lib", add, exec_mode="direct"))
        for number in (1, 2):
            call = FunctionCall("lib", "add", number)
            manager.submit(call)
            told = ""

            def line() -> str:
                nonlocal told
                told += capfd.readouterr().err
                return told

            assert eventually(lambda: "no worker is connected" in line(), 10.0)
            with worker_of(manager.port, config):
                assert manager.wait(LIMIT_S) is call
            assert eventually(lambda: manager.stats.workers_connected == 0)


WITHOUT_TLS = "a worker without TLS dialled, and this manager wants it: start vine_worker with --ssl"
WITHOUT_SECRET = "a worker that has a secret left, because this manager uses none: start the manager with authentication, "
WITH_TLS = "a worker with --ssl dialled, and this manager uses no TLS: start vine_worker without --ssl, "


@pytest.mark.parametrize(
    ("manager_has", "worker_has", "why"),
    [
        ({}, ("--password", "other"), "a worker's secret is another one"),
        ({}, ("--no-authentication",), "a worker without a secret dialled"),
        ({"auth": None}, ("--password", "other"), WITHOUT_SECRET),
        ({"ssl": True}, (), WITHOUT_TLS),
        ({}, ("--ssl",), WITH_TLS),
    ],
    ids=["password", "no secret", "secret", "no TLS", "TLS"],
)
def test_the_manager_tells_of_a_worker_that_it_does_not_let_in(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    manager_has: dict[str, Any],
    worker_has: tuple[str, ...],
    why: str,
) -> None:
    if "ssl" in manager_has:
        pytest.importorskip("cryptography", reason="makes the certificate: pip install 'daskvine[tls]'")
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.touch(mode=0o600)
    other.write_text("another one")
    with Manager(port=0, **manager_has) as manager:
        manager.tune("no-worker-notice", 0.2)
        manager.install_library(manager.create_library_from_functions("lib", add, exec_mode="direct"))
        manager.submit(FunctionCall("lib", "add", 1))
        told = ""

        def line() -> str:
            nonlocal told
            told += capfd.readouterr().err
            return told

        # What is no worker is not told of.
        with socket.create_connection(("127.0.0.1", manager.port)) as browser:
            browser.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert rest_of(browser) == (FrameWriter().write(needs_tls()) if "ssl" in manager_has else b"")
        with worker_of(manager.port, config, *worker_has) as process:
            assert process.wait(LIMIT_S) == 1
        assert eventually(lambda: "not let in" in line(), 10.0)
        (said,) = [text for text in told.splitlines() if "not let in" in text]
        assert said.startswith(f"vine: a worker was not let in, the latest from 127.0.0.1: {why}"), told


def test_the_default_notice_comes_after_five_seconds() -> None:
    from vinecore.model.config import Tunables

    assert Tunables().no_worker_notice == 5.0


def test_idle_manager_says_nothing(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Manager(port=0) as manager:
        manager.tune("no-worker-notice", 0.1)
        assert manager.wait(0.5) is None
    assert capfd.readouterr() == ("", "")
