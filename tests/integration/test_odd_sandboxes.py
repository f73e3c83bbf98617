"""Tasks that leave what no path can name, or what the worker may not read: they run once, and say what is missing and why."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.calls import LIMIT_S
from vinecore import Manager, PythonTask, Task

LONG_LINK = f"ln -s {'a' * 300}"
# As an ordinary user: a root without capabilities may do no more with its own files.
PLAIN = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
# Runs the commands that it reads, each with an output, and prints how they ended.
PROGRAM = """
import json, sys
from vinecore import Manager, Task
with Manager(local_cores=1) as m:
    for command in json.load(sys.stdin):
        task = Task(command, cores=1, disk=100)
        made = m.declare_buffer()
        task.add_output(made, "out")
        m.submit(task)
        assert m.wait(60) is task
        content = made.contents().decode() if task.result == "success" else ""
        print(json.dumps([task.result, task.exit_code, task.reason, task.output, content]))
"""


def run(m: Manager, task: Task) -> Task:
    m.submit(task)
    assert m.wait(LIMIT_S) is task
    return task


@pytest.mark.parametrize(("link", "why"), [(LONG_LINK, "File name too long"), ("ln -s /proc/self/mem", "Input/output error")])
def test_a_task_whose_output_cannot_be_read_runs_once(m: Manager, tmp_path: Path, link: str, why: str) -> None:
    task = Task(f"echo x >> {tmp_path}/runs; echo good > good; {link} out", cores=1, memory=10, disk=100)
    good = m.declare_buffer()
    task.add_output(good, "good")
    task.add_output(m.declare_temp(), "out")
    run(m, task)
    assert (task.result, task.exit_code, task.reason) == ("output missing", 0, f"its output out cannot be read: {why}")
    assert good.contents() == b"good\n" and (tmp_path / "runs").read_text() == "x\n"


def test_a_task_whose_standard_output_cannot_be_read(m: Manager) -> None:
    task = run(m, Task(f"rm .vine.stdout; {LONG_LINK} .vine.stdout", cores=1, memory=10, disk=100))
    assert task.successful() and task.output == "its standard output cannot be read: File name too long\n"


def go_deep(runs: str, name: str, levels: int) -> str:
    """Lives until the disk has been looked at: a file as large as its disk ends it there."""
    top = os.getcwd()
    for _ in range(levels):
        os.mkdir(name)
        os.chdir(name)
    with open("f" * 200, "w") as file:
        file.truncate(3 << 20)
    with open(runs, "a") as file:
        file.write("x")
    os.chdir(top)
    signal.pause()


@pytest.mark.parametrize(("name", "levels"), [("d", 1500), ("d" * 200, 22)])
def test_the_disk_of_a_task_that_goes_deep_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, levels: int
) -> None:
    """What it wrote at the bottom counts; its look is no fault of the sandbox, after which it would run again."""
    with Manager(local_cores=1) as m:
        task = PythonTask(go_deep, str(tmp_path / "runs"), name, levels)
        task.set_disk(2)
        task.set_cores(1)
        run(m, task)
        assert (task.result, (tmp_path / "runs").read_text()) == ("sandbox exhaustion", "x")


@pytest.mark.skipif(bool(PLAIN) and shutil.which("setpriv") is None, reason="needs setpriv, to take the rights of root away")
def test_rights_that_a_task_takes_away(leaves_no_process: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of somebody else")
    secret.chmod(0)
    denied = ["output missing", 0, "its output out cannot be read: Permission denied", "", ""]
    good = ["success", 0, "", "", "x\n"]
    unheard = "its standard output cannot be read: Permission denied\n"
    cases = {
        "chmod 000 out": denied,
        f"rm out; ln -s {secret} out": denied,
        "mkdir d; mv out d/f; ln -s d/f out; chmod 000 d": denied,
        "chmod 000 .": good,
        "chmod 400 .": good,
        "chmod 500 .": good,
        "chmod 000 ..": good,
        "chmod 000 .. .": good,
        "chmod 000 .vine.tmp": good,
        "chmod 000 .vine.stdout": [*good[:3], unheard, "x\n"],
        f"rm .vine.stdout; ln -s {secret} .vine.stdout": [*good[:3], unheard, "x\n"],
    }
    given = json.dumps([f"echo x > out; {command}" for command in cases])
    done = subprocess.run(
        [*PLAIN, sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, timeout=2 * LIMIT_S, check=False
    )
    if "setpriv:" in done.stderr:
        pytest.skip(f"rights cannot be taken away here: {done.stderr.strip()}")
    ended = dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=False))
    assert ended == cases, done.stderr
