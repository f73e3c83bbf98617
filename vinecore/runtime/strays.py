"""Children that user code forked, and that came back out of it into ours."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from vinecore.runtime.streams import flush_streams


def end_stray(error: BaseException | None = None) -> NoReturn:
    """End this process as Python would at the end of a program: with the code of ``sys.exit``, or a traceback and 1.

    Parameters:
        error: what came out of the user's code; None: it returned.
    """
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if error.code is not None and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
        elif error is not None:
            code = 1
            sys.excepthook(type(error), error, error.__traceback__)
        flush_streams()
    finally:
        os._exit(code & 0xFF)
