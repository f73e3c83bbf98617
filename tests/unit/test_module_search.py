"""Modules that are worth importing before a fork: found in code and in what it captures, without importing them."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.kit.sources import function_of
from vinecore.runtime.functions import FunctionCache
from vinecore.runtime.module_search import modules_of


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installed packages that were never imported here: vc_pack with vc_pack.stats and vc_pack.deep.inner."""
    root = tmp_path / "site-packages"
    for name in ("vc_pack", "vc_pack/deep"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("raise SystemError('imported')")
    (root / "vc_pack/stats.py").touch()
    (root / "vc_pack/deep/inner.py").touch()
    monkeypatch.syspath_prepend(str(root))
    importlib.invalidate_caches()
    from vinecore.runtime.module_search import _is_module

    _is_module.cache_clear()
    yield
    _is_module.cache_clear()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import vc_pack", "vc_pack"),
        ("import vc_pack.stats", "vc_pack.stats"),
        ("import vc_pack.stats as s; return s.thing", "vc_pack.stats"),
        ("import vc_pack.deep.inner as s; return s.thing", "vc_pack.deep.inner"),
        ("from vc_pack import stats", "vc_pack vc_pack.stats"),
        ("from vc_pack import stats, nothing", "vc_pack vc_pack.stats"),
        ("from vc_pack import deep; return deep.inner.thing(1)", "vc_pack vc_pack.deep vc_pack.deep.inner"),
        ("from vc_pack.stats import norm", "vc_pack.stats"),
        ("import vc_pack; return vc_pack.stats.norm(1)", "vc_pack vc_pack.stats"),
        ("import vc_pack as p; return p.deep.inner.x.y", "vc_pack vc_pack.deep vc_pack.deep.inner"),
        ("import vc_pack as p\n    def g(): return p.stats.a\n    return g", "vc_pack vc_pack.stats"),
        ("def g():\n        import vc_pack\n    return g", "vc_pack"),
        ("class A:\n        import vc_pack\n    return A", "vc_pack"),
        ("return [__import__('x') for x in ()]", ""),
        ("import json, os.path; from collections import abc", ""),
        ("import vc_absent_module", "vc_absent_module"),
        ("from vinecore.runtime import payload", ""),
        ("from . import x", ""),
    ],
)
def test_imports_inside_bodies(packages: None, body: str, expected: str) -> None:
    assert modules_of(function_of(f"def f():\n    {body}")) == tuple(expected.split())
    assert "vc_pack" not in sys.modules


def test_objects_among_globals_closure_defaults_and_partials() -> None:
    assert modules_of(function_of("def f(): return np", np=np)) == ("numpy",)
    assert "numpy.linalg" in modules_of(function_of("def f(): return np.linalg.norm", np=np))
    assert "numpy" in modules_of(function_of("def f(): return a", a=np.zeros(2)))
    assert "numpy" in modules_of(function_of("def f(): return a", a=[{"k": (np.float64,)}]))
    assert "numpy" in modules_of(function_of("def g(x=np.float64(2)): pass\ndef f(): return g()", np=np))
    assert "numpy" in modules_of(function_of("class A:\n    def m(self): return np.pi\ndef f(): return A()", np=np))
    assert "numpy" in modules_of(functools.partial(len, np.zeros(2)))
    assert modules_of(np.add) == modules_of(np.mean) == ("numpy",)
    assert "numpy.linalg" in modules_of(np.linalg.norm)
    assert modules_of(len) == modules_of(json.dumps) == modules_of(function_of("def f(x): return x")) == ()
    assert "pytest" not in modules_of(function_of("def f(): return np.pytest", np=np, pytest=pytest))


def test_functions_by_name_count_with_their_module_and_the_imports_in_their_body(
    packages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import json\ndef run():\n    import vc_pack.stats\n    from . import sibling\n    return json\n"
    root = tmp_path / "site-packages" / "vc_caller"
    root.mkdir()
    (root / "__init__.py").touch()
    (root / "sibling.py").touch()
    (root / "entry.py").write_text(source)
    try:
        entry = importlib.import_module("vc_caller.entry")
        expected = ("vc_caller", "vc_caller.entry", "vc_caller.sibling", "vc_pack.stats")
        assert modules_of(entry.run) == expected
        assert modules_of(functools.partial(entry.run)) == expected
    finally:
        for name in ("vc_caller", "vc_caller.entry"):
            sys.modules.pop(name, None)


def test_local_modules_are_left_out_but_what_they_use_counts(local_module: Callable[[str, str], ModuleType]) -> None:
    local_module("vc_local_util", "import numpy as np\ndef mean(x): return np.linalg.norm(x)\n")
    helper = local_module("vc_local_user", "import vc_local_util\ndef run(x): return vc_local_util.mean(x)\n")
    found = FunctionCache().get(helper.run).modules
    assert "numpy" in found and "numpy.linalg" in found
    assert not [name for name in found if name.startswith("vc_local")]


@pytest.mark.parametrize("name", ["m" * 20_000_000, "odd\udcff"], ids=["long", "no UTF-8"])
def test_names_that_no_message_takes_are_left_out(name: str) -> None:
    """They ended the worker that they were sent to, or the manager."""
    odd, usual = ModuleType(name), ModuleType("usual_name")
    found = modules_of(lambda: (odd, usual))
    assert "usual_name" in found and name not in found
