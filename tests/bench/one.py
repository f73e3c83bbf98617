"""``python -m tests.bench.one SYSTEM WORKLOAD SIZE``: one measurement in this fresh process, printed as one JSON line.

Exit code 0 with ``{"ok": true, "figures": {...}}``, or 1 with ``{"ok": false, "error": "..."}`` and the traceback on stderr.
"""

from __future__ import annotations

import json
import sys
import traceback

from tests.bench import measure
from tests.bench.workloads import WORKLOADS


def main(arguments: list[str]) -> int:
    """Run one workload on one system."""
    if len(arguments) != 3 or arguments[1] not in WORKLOADS:
        print(f"usage: python -m tests.bench.one SYSTEM WORKLOAD SIZE; workloads: {', '.join(WORKLOADS)}", file=sys.stderr)
        return 2
    system, workload, size = arguments[0], arguments[1], int(arguments[2])
    measure.become_subreaper()
    answer: dict[str, object] = {"system": system, "workload": workload, "size": size}
    try:
        answer |= {"ok": True, "figures": WORKLOADS[workload](system, size)}
    except Exception as error:
        traceback.print_exc()
        answer |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
