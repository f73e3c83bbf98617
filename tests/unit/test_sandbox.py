"""The directory of one task, on a real disk and without any process: what is put in, taken out, found damaged, removed."""

from __future__ import annotations

import errno
import os
import resource
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.deep import make_deep
from vinecore.errors import UsageError
from vinecore.runtime import forking_slot, sandbox
from vinecore.runtime.forking_slot import Limits
from vinecore.runtime.places import _OPEN_LEVELS, TEMPORARY, Place, remove_tree
from vinecore.runtime.sandbox import COPY_BELOW_BYTES, STDOUT, Box
from vinecore.wire.messages import EXECUTABLE, HOME, ON_FAILURE, ON_SUCCESS, SYMLINK, Mount, Product, Sandbox

BIG = b"b" * (COPY_BELOW_BYTES + 1)
LIMIT_BYTES = 65536
NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "objects"
    path.mkdir()
    return path


def box_of(store: Path, *mounts: Mount, products: tuple[Product, ...] = (), **options: Any) -> Box:
    spec = Sandbox(list(mounts), list(products), [("MINE", "1"), ("GONE", None), ("TMP", "mine")], **options)
    return Box(Place(store.parent / "sandboxes"), "task.1.1", spec, store)


def test_inputs_are_where_they_should_be(store: Path) -> None:
    (store / "object").write_bytes(b"small")
    box = box_of(store, Mount("object", "a/b/in"), Mount(7, "value"), Mount("object", "link", SYMLINK))
    box.build({7: b"inline"})
    assert (box.path / "a/b/in").read_bytes() == b"small"
    assert (box.path / "value").read_bytes() == b"inline"
    assert (box.path / "link").is_symlink() and (box.path / "link").read_bytes() == b"small"
    (box.path / "a/b/in").write_bytes(b"changed")
    assert (store / "object").read_bytes() == b"small"


def test_programs_may_be_run(store: Path) -> None:
    (store / "small").write_bytes(b"#!")
    (store / "big").write_bytes(BIG)
    kinds = [Mount("small", "s", EXECUTABLE), Mount("big", "b", EXECUTABLE), Mount(1, "i", EXECUTABLE), Mount("small", "plain")]
    box = box_of(store, *kinds)
    box.build({1: b"#!"})
    assert [bool((box.path / name).stat().st_mode & 0o100) for name in ("s", "b", "i", "plain")] == [True, True, True, False]


def test_an_object_that_is_not_there(store: Path) -> None:
    with pytest.raises(FileNotFoundError):
        box_of(store, Mount("never", "in")).build({})


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "a/..", ""])
def test_names_that_lead_out(store: Path, name: str) -> None:
    for box in (box_of(store, Mount(1, name)), box_of(store, products=(Product(name, "out"),))):
        with pytest.raises(UsageError, match="leads out"):
            box.build({1: b""})
        box.remove()


def test_an_input_through_another_inputs_link(store: Path) -> None:
    """A link into the store under the name of a directory: nothing may be written behind it."""
    (store / "object").write_bytes(b"x")
    with pytest.raises(UsageError, match="in/below"):
        box_of(store, Mount("object", "in", SYMLINK), Mount(1, "in/below")).build({1: b""})


def test_the_last_of_two_inputs_counts_and_the_first_is_not_written(store: Path) -> None:
    (store / "big").write_bytes(BIG)
    for flags in (0, SYMLINK):
        box = box_of(store, Mount("big", "in", flags), Mount(1, "in"))
        box.build({1: b"last"})
        assert (box.path / "in").read_bytes() == b"last"
        box.remove()
    assert (store / "big").read_bytes() == BIG


def test_damage_is_seen_only_where_it_happened(store: Path) -> None:
    for name in ("one", "two"):
        (store / name).write_bytes(BIG)
    box = box_of(store, Mount("one", "one"), Mount("two", "two"))
    box.build({})
    assert box.damaged() == []
    with open(box.path / "two", "r+b") as file:
        file.write(b"damage")
    if (store / "two").read_bytes() == BIG:
        assert box.damaged() == []  # the file system shares blocks: the object is safe
    else:
        assert box.damaged() == ["two"]


def test_small_outputs_ride_along_and_others_are_moved(store: Path) -> None:
    products = (Product("small", "o.0", HOME), Product("big", "o.1", HOME), Product("d/temp", "o.2"), Product("no", "o.3"))
    box = box_of(store, products=products)
    box.build({})
    (box.path / "small").write_bytes(b"s")
    (box.path / "big").write_bytes(BIG)
    (box.path / "d/temp").write_bytes(b"t")
    taken, missing = box.collect(True, LIMIT_BYTES)
    assert taken == [("o.0", 1, b"s"), ("o.1", len(BIG), b""), ("o.2", 1, b"")]
    assert missing == ["no"]
    assert sorted(path.name for path in store.iterdir()) == ["o.1", "o.2"]
    assert (store / "o.1").read_bytes() == BIG


def test_what_rides_along_is_bounded_in_all(store: Path) -> None:
    products = tuple(Product(f"f{number}", f"o.{number}", HOME) for number in range(40))
    box = box_of(store, products=products)
    box.build({})
    for product in products:
        (box.path / product.path).write_bytes(b"x" * LIMIT_BYTES)
    taken, _ = box.collect(True, LIMIT_BYTES)
    assert sum(len(content) for _, _, content in taken) <= 1 << 20
    assert all(content or (store / name).stat().st_size == size for name, size, content in taken)


@pytest.mark.parametrize(("succeeded", "expected"), [(True, ["o.1", "o.2"]), (False, ["o.0", "o.2"])])
def test_outputs_of_success_and_failure(store: Path, succeeded: bool, expected: list[str]) -> None:
    box = box_of(store, products=(Product("f", "o.0", ON_FAILURE), Product("f", "o.1", ON_SUCCESS), Product("f", "o.2")))
    box.build({})
    (box.path / "f").touch()
    assert [name for name, _, _ in box.collect(succeeded, LIMIT_BYTES)[0]] == expected


def test_an_output_with_another_name_elsewhere_is_copied(store: Path) -> None:
    (store / "big").write_bytes(BIG)
    box = box_of(store, Mount("big", "in"), products=(Product("hard", "o.0"), Product("soft", "o.1")))
    box.build({})
    os.link(box.path / "in", box.path / "hard")
    (box.path / "soft").symlink_to("in")
    box.collect(True, LIMIT_BYTES)
    for name in ("o.0", "o.1"):
        assert (store / name).read_bytes() == BIG and not (store / name).is_symlink()
        assert (store / name).stat().st_ino != (store / "big").stat().st_ino


def test_environment(store: Path) -> None:
    box = box_of(store, cores=3, memory_mb=100)
    base = {"DISPLAY": ":0", "GONE": "x", "CORES": "99", "GPUS": "9", "KEPT": "yes", "OMP_NUM_THREADS": "1"}
    found = box.environment(base)
    assert "DISPLAY" not in found and "GONE" not in found and "GPUS" not in found and "DISK" not in found
    assert (found["CORES"], found["MEMORY"], found["OMP_NUM_THREADS"], found["KEPT"], found["MINE"]) == (
        "3",
        "100",
        "3",
        "yes",
        "1",
    )
    assert found["VINE_SANDBOX"] == str(box.path)
    assert found["TMP"] == found["TEMP"] == found["TMPDIR"] and found["TMP"].startswith(str(box.path))


def test_removal_of_what_has_no_rights_left(store: Path) -> None:
    box = box_of(store)
    box.build({})
    (box.path / "a/b").mkdir(parents=True)
    (box.path / "a/b/file").touch()
    (box.path / "a/b/file").chmod(0)
    (box.path / "out").symlink_to(store)
    (store / "object").touch()
    for name in ("a/b", "a"):
        (box.path / name).chmod(0)
    box.remove()
    assert not box.path.exists() and (store / "object").exists()
    remove_tree(str(box.path))  # a second time is harmless


@pytest.mark.parametrize("how", ["remove", "recycle"])
@pytest.mark.parametrize("rights", [0o700, 0])
def test_a_link_in_the_place_of_the_directory_is_not_followed(store: Path, tmp_path: Path, how: str, rights: int) -> None:
    precious = tmp_path / "precious"
    (precious / "below").mkdir(parents=True)
    (precious / "below/file").write_bytes(b"of the user")
    precious.chmod(rights)
    box = box_of(store)
    box.build({})
    box.path.rename(tmp_path / "aside")
    box.path.symlink_to(precious)
    getattr(box, how)()
    assert not box.path.is_symlink() and not box.path.exists()
    assert stat.S_IMODE(precious.stat().st_mode) == rights
    precious.chmod(0o700)
    assert (precious / "below/file").read_bytes() == b"of the user"


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A directory of the user's, which has to be as it was at the end."""
    path = tmp_path / "precious"
    (path / "task.1.1/below").mkdir(parents=True)
    names = ("file", "out", "in", "task.1.1/out", "task.1.1/below/file")
    for name in names:
        (path / name).write_text("of the user")
    found = sorted(path.rglob("*"))
    yield path
    assert sorted(path.rglob("*")) == found
    assert [(path / name).read_text() for name in names] == ["of the user"] * len(names)


def put_something(path: Path, kind: str, precious: Path) -> None:
    """What a task may leave under a name that is not its own."""
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "file":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty directory":
        path.mkdir(mode=0o755)
    else:
        (path / "in").mkdir(parents=True)


KINDS = ["link", "file", "pipe", "empty directory", "full directory"]


def runs_well(place: Place, store: Path, number: int) -> bool:
    """Whether the next task has a directory of its own, with nothing in it but its inputs, and its output is taken."""
    spec = Sandbox([Mount(1, "in")], [Product("out", "made", 0)], [])
    box = Box(place, f"task.{number}.1", spec, store)
    box.build({1: b"input"})
    assert sorted(os.listdir(box.path)) == [TEMPORARY, "in"] and os.listdir(box.path / TEMPORARY) == []
    assert box.path.resolve() == store.resolve().parent / "sandboxes" / f"task.{number}.1"
    (box.path / "out").write_bytes(b"output")
    assert box.collect(True, 0) == ([("made", 6, b"")], [])
    box.recycle()
    return (store / "made").read_bytes() == b"output"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["spare", "task.2.1"])
@pytest.mark.parametrize("when", ["while it runs", "while one is removed", "afterwards"])
def test_what_a_task_leaves_under_the_names_of_later_ones_is_not_used(
    store: Path, precious: Path, kind: str, name: str, when: str
) -> None:
    box = box_of(store)
    box.build({})
    if when == "afterwards":
        box.recycle()
        remove_tree(str(box.path.parent / name))
        put_something(box.path.parent / name, kind, precious)
    else:
        put_something(box.path.parent / name, kind, precious)
        (box.recycle if when == "while it runs" else box.remove)()
    for number in (2, 3):
        assert runs_well(box.place, store, number)
    assert os.listdir(box.place.path) == ["spare"]
    # It is used again.
    box.build({})
    box.recycle()
    assert os.listdir(box.place.path / "spare") == [TEMPORARY]


@pytest.mark.parametrize("path", ["file", f"{TEMPORARY}/file"])
def test_an_emptied_directory_that_is_not_empty_any_more_is_not_used(store: Path, path: str) -> None:
    box = box_of(store)
    box.build({})
    box.recycle()
    (box.place.path / "spare" / path).touch()
    assert runs_well(box.place, store, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["remove", "recycle"])
def test_what_is_put_in_the_place_of_the_directory_around_is_not_used(store: Path, precious: Path, kind: str, how: str) -> None:
    box = box_of(store, products=(Product("out", "made", 0),))
    box.build({})
    (box.path / "out").touch()
    aside = store.parent / "aside"
    box.place.path.rename(aside)
    put_something(box.place.path, kind, precious)
    assert box.collect(True, 0) == ([], ["out"])
    getattr(box, how)()
    assert os.listdir(aside) == []
    for number in (2, 3):
        assert runs_well(box.place, store, number)


def test_a_link_that_comes_while_the_directory_is_emptied_is_not_followed(
    store: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = box_of(store)
    box.build({})
    (box.path / "file").touch()
    real = os.scandir

    def scandir(place: Any) -> Any:
        if not box.path.is_symlink():
            box.path.rename(store.parent / "aside")
            box.path.symlink_to(precious)
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    box.recycle()
    monkeypatch.undo()
    assert os.listdir(store.parent / "aside") == [TEMPORARY]
    assert runs_well(box.place, store, 2)


def test_a_shared_place_is_used_by_all_of_its_processes(tmp_path: Path, precious: Path) -> None:
    places = [Place(tmp_path / "libraries", is_shared=True) for _ in range(2)]
    for number, place in enumerate(places):
        place.make(str(number))
    assert sorted(os.listdir(tmp_path / "libraries")) == ["0", "1"]
    (tmp_path / "libraries").rename(tmp_path / "aside")
    (tmp_path / "libraries").symlink_to(precious)
    places[0].make("2")
    assert os.listdir(tmp_path / "libraries") == ["2"]
    places[1].remove("1")
    assert os.listdir(tmp_path / "aside") == ["0"]


@pytest.mark.parametrize("rights", [0o700, 0o500])
def test_removal_of_more_levels_than_calls_and_descriptors_go_deep(tmp_path: Path, rights: int) -> None:
    make_deep(tmp_path / "deep", 3000, rights)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 150, limits[1]))
    try:
        remove_tree(str(tmp_path / "deep"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.listdir(tmp_path) == []


def test_removal_of_a_tree_that_is_wide_where_it_is_deep(tmp_path: Path) -> None:
    ends = [make_deep(tmp_path / "deep", _OPEN_LEVELS + 1 - level) for level in range(3)]
    for end in ends:
        for number in range(5):
            (end / f"w{number}/below").mkdir(parents=True)
            (end / f"w{number}/below/link").symlink_to(tmp_path)
    (tmp_path / "mine").touch()
    remove_tree(str(tmp_path / "deep"))
    assert os.listdir(tmp_path) == ["mine"]


def test_an_output_behind_a_link_that_leads_out_is_copied(store: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "out").write_bytes(b"kept by the user")
    box = box_of(store, products=(Product("results/out", "made", 0),))
    box.build({})
    (box.path / "results").rmdir()
    (box.path / "results").symlink_to(elsewhere)
    assert box.collect(True, 0) == ([("made", 16, b"")], [])
    assert (store / "made").read_bytes() == (elsewhere / "out").read_bytes() == b"kept by the user"


def test_removal_as_a_user_who_has_taken_his_own_rights_away() -> None:
    """In a child that is nobody: to root nothing is forbidden."""
    is_root = os.getuid() == 0
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)
        tree = Path(home, "sandboxes/task/a/b")
        tree.mkdir(parents=True)
        (tree / "file").touch()
        for path in (tree / "file", tree, *tree.parents[:3]):
            if is_root:
                os.chown(path, NOBODY, NOBODY)
            path.chmod(0)
        child = os.fork()
        if child == 0:
            try:
                if is_root:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                remove_tree(f"{home}/sandboxes/task")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.listdir(f"{home}/sandboxes") == []


def test_size_counts_what_the_task_wrote(store: Path) -> None:
    (store / "in").write_bytes(BIG * 3)
    box = box_of(store, Mount("in", "in"))
    box.build({})
    (box.path / STDOUT).write_bytes(BIG * 2)
    assert box.size_mb() == 2


# ------------------------------------------------------------ limits


class Clock:
    """Stands for the time module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(forking_slot, "time", clock)
    return clock


def test_no_limits_need_no_looks(clock: Clock) -> None:
    assert Limits(None, None).wait_ms() is None
    assert Limits(Sandbox([], [], []), None).wait_ms() is None
    clock.now += 1e9
    assert Limits(None, None).exceeded() == ""


@pytest.mark.parametrize(
    ("wall_s", "end_s", "expected", "at_s"),
    [(5.0, 0.0, "max wall time", 1005.0), (0.0, 1003.0, "max end time", 1003.0), (5.0, 1003.0, "max end time", 1003.0)],
)
def test_the_first_limit_counts(clock: Clock, wall_s: float, end_s: float, expected: str, at_s: float) -> None:
    limits = Limits(Sandbox([], [], [], wall_time_s=wall_s, end_at_s=end_s), None)
    clock.now = at_s - 0.01
    assert limits.exceeded() == "" and limits.wait_ms() in range(1, 13)
    clock.now = at_s
    assert limits.exceeded() == expected and limits.wait_ms() == 1


def test_the_disk_is_looked_at_now_and_then(clock: Clock, store: Path) -> None:
    box = box_of(store, disk_mb=1)
    box.build({})
    (box.path / "big").write_bytes(BIG * 3)
    limits = Limits(box.spec, box)
    assert limits.exceeded() == ""
    clock.now += forking_slot.DISK_LOOK_S
    assert limits.exceeded() == "sandbox exhaustion" and limits.seen_mb == 3


def test_a_disk_that_takes_only_some_products_keeps_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task counts as lost: the first product would stay on the full disk, and nobody would ever ask for it."""
    box = box_of(store, products=(Product("a", "r-1.1.0"), Product("b", "r-1.1.1")))
    box.build({})
    for name in "ab":
        (box.path / name).write_bytes(b"x")
    move = sandbox._move

    def fails_later(source: Path, target: Path) -> None:
        if source.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr(sandbox, "_move", fails_later)
    with pytest.raises(OSError, match="No space"):
        box.collect(True, LIMIT_BYTES)
    assert list(store.iterdir()) == []


def test_an_empty_product_is_no_object(store: Path) -> None:
    """Its bytes ride along: in the store it would stay behind, since nobody unlinks what has no bytes."""
    box = box_of(store, products=(Product("empty", "r-1.1.0"),))
    box.build({})
    (box.path / "empty").write_bytes(b"")
    assert box.collect(True, LIMIT_BYTES) == ([("r-1.1.0", 0, b"")], [])
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_link_around_a_place_is_not_followed(tmp_path: Path, is_shared: bool) -> None:
    """A task has put it where the workspace was."""
    around, victim = tmp_path / "workspace", tmp_path / "victim"
    around.mkdir()
    place, late = Place(around / "boxes", is_shared), Place(around / "boxes", is_shared)
    place.make("one")
    (victim / "boxes").mkdir(parents=True)
    (victim / "boxes" / "precious").touch()
    around.rename(tmp_path / "aside")
    around.symlink_to(victim)
    for which in (place, late, Place(around / "boxes", is_shared)):
        with pytest.raises(OSError, match=str(around)):
            which.make("two")
        with pytest.raises(OSError):
            which.find()
        which.remove_all()
    place.remove("one")
    assert not list((tmp_path / "aside" / "boxes").iterdir())
    assert [str(path.relative_to(victim)) for path in sorted(victim.rglob("*"))] == ["boxes", "boxes/precious"]
