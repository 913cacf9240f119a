"""For tests of code that uses Respool: run what is due, here and now."""

from __future__ import annotations

import contextvars
from pathlib import Path

from .app import App
from .loading import load_app
from .replay.capture import CapturedCall, read_captured
from .worker.options import WorkerOptions
from .worker.services import services
from .worker.solo import Solo

__all__ = ["CapturedCall", "captured", "load_app", "work"]


def captured(path: str | Path) -> list[CapturedCall]:
    """Return the calls that `respool capture` wrote to a file, to be run by the present code.

    >>> for call in captured("captured_embed.jsonl"):  # doctest: +SKIP
    ...     call.check(app, relative=0.001)
    """
    return read_captured(Path(path))


def work(app: App, *, queues: list[str] | None = None, group: str | None = None) -> None:
    """Run the app's calls in this process until nothing is due and no retry waits.

    The same worker as `respool worker -P solo --burst`, so what a test sees is what production does. Call
    it from the main thread. An app on `sqlite:///:memory:` leaves nothing behind.

    Parameters:
        queues: serve these queues only. group: serve this consumer group instead of `main`.

    Raises: UnknownName for a queue or a group that does not exist.

    >>> from respool import App
    >>> app = App("shop", url="sqlite:///:memory:")
    >>> @app.task
    ... def add(x: int, y: int) -> int:
    ...     return x + y
    >>> result = add.delay(2, 3)
    >>> work(app)
    >>> result.get(timeout=0)
    5
    """
    options = WorkerOptions(app=app.name, pool="solo", burst=True)
    solo = Solo(app, services(app, queues, group), options)
    contextvars.copy_context().run(solo.run)
