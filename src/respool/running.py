"""The run that the present code is part of, if any: calls made in it go to its outbox (P4)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Protocol

from .record import Id


class Run(Protocol):
    """What a worker gives to the code it runs."""

    @property
    def sends(self) -> bool:
        """Whether the calls and events it makes are sent; else they are counted."""

    @property
    def excludes(self) -> bool:
        """Whether it is in a transaction of its own beside which nothing else can be written."""

    def shield(self) -> AbstractContextManager[None]:
        """Return a block in which no soft time limit strikes (H17)."""

    def serves(self, engine: Any) -> bool:
        """Say whether calls for an engine can go to this run's outbox."""

    def send(self, log: int, task: str, body: bytes, meta: Any, id: Id | None, namespace: str) -> Id:
        """Put a call in the outbox; return its id."""

    def take(self, events: Sequence[Any]) -> None:
        """Take events, and calls for other logs, that are not sent, since nothing is."""

    def call_now(
        self, log: int, task: str, body: bytes, meta: Any, id: Id | None, namespace: str
    ) -> tuple[Any, tuple[int, int]]:
        """Return a call that does not wait in the outbox, and the fence to append it with."""

    def step(self, name: str) -> bytes | None:
        """Return what a step of the call gave; None: it was not done yet."""

    def keep_step(self, name: str, value: bytes) -> None:
        """Keep what a step of the call gave."""

    def flush(self) -> None:
        """Send what is in the outbox now: somebody asks for the state of one of its calls."""

    def request(self) -> Any:
        """Return what is known of the call that is running."""

    def requests(self) -> Any:
        """Return what is known of the calls of the batch that is running."""

    def update_state(self, meta: Any) -> None:
        """Publish progress."""

    def transaction(self) -> AbstractContextManager[Any]:
        """Begin the run's own transaction, which commits with its settlement."""

    @property
    def enlisted(self) -> Any:
        """What events are appended on that are published by a run with a transaction; None: it has none."""


current_run: ContextVar[Run | None] = ContextVar("respool_run", default=None)
