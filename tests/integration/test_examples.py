"""Each example is run as a user runs it, in a process of its own, and what it prints is checked, numbers included.

The real NanoAOD samples are found through the environment variable ``VINE_TEST_DATA`` (default: ``../shared/data`` seen
from the project's root); tests that need them are skipped with that reason. No process may outlive its example.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import random
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DATA = Path(os.environ.get("VINE_TEST_DATA", str(ROOT.parent / "shared" / "data")))
TIMEOUT_S = 90

needs_physics = pytest.mark.skipif(
    importlib.util.find_spec("uproot") is None or importlib.util.find_spec("awkward") is None,
    reason='needs uproot and awkward: pip install -e ".[examples]"',
)
has_dask_awkward = importlib.util.find_spec("dask_awkward") is not None


def run(name: str, *arguments: str, cwd: Path, expected_code: int = 0) -> tuple[str, str]:
    """What the example printed on both streams; it must end in time, with this code; ``conftest`` finds what is left."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    # Its own session, so that a hanging example is ended with its children.
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"{name} did not end within {TIMEOUT_S} s; printed:\n{out}\n{err}")
    assert process.returncode == expected_code, f"{name} exited with {process.returncode}:\n{out}\n{err}"
    return out, err


def sample(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set VINE_TEST_DATA to the folder with the NanoAOD samples")
    return path


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, its checksums verified."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, kinds = 8, []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(data[position + 8 + length : position + 12 + length], "big")
        kinds.append(body[:4])
        position += 12 + length
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def masses_by_hand(paths: list[Path]) -> tuple[int, int, list[float]]:
    """Events, muons and pair masses of the files, in plain Python loops: no code shared with the example."""
    import uproot

    event_count, muon_count, masses_gev = 0, 0, []
    for path in paths:
        with uproot.open(path) as file:
            events = file["Events"].arrays([f"Muon_{n}" for n in ("pt", "eta", "phi", "mass", "charge")]).to_list()
        for event in events:
            event_count += 1
            muons = list(zip(*(event[f"Muon_{n}"] for n in ("pt", "eta", "phi", "mass", "charge")), strict=True))
            muon_count += len(muons)
            for i, one in enumerate(muons):
                masses_gev += [pair_mass(one, two) for two in muons[:i] if one[4] != two[4]]
    return event_count, muon_count, masses_gev


def pair_mass(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    total = [0.0, 0.0, 0.0, 0.0]
    for pt, eta, phi, mass, _ in (one, two):
        momentum = (pt * math.cos(phi), pt * math.sin(phi), pt * math.sinh(eta))
        energy = math.sqrt(sum(p * p for p in momentum) + mass * mass)
        total = [t + p for t, p in zip(total, (*momentum, energy), strict=True)]
    return math.sqrt(max(0.0, total[3] ** 2 - total[0] ** 2 - total[1] ** 2 - total[2] ** 2))


def rows_of_histogram(out: str) -> dict[int, int]:
    """Pairs by the first GeV of each row of the text histogram."""
    return {int(low): int(n) for low, n in re.findall(r"^ *(\d+)- *\d+ GeV +(\d+) \|", out, re.MULTILINE)}


@needs_physics
@pytest.mark.parametrize(("names", "partition_count"), [(["nano_dimuon.root"], 8), (["nano_dimuon.root", "nano_dy.root"], None)])
def test_dimuon_mass_on_real_files_equals_the_loops_by_hand(
    names: list[str], partition_count: int | None, tmp_path: Path
) -> None:
    paths = [sample(name) for name in names]
    event_count, muon_count, masses_gev = masses_by_hand(paths)
    expected_rows = {low: sum(low <= mass < low + 3 for mass in masses_gev) for low in range(0, 120, 3)}
    options = [] if partition_count is None else ["--partitions", str(partition_count)]

    out, _ = run("dimuon_mass.py", *map(str, paths), "--out", "spectrum.png", *options, cwd=tmp_path)

    assert f"{partition_count or len(names)} partitions in " in out
    assert f"{event_count} events, {muon_count} muons, {len(masses_gev)} opposite-charge pairs" in out
    assert rows_of_histogram(out) == expected_rows
    peak_gev = next(float(mass) for mass in re.findall(r"^Z peak: ([\d.]+) GeV", out, re.MULTILINE))
    assert 90.0 <= peak_gev <= 92.0
    marked = [line for line in out.splitlines() if line.endswith("<== Z peak")]
    assert len(marked) == 1 and marked[0].startswith(" 90- 93 GeV")
    assert min(png_size(tmp_path / "spectrum.png")) >= 200


@needs_physics
def test_dimuon_mass_generates_its_input(tmp_path: Path) -> None:
    out, _ = run("dimuon_mass.py", cwd=tmp_path)

    assert "50 partitions in " in out
    counts = re.search(r"^(\d+) events, (\d+) muons, (\d+) opposite-charge pairs$", out, re.MULTILINE)
    assert counts is not None
    event_count, muon_count, pair_count = map(int, counts.groups())
    assert event_count == 1_500_000
    # Every generated event has one muon or a pair.
    assert muon_count == event_count + pair_count > 2_500_000
    rows = rows_of_histogram(out)
    # The Z stands an order of magnitude above both sides, the J/psi above its right neighbour.
    assert rows[90] > 10 * max(rows[75], rows[108]) and rows[3] > 5 * rows[6]
    peak = re.search(r"^Z peak: ([\d.]+) GeV \((\d+) pairs between 90 and 93 GeV\)$", out, re.MULTILINE)
    assert peak is not None and 90.7 <= float(peak[1]) <= 91.7 and int(peak[2]) == rows[90]
    assert min(png_size(tmp_path / "dimuon_mass.png")) >= 200


@needs_physics
@pytest.mark.parametrize("content", [None, b"this is no ROOT file"])
def test_dimuon_mass_names_an_unreadable_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "events.root"
    if content is not None:
        path.write_bytes(content)
    _, err = run("dimuon_mass.py", str(path), cwd=tmp_path, expected_code=1)
    assert err.startswith(f"{path}: not a readable NanoAOD file")


@needs_physics
def test_dimuon_mass_draws_without_matplotlib(tmp_path: Path) -> None:
    import numpy as np

    spec = importlib.util.spec_from_file_location("dimuon_mass_example", EXAMPLES / "dimuon_mass.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_plain_png(tmp_path / "plain.png", np.arange(240), height=100, bar_width=2)
    assert png_size(tmp_path / "plain.png") == (480, 100)


def test_quickstart_dask(tmp_path: Path) -> None:
    out, _ = run("quickstart_dask.py", cwd=tmp_path)
    assert out == "2000 means, first 2998.5, last 8995.5\nequal to the formula: True\n"


def test_futures(tmp_path: Path) -> None:
    out, _ = run("futures.py", cwd=tmp_path)
    lines = out.splitlines()
    assert lines[:3] == ["1 + 2 = 3", "3 + 4 = 7", "the sum of both = 10"]
    # The order of completion is the engine's affair.
    assert sorted(lines[3:8]) == [f"completed: {n}" for n in (0, 1, 16, 4, 9)]
    assert lines[8:] == ["cancelled: True", "its result: CancelledError", "1 / 0: ZeroDivisionError: division by zero"]


def test_function_call(tmp_path: Path) -> None:
    out, _ = run("function_call.py", cwd=tmp_path)
    squares = [i * i for i in range(50)]
    expected = [
        f"look_up: 50 calls, sum {sum(squares)}",
        f"sum_up_to: 50 calls, sum {sum(sum(squares[:i]) for i in range(50))}",
        "context loads: 1",
    ]
    assert out.splitlines() == expected


def test_function_files(tmp_path: Path) -> None:
    out, _ = run("function_files.py", cwd=tmp_path)
    assert out.splitlines() == ["sea: 6 words: sea 1, ship 1, sky 1, the 3", "land: 4 words: a 2, hill 1, tree 1"]
    assert not list(tmp_path.iterdir())


def test_library_from_command(tmp_path: Path) -> None:
    out, _ = run("library_from_command.py", cwd=tmp_path)
    assert out.splitlines() == [
        f"square: 100 calls, sum {sum(i * i for i in range(100))}",
        f"total of every second square below 10: {sum(i * i for i in range(0, 10, 2))}",
        "square of 5000: IndexError: list index out of range",
    ]


def test_commands(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("commands_example", EXAMPLES / "commands.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_text(tmp_path / "text", module.TEXT_BYTES)
    text = (tmp_path / "text").read_text()
    assert 5_000_000 <= len(text) < 5_001_000
    expected = set()
    for word in module.SEARCHED:
        hits = text.count(word)
        expected.add(f"{word}: {sum(word in line for line in text.splitlines())} lines, {hits} hits, {hits * len(word)} bytes")
    out, _ = run("commands.py", cwd=tmp_path)
    assert len(out.splitlines()) == 3
    assert set(out.splitlines()) == expected


def test_dask_tasks(tmp_path: Path) -> None:
    expected = 0
    for number in range(24):
        chance = random.Random(number)
        expected += sum(float(f"{chance.random():.6f}") > 0.25 for _ in range(1000))
    out, _ = run("dask_tasks.py", cwd=tmp_path)
    assert out == f"24 runs, 5 of them died once: {expected} events above the threshold\n"
    assert list(tmp_path.iterdir()) == []


def test_functional(tmp_path: Path) -> None:
    out, _ = run("functional.py", cwd=tmp_path)
    expected = []
    for chunksize in (1, 2, 3):
        expected.append(f"map, chunks of {chunksize}: [2, 4, 6, 8]")
        expected.append(f"pair, chunks of {chunksize}: [10, 20, 30, 20, 40, 60, 30, 60, 90, 40, 80, 120]")
    expected += [f"tree_reduce, chunks of {chunksize}: 9" for chunksize in (2, 3)]
    assert out.splitlines() == [*expected, "equal to the local computation: True"]


@pytest.mark.skipif(
    not has_dask_awkward,
    reason='needs dask-awkward: pip install -e ".[awkward]" "dask==2025.3.*" from a clone, in another environment',
)
def test_points_awkward(tmp_path: Path) -> None:
    out, _ = run("points_awkward.py", cwd=tmp_path)
    assert out == "[5.0, 1.0]\n[]\n[0.0]\n[12.0, 10.0, 1.0]\n"


@pytest.mark.skipif(has_dask_awkward, reason="dask-awkward is installed, so nothing is missing")
def test_points_awkward_says_what_is_missing(tmp_path: Path) -> None:
    _, err = run("points_awkward.py", cwd=tmp_path, expected_code=1)
    assert "needs dask-awkward" in err and 'pip install -e ".[awkward]" "dask==2025.3.*"' in err


ALL = [
    pytest.param(path.name, marks=needs_physics if path.name == "dimuon_mass.py" else ())
    for path in sorted(EXAMPLES.glob("*.py"))
]


@pytest.mark.parametrize("name", ALL)
def test_impossible_options_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    for arguments, text in (
        (("--cores", "0"), "--cores must be at least 1"),
        (("--port", "99999"), "--port must be between 0 and 65535"),
    ):
        assert refusal(name, *arguments, cwd=tmp_path) == text


def refusal(name: str, *arguments: str, cwd: Path) -> str:
    """The error of an example that refused its arguments and did nothing."""
    out, err = run(name, *arguments, cwd=cwd, expected_code=2)
    *usage, last = err.splitlines()
    assert out == "" and usage[0].startswith("usage: ") and "Traceback" not in err
    assert list(cwd.glob("*.png")) == []
    return last.removeprefix(f"{name}: error: ")


@pytest.mark.parametrize("name", ALL)
def test_help_is_the_whole_docstring(name: str, tmp_path: Path) -> None:
    out, _ = run(name, "--help", cwd=tmp_path)
    docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()), clean=False)
    assert docstring is not None and docstring.strip() in out


@pytest.mark.parametrize("size", ["0", "-1"])
def test_quickstart_dask_refuses_a_size(size: str, tmp_path: Path) -> None:
    assert refusal("quickstart_dask.py", "--size", size, cwd=tmp_path) == "--size must be at least 1"


@needs_physics
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--out", "nowhere/x.png"), "--out nowhere/x.png: there is no directory nowhere; make it first"),
        (("--out", "x.xyz"), "--out x.xyz: the picture is a PNG, so its name must end in .png"),
        (("--events", "0"), "--events must be at least 1"),
        (("--partitions", "0"), "--partitions must be at least 1"),
    ],
)
def test_dimuon_mass_refuses(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    assert refusal("dimuon_mass.py", *arguments, cwd=tmp_path) == text


@needs_physics
@pytest.mark.parametrize(("event_count", "partition_count"), [(10, 10), (1, 1)])
def test_dimuon_mass_of_few_events(event_count: int, partition_count: int, tmp_path: Path) -> None:
    out, _ = run("dimuon_mass.py", "--events", str(event_count), cwd=tmp_path)
    assert f"\n{partition_count} partitions in " in out and f"\n{event_count} events, " in out


BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("docs/quickstart.md", "README.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_programs_on_the_first_pages_run_as_written(block: str, tmp_path: Path) -> None:
    """What a comment beside a print says (up to a colon) is what it prints; every program prints something."""
    program = tmp_path / "program.py"
    program.write_text(block)
    out, _ = run(str(program), cwd=tmp_path)
    promised = [comment.split(":")[0].strip() for comment in re.findall(r"\bprint\(.*\)  # (.*)", block)]
    printed = out.splitlines()
    assert printed and [line for line in printed if line in promised] == promised
