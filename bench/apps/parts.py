"""Events of four partitions, and a task that sleeps."""

from __future__ import annotations

import time

from bench.apps.noop import _mark

from respool import App

app = App("bench")
events = app.stream("parts", key="key", partitions=4)


@events.subscribe(group="marks", start="earliest")
def marks(event: object) -> None:
    _mark()


@app.task
def sleep(item: int) -> None:
    time.sleep(0.01)
    _mark()
