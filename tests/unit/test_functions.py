"""The function cache's validity, digests that agree between processes, and what is sent by value."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import gc
import importlib
import json
import math
import os
import pickle
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from tests.kit.sources import function_of
from vinecore.errors import UnpicklableError
from vinecore.runtime import captures
from vinecore.runtime import payload as payloads
from vinecore.runtime.functions import FunctionCache, digest_of

MAIN_SOURCE = """
import math
import numpy as np
SCALE = 2
TABLE = [1, 2]
SETTINGS = (1, ("a", frozenset({"b"})))
def scaled(x): return x * SCALE
def twice(x): return scaled(scaled(x))
def listed(x): return TABLE
def settled(x): return SETTINGS, math.pi, len(SETTINGS), np.float64
def recursive(x): return x and recursive(x - 1)
def with_default(x, y=(1, 2), *, z=3): return x
def with_mutable_default(x, y={}): return x
def make(value):
    def inner(): return value
    return inner
def make_recursive():
    def inner(x): return x and inner(x - 1)
    return inner
def tagged(x): return tagged.tag
class Plain:
    size = 3
    def get(self): return self.size
    @property
    def double(self): return scaled(self.size)
class Listing:
    items = []
def builds(x): return Plain()
def lists(x): return Listing()
def unlisted(x): return undefined_name
"""


@pytest.fixture
def main() -> dict[str, Any]:
    """Names as a program's own file defines them: nobody can import them."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(MAIN_SOURCE, "program.py", "exec"), namespace)
    return namespace


def again(function: Any) -> Any:
    return pickle.loads(FunctionCache().get(function).payload)


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    "name", ["scaled", "twice", "settled", "recursive", "with_default", "tagged", "builds", "Plain", "unlisted"]
)
def test_an_unchanged_function_is_pickled_once(main: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FunctionCache()
    first = cache.get(main[name])
    monkeypatch.setattr(payloads, "dump", None)
    assert cache.get(main[name]) is first
    assert first.name == name


@pytest.mark.parametrize(
    "function",
    [
        json.dumps,
        len,
        math.sin,
        np.add,
        np.linalg.norm,
        collections.OrderedDict,
        functools.partial(json.dumps, indent=2),
        np.float64,
    ],
)
def test_importable_callables_are_pickled_once(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FunctionCache()
    first = cache.get(function)
    monkeypatch.setattr(payloads, "dump", None)
    assert cache.get(function) is first
    assert len(first.payload) < 200


def rebind(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda main: main.__setitem__(name, value)


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("scaled", rebind("SCALE", 3)),
    ("twice", rebind("SCALE", 3)),
    ("twice", lambda main: setattr(main["scaled"], "__code__", (lambda x: -x).__code__)),
    ("twice", lambda main: setattr(main["scaled"], "__defaults__", (5,))),
    ("twice", rebind("scaled", len)),
    ("settled", rebind("len", max)),
    ("settled", rebind("SETTINGS", (1, ("b", frozenset())))),
    ("scaled", lambda main: setattr(main["scaled"], "__code__", (lambda x: -x).__code__)),
    ("with_default", lambda main: setattr(main["with_default"], "__defaults__", (4,))),
    ("with_default", lambda main: setattr(main["with_default"], "__kwdefaults__", {"z": 4})),
    ("with_default", lambda main: main["with_default"].__kwdefaults__.__setitem__("z", 4)),
    ("tagged", lambda main: setattr(main["tagged"], "tag", 1)),
    ("unlisted", rebind("undefined_name", 1)),
    ("builds", lambda main: setattr(main["Plain"], "size", 4)),
    ("builds", lambda main: setattr(main["Plain"], "more", 4)),
    ("builds", lambda main: setattr(main["Plain"].get, "__code__", (lambda self: 8).__code__)),
    ("builds", rebind("SCALE", 5)),
    ("Plain", lambda main: setattr(main["Plain"], "size", 4)),
    ("listed", lambda main: main["TABLE"].append(3)),
    ("with_mutable_default", lambda main: main["with_mutable_default"].__defaults__[0].update(a=1)),
    ("lists", lambda main: main["Listing"].items.append(1)),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_change_of_anything_captured_is_noticed(
    main: dict[str, Any], name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    cache = FunctionCache()
    first = cache.get(main[name])
    assert cache.get(main[name]) is first
    change(main)
    second = cache.get(main[name])
    assert second is not first and second.payload != first.payload
    assert cache.get(main[name]) is second


def test_closures_are_compared_by_their_contents(main: dict[str, Any]) -> None:
    cache = FunctionCache()
    inner = main["make"]((1, 2))
    first = cache.get(inner)
    assert cache.get(inner) is first
    inner.__closure__[0].cell_contents = (3, 4)
    assert pickle.loads(cache.get(inner).payload)() == (3, 4)
    recursive = main["make_recursive"]()
    assert cache.get(recursive) is cache.get(recursive)
    del recursive.__closure__[0].cell_contents
    assert cache.get(recursive) is not first


def test_mutable_captures_are_never_cached_but_equal_bytes_are_the_same_pickle(
    main: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[object] = []
    dump = payloads.dump
    monkeypatch.setattr(payloads, "dump", lambda value: counted.append(value) or dump(value))
    cache = FunctionCache()
    mutable = [{}, set(), [1], bytearray(2), np.zeros(2), object.__new__(main["Plain"]), ([],), main["listed"]]
    for value in mutable:
        function = main["make"](value)
        counted.clear()
        assert cache.get(function) is cache.get(function)
        assert counted == [function, function], value


def test_immutable_captures_are_cached(main: dict[str, Any]) -> None:
    import datetime
    import decimal
    import logging

    Color = enum.Enum("Color", "RED")
    sys.modules[__name__].Color = Color  # type: ignore[attr-defined]
    Color.__module__ = "json"
    json.Color = Color  # type: ignore[attr-defined]
    values = [
        *(1, "a", None, (1, (2.0, "b")), frozenset({1}), len, json, json.dumps, json.JSONDecoder, range(3), slice(1, 2), ...),
        *(re.compile("a+"), Path("/tmp"), datetime.date(2026, 1, 2), decimal.Decimal(2), np.float64(2), np.dtype("f8"), np.add),
        *(logging.getLogger("x"), functools.partial(len, (1,)), list[int], int | None, Color.RED, main["scaled"], main["Plain"]),
    ]
    try:
        for value in values:
            cache = FunctionCache()
            function = main["make"](value)
            cache.get(function)
            assert len(cache._entries) == 1, value
    finally:
        del json.Color  # type: ignore[attr-defined]


def test_equal_functions_share_one_pickle(main: dict[str, Any]) -> None:
    cache = FunctionCache()
    pickles = [cache.get(main["make"](5)) for _ in range(3)]
    assert pickles[0] is pickles[1] is pickles[2]
    assert cache.get(main["make"](6)) is not pickles[0]


def test_a_new_function_is_never_answered_from_a_dead_one_with_its_id(main: dict[str, Any]) -> None:
    cache = FunctionCache()
    ids = set()
    for number in range(200):
        function = main["make"](number)
        ids.add(id(function))
        assert pickle.loads(cache.get(function).payload)() == number
        del function
    assert len(ids) < 200, "no id came twice: the test shows nothing"
    gc.collect()
    cache.get(main["scaled"])
    assert len(cache._entries) == 1


def test_the_cache_is_bounded_and_drops_the_unused_first(main: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pickled: list[object] = []
    dump = payloads.dump
    monkeypatch.setattr(payloads, "dump", lambda value: pickled.append(value) or dump(value))
    cache = FunctionCache(limit_count=10)
    kept = [main["make"](number) for number in range(30)]
    first = cache.get(kept[0])
    for function in kept[1:]:
        cache.get(function)
        cache.get(kept[0])
    assert len(cache._entries) == 10
    assert cache.get(kept[0]) is first
    assert pickled == kept
    assert id(kept[0]) in cache._entries and id(kept[1]) not in cache._entries


@pytest.mark.parametrize("name", ["scaled", "recursive", "twice"])
def test_the_cache_does_not_keep_functions_alive(main: dict[str, Any], name: str) -> None:
    cache = FunctionCache()
    held = cache.get(main[name])
    reference = weakref.ref(main.pop(name))
    gc.collect()
    assert reference() is None and held.payload


@pytest.mark.parametrize("kind", ["partial", "method", "classmethod", "instance", "lambda", "builtin method", "cached"])
def test_all_kinds_of_callables(main: dict[str, Any], kind: str) -> None:
    class Adder:
        total = 10

        def __call__(self, x: int) -> int:
            return self.total + x

        @classmethod
        def make(cls, x: int) -> int:
            return cls.total + x

    instance = Adder()
    functions: dict[str, Any] = {
        "partial": functools.partial(lambda a, b: a + b, 10),
        "method": instance.__call__,
        "classmethod": Adder.make,
        "instance": instance,
        "lambda": lambda x: x + 10,
        "builtin method": (10).__add__,
        "cached": functools.lru_cache(lambda x: x + 10),
    }
    cache = FunctionCache()
    function = functions[kind]
    assert pickle.loads(cache.get(function).payload)(5) == 15
    assert cache.get(function) is cache.get(function)
    assert isinstance(cache.get(function).name, str)


def test_changes_of_instances_and_partials_are_noticed() -> None:
    class Adder:
        def __init__(self) -> None:
            self.total = 1

        def add(self, x: int) -> int:
            return self.total + x

    cache = FunctionCache()
    adder = Adder()
    assert pickle.loads(cache.get(adder.add).payload)(1) == 2
    adder.total = 5
    assert pickle.loads(cache.get(adder.add).payload)(1) == 6
    partial = functools.partial(dict, a=1)
    first = cache.get(partial)
    assert cache.get(partial) is first
    partial.keywords["a"] = 2
    assert pickle.loads(cache.get(partial).payload)() == {"a": 2}


def test_a_patched_name_is_noticed(local_module: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FunctionCache()
    function = json.dumps
    first = cache.get(function)
    monkeypatch.setattr(json, "dumps", len)
    assert cache.get(function) is not first


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "lock = threading.Lock()\ndef f(): return lock",
            "function f cannot be pickled at global variable 'lock' (a _thread.lock)",
        ),
        ("def g():\n x = {'k': threading.Lock()}\n return lambda: x\nf = g()", "at closure variable 'x'['k'] (a _thread.lock)"),
        ("def f(x=threading.Lock()): pass", "function f cannot be pickled at a default (a _thread.lock)"),
        ("def g(): return lock\nlock = threading.Lock()\ndef f(): return g()", "at global variable 'g' global variable 'lock'"),
        ("f = functools.partial(print, threading.Lock())", "function print cannot be pickled at .args[0]"),
    ],
)
def test_what_cannot_be_pickled_is_named(source: str, text: str) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "threading": threading, "functools": functools}
    exec(source, namespace)
    with pytest.raises(UnpicklableError) as caught:
        FunctionCache().get(namespace["f"])
    assert text in str(caught.value) and "cannot pickle '_thread.lock' object" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


def test_several_threads_get_the_same_pickle(main: dict[str, Any]) -> None:
    cache = FunctionCache()
    functions = [main["make"](number) for number in range(50)]
    barrier = threading.Barrier(4)
    found: list[list[Any]] = []

    def ask() -> None:
        barrier.wait(30)
        found.append([cache.get(function) for function in functions])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    for pickles in zip(*found, strict=True):
        assert len({id(one) for one in pickles}) == 1


# ---------------------------------------------------------------- by value


def test_functions_of_local_modules_are_sent_by_value(local_module: Callable[[str, str], ModuleType]) -> None:
    helper = local_module("vc_local_helper", "import json\nBASE = 4\nclass Thing: pass\ndef run(x): return BASE + x, Thing\n")
    cache = FunctionCache()
    pickled = cache.get(helper.run)
    assert cache.get(helper.run) is pickled
    program = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())(1)[0])"
    run = subprocess.run(
        [sys.executable, "-c", program], input=pickled.payload, capture_output=True, timeout=60, check=True, cwd="/", env={}
    )
    assert run.stdout.split() == [b"5"]
    helper.BASE = 5  # type: ignore[attr-defined]
    assert cache.get(helper.run) is not pickled
    value = payloads.decode(payloads.dump(helper.Thing()))
    assert type(value) is helper.Thing


@pytest.mark.parametrize("by", ["site-packages", "pth", "editable", "PYTHONPATH", "prefix"])
def test_installed_modules_are_sent_by_name(
    local_module: Callable[[str, str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    source = "def run(): return 1\n"
    if by == "site-packages":
        (tmp_path / "lib" / "site-packages").mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / "lib" / "site-packages"))
        (tmp_path / "lib" / "site-packages" / "vc_installed.py").write_text(source)
        (tmp_path / "lib" / "site-packages" / "other.pth").write_bytes(b"# nothing\nimport sys\n\xff\n")
        monkeypatch.chdir("/")
    elif by == "pth":
        (tmp_path / "site-packages").mkdir()
        (tmp_path / "site-packages" / "project.pth").write_text(f"{tmp_path}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    elif by == "editable":
        finder = ModuleType("__editable___vc_finder")
        finder.MAPPING = {"vc_installed": str(tmp_path)}  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, finder.__name__, finder)
    elif by == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", f".:{tmp_path}/")
    else:
        monkeypatch.setattr(captures, "_system_prefixes", lambda: (f"{tmp_path}/",))
    module = importlib.import_module("vc_installed") if by == "site-packages" else local_module("vc_installed", source)
    try:
        assert len(FunctionCache().get(module.run).payload) < 60
        assert "vc_installed" not in captures.by_value_modules()
    finally:
        sys.modules.pop("vc_installed", None)
        captures._seen_modules.discard("vc_installed")


@pytest.mark.parametrize("last", [[], ["vc_top"]])
def test_a_local_module_that_replaces_another_is_noticed(local_module: Callable[[str, str], ModuleType], last: list[str]) -> None:
    """There are as many modules as before; after the reload of a package with another part the last name is the same, too."""
    for name in ("vc_first", "vc_second"):
        for taken in ("vc_first", *last):
            sys.modules.pop(taken, None)
        for module in (name, *last):
            local_module(module, "def run(): return 1\n")
        captures.register_local_modules()
        assert name in captures.by_value_modules()


def test_our_own_packages_and_the_standard_library_are_never_sent_by_value() -> None:
    captures.register_local_modules()
    names = captures.by_value_modules()
    assert not {name.partition(".")[0] for name in names} & {"vinecore", "daskvine", "json", "numpy", "pytest", "_pytest"}


# ---------------------------------------------------------------- digest

DIGEST_SOURCE = """
import dataclasses, enum, functools, math, re
import numpy as np
from vinecore.runtime.functions import digest_of
WORDS = {"alpha", "beta", "gamma", "delta", "epsilon"}
MIXED = frozenset({1, "one", (2, "two"), None, 2.5})
TABLE = {"a": [1, 2.0, -0.0, 1j, b"x"], "b": {"nested": WORDS}}
ARRAY = np.arange(6.0).reshape(2, 3)
PATTERN = re.compile("a+" * 300, re.I)
def base(x): return x in {"red", "green", "blue", "yellow"} or x in WORDS
def user(x, y=(1, "d"), *, z=None): return base(x), TABLE, MIXED, math.pi, len(ARRAY), PATTERN
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
@dataclasses.dataclass
class Point:
    x: int
    names: list = dataclasses.field(default_factory=list)
    def norm(self): return math.hypot(self.x, len(self.names))
class Sub(Point):
    kinds = {"p", "q", "r", "s"}
    def norm(self): return super().norm()
class Slotted:
    __slots__ = ("b", "a")
    @property
    def both(self): return self.a, self.b
    @staticmethod
    def fixed(): return base
def classes(x): return Point(1), Sub, Slotted
def outer(value):
    def inner(x): return [value for _ in range(x) if (lambda q: q + value)(1)]
    return inner
@functools.lru_cache(maxsize=3)
def cached(x): return x in WORDS
FUNCTIONS = [base, user, even, classes, outer((1, "c")), functools.partial(user, 1, z=WORDS), math.sin, len, re.sub, np.add,
             "a".join, cached, Slotted, np.linalg.norm]
for function in FUNCTIONS:
    print(digest_of(function).hex())
"""


def digests(source: str, seed: str, tmp_path: Path) -> list[str]:
    directory = tmp_path / f"dir{seed}"
    directory.mkdir()
    (directory / "program.py").write_text("\n" * int(seed) + source)
    run = subprocess.run(
        [sys.executable, str(directory / "program.py")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_digests_agree_between_processes_with_different_hash_seeds(tmp_path: Path) -> None:
    found = [digests(DIGEST_SOURCE, seed, tmp_path) for seed in ("1", "2", "77")]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == len(found[0]) == 14
    assert all(len(digest) == 32 for digest in found[0])


VARIANTS = [
    "def f(x): return x + 1",
    "def f(x): return x + 2",
    "def f(x): return x + 2.0",
    "def f(x): return x + True",
    "def f(x): return x - 1",
    "def f(y): return y + 1",
    "def f(x, z=1): return x + 1",
    "def f(x, z=-0.0): return x + 1",
    "def f(x, z=0.0): return x + 1",
    "def f(x, *, z=1): return x + 1",
    "K = 1\ndef f(x): return x + K",
    "K = 2\ndef f(x): return x + K",
    "K = [1, 2]\ndef f(x): return x + K",
    "K = (1, 2)\ndef f(x): return x + K",
    "K = {1, 2}\ndef f(x): return x + K",
    "K = frozenset({1, 2})\ndef f(x): return x + K",
    "K = {1: 2}\ndef f(x): return x + K",
    "K = '1'\ndef f(x): return x + K",
    "K = b'1'\ndef f(x): return x + K",
    "def K(): return 1\ndef f(x): return x + K",
    "def K(): return 2\ndef f(x): return x + K",
    "class K: a = 1\ndef f(x): return x + K",
    "class K: a = 2\ndef f(x): return x + K",
    "K = len\ndef f(x): return x + K",
    "K = max\ndef f(x): return x + K",
    "def f(x): return x + K",
    "def f(x): return x + 1\nf.tag = 1",
    "def f(x): return x.real + 1",
    "def f(x):\n try: return x + 1\n except E: pass",
    "def g(v):\n def f(x): return x + v\n return f\nf = g(1)",
    "def g(v):\n def f(x): return x + v\n return f\nf = g(2)",
    "def f(x): return f",
    "def f(x): return g\ndef g(x): return f",
    "def f(x): return g\ndef g(x): return g",
]


def test_different_functions_have_different_digests_and_equal_ones_the_same() -> None:
    found = [digest_of(function_of(source)) for source in VARIANTS]
    assert None not in found
    assert len(set(found)) == len(VARIANTS)
    assert found == [digest_of(function_of("\n\n" + source)) for source in VARIANTS]


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [object(), threading.Lock(), cyclic(), np.array([object()]), slice(0, object()), functools.partial(len, object())],
)
def test_what_has_no_normal_form_has_no_digest(value: object) -> None:
    assert digest_of(function_of("def f(): return K", K=value)) is None


def test_functions_in_sets_that_lead_back_have_no_digest_or_a_true_one() -> None:
    def made(first: str, second: str) -> bytes | None:
        return digest_of(function_of(f"def a(): return 1\ndef b(): return 2\ndef f(): return S, a\nS = {{{first}, {second}}}"))

    assert made("a", "b") == made("b", "a") is not None
    assert digest_of(function_of("def a(): return S\ndef b(): return S, 1\nS = {a, b}\ndef f(): return S")) is None


def test_the_digest_of_a_pickle_is_that_of_what_was_pickled(main: dict[str, Any]) -> None:
    cache = FunctionCache()
    pickled = cache.get(main["scaled"])
    assert pickled.digest == digest_of(main["scaled"]) == cache.get(main["scaled"]).digest
    before = digest_of(main["listed"])
    late = cache.get(main["listed"])
    main["TABLE"].append(3)
    assert late.digest is None
    assert cache.get(main["listed"]).digest not in (None, before)
    dead = FunctionCache().get(main["make"](4))
    gc.collect()
    assert dead.digest is None


def test_a_pickled_function_runs_elsewhere_with_what_it_captured(main: dict[str, Any]) -> None:
    assert again(main["twice"])(3) == 12
    assert again(main["builds"])(1).double == 6
    assert isinstance(again(main["scaled"]), FunctionType)


@dataclasses.dataclass
class Sized:
    size: int = 2


def test_dataclasses_are_stable_captures() -> None:
    cache = FunctionCache()
    function = function_of("def f(): return S()", S=Sized)
    cache.get(function)
    assert len(cache._entries) == 1
