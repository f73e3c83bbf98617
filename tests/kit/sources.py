"""Functions from source text, as a program's own file defines them."""

from __future__ import annotations

import textwrap
from typing import Any


def function_of(source: str, **names: object) -> Any:
    """What the text defines as ``f``, beside these names."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(textwrap.dedent(source), namespace)
    return namespace["f"]
