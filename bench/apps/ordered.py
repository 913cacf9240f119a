"""The no-op task with a key, in an ordered queue."""

from __future__ import annotations

from respool import App

from . import noop

app = App("bench")
app.queue("ordered", ordered=True)


@app.task(queue="ordered", key="user")
def step(user: int) -> None:
    noop._mark()
