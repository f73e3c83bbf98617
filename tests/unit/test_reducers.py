"""What is pickled by name, and what tblib may not touch."""

from __future__ import annotations

import copyreg
import pickle
import random

import numpy as np
import pytest

from vinecore.runtime import payload, randomness

METHODS = [random.random, random.uniform, random.Random.random, np.random.random, np.random.normal, len, str.upper]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_of_module_globals_are_the_same_object_elsewhere(method: object) -> None:
    data = payload.dump(method)
    assert len(data) < 200, "no state travels"
    assert pickle.loads(data) == method


def test_methods_of_other_objects_take_their_object_along() -> None:
    items: list[int] = [1, 2]
    count = pickle.loads(payload.dump(items.count))
    items.append(1)
    assert count(1) == 1
    generator = random.Random(5)
    draw = pickle.loads(payload.dump(generator.random))
    assert draw() == generator.random() == random.Random(5).random()
    shuffle = pickle.loads(payload.dump(generator.shuffle))
    assert shuffle.__self__ is not generator


def test_exceptions_are_pickled_by_their_own_class_whatever_tblib_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hidden(Exception):
        pass

    def pickle_exception(error: BaseException) -> object:
        raise AssertionError("frames would travel")

    monkeypatch.setattr(pickle_exception, "__module__", "tblib.pickling_support")
    monkeypatch.setitem(copyreg.dispatch_table, Hidden, pickle_exception)
    monkeypatch.setitem(copyreg.dispatch_table, KeyError, pickle_exception)
    assert repr(pickle.loads(payload.dump(KeyError("k")))) == "KeyError('k')"
    monkeypatch.setitem(copyreg.dispatch_table, KeyError, lambda error: (KeyError, ("reduced by the user",)))
    assert pickle.loads(payload.dump(KeyError("k"))).args == ("reduced by the user",)


def test_reseeding_changes_what_numpy_draws() -> None:
    state = np.random.get_state()
    try:
        np.random.seed(1)
        first = np.random.random()
        np.random.seed(1)
        randomness.reseed()
        assert np.random.random() != first
    finally:
        np.random.set_state(state)
