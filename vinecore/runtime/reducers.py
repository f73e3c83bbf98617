"""How objects are pickled that others would pickle badly: what stands before pickle's own choice.

A bound method such as ``random.random`` would be sent together with the state of its generator, so that equal calls in different
processes draw equal numbers: methods of a module's own objects go by name. The package tblib, which ``distributed`` brings along,
makes every exception carry its frames: our exceptions carry their traceback as text.
"""

from __future__ import annotations

import copyreg
import sys
from types import BuiltinFunctionType, MethodType
from typing import Any


class Reducers(dict[type, Any]):
    """cloudpickle's table over copyreg's, without the chained mapping that it looks through at each object."""

    def __missing__(self, kind: type) -> Any:
        reducer = copyreg.dispatch_table[kind]
        function = getattr(reducer, "func", reducer)
        if getattr(function, "__module__", "").startswith("tblib"):
            raise KeyError(kind)
        return reducer


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
