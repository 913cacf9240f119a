"""No-op tasks: each appends one byte to the file in `$BENCH_MARKS`, so that runs can be counted outside.

Imports nothing else of bench: a child's memory is measured with this app.
"""

from __future__ import annotations

import os
import time

from respool import App

app = App("bench")
_marks: int | None = None


def _mark() -> None:
    global _marks
    if _marks is None:
        _marks = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_marks, b".")


@app.task
def plain() -> None:
    _mark()


@app.task
def mark(item: int) -> None:
    _mark()


@app.task
def result() -> int:
    _mark()
    return 1


@app.task
def fails(item: int) -> None:
    raise ValueError(f"no {item}")


@app.task
def begun() -> float:
    return time.monotonic()


@app.task
def echo(item: int) -> int:
    _mark()
    return item
