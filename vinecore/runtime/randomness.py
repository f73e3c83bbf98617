"""Why equal calls in different processes draw different random numbers.

Two things would make them equal: a bound method such as ``random.random`` or ``numpy.random.normal`` is pickled together with the state of
its generator, and slots that are forked after numpy was imported inherit one state of numpy's global generator. So methods of a module's
own objects go by name, and each forked slot seeds that generator anew (Python's own ``random`` does so by itself).
"""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, MethodType
from typing import Any


def reduce_method(method: Any) -> Any:
    """Pickle a bound method: by name where it is a global of the module that defines its object's class."""
    owner = method.__self__
    module = sys.modules.get(type(owner).__module__)
    name = method.__name__
    if module is not None and module is not owner and type(owner).__module__ != "__main__" and vars(module).get(name) == method:
        return getattr, (module, name)
    if type(method) is MethodType:
        return MethodType, (method.__func__, owner)
    return method.__reduce_ex__(5)


REDUCERS = {BuiltinFunctionType: reduce_method, MethodType: reduce_method}


def reseed() -> None:
    """In a forked child: numpy's global generator starts from fresh entropy, if numpy was imported before the fork."""
    generators = sys.modules.get("numpy.random.mtrand")
    if generators is not None:
        generators.seed()
