"""No-op tasks that take batches: each appends a byte for each of its calls to the file in `$BENCH_MARKS`."""

from __future__ import annotations

import os

from respool import App

app = App("bench")
_marks: int | None = None


def _mark(count: int) -> None:
    global _marks
    if _marks is None:
        _marks = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_marks, b"." * count)


@app.task(batch=500)
def mark(items: list[int]) -> None:
    _mark(len(items))


@app.task(batch=500)
def echo(items: list[int]) -> list[int]:
    _mark(len(items))
    return items
