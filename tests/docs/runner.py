"""Runs the Python blocks of a page, one JSON line each on stdin; answers with what failed, "" for nothing."""

from __future__ import annotations

import doctest
import faulthandler
import io
import json
import os
import sys
import traceback
from contextlib import redirect_stdout
from typing import Any

PATIENCE = 60.0
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run(kind: str, text: str, name: str, space: dict[str, Any]) -> str:
    """Run one block."""
    told = io.StringIO()
    with redirect_stdout(told):
        if kind == "python":
            try:
                exec(compile(text, name, "exec"), space)
            except BaseException:  # noqa: BLE001 - whatever a block raises is reported
                return traceback.format_exc()
            return ""
        test = doctest.DocTestParser().get_doctest(text.replace("…", "..."), space, name, name, 0)
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        runner.run(test, clear_globs=False)
        space.update(test.globs)
    return told.getvalue() if runner.failures else ""


def main() -> None:
    """Answer until stdin ends."""
    sys.path.insert(0, os.getcwd())
    space: dict[str, Any] = {"__name__": "__docs__"}
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what blocks print is no answer
        for line in sys.stdin:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            print(json.dumps(run(**json.loads(line), space=space)), file=answers, flush=True)
            faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
