"""What an idle process waits for, and how long: what may not be claimed is no reason to stay awake."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from respool import App
from respool.delivery.claim import Request, claim
from respool.delivery.model import Change, Parked, View
from respool.engines.base import Reads
from respool.replay import pause, resume
from respool.worker.host import Woken, idle
from respool.worker.services import Service, services

POLL = 5.0


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App("t", url=f"sqlite:///{tmp_path / 'log.db'}") as made:

        @made.task
        def task(n: int) -> int:
            return n

        task.delay_many(range(3))
        yield made


class FakeSleeper:
    """Sleeps in no time, and says how long it was to be."""

    hears = False

    def __init__(self) -> None:
        self.slept: list[float] = []

    def prepare(self) -> None: ...

    def cancel(self) -> None: ...

    def sleep(self, seconds: float) -> bool:
        self.slept.append(seconds)
        return False


def _slept(app: App, service: Service) -> tuple[Woken, list[float]]:
    sleeper = FakeSleeper()
    woken = idle(app.engine, [service], sleeper, POLL)
    return woken, sleeper.slept


def _park(app: App, service: Service, *dues: float) -> None:
    """Take the calls of the queue, and park the first as to be retried."""
    group = service.group.id

    def decide(view: View, change: Change) -> None:
        lease = claim(view, change, Request(3, 1, 0, 1, 1.0))
        assert lease is not None
        change.leases.clear()
        change.parked += [Parked(lease.spans[0].lo + n, "retry", due, "task") for n, due in enumerate(dues)]

    app.engine.transact(Reads(group, positions=True), decide)


def _now(app: App) -> Service:
    """Return the service as a worker knows it that starts now."""
    (service,) = services(app, None, None)
    return service


def test_what_is_due_in_a_paused_group_keeps_nobody_awake(app: App) -> None:
    _park(app, _now(app), time.time() - 10)
    pause(app.engine, _now(app).group)
    assert _slept(app, _now(app)) == (Woken.BY_TIME, [POLL])
    resume(app.engine, _now(app).group)
    assert _slept(app, _now(app)) == (Woken.BY_WORK, [])


def test_what_waits_for_tokens_is_looked_for_no_more_often_than_they_come(app: App) -> None:
    service = _now(app)
    now = time.time()
    _park(app, service, now - 10, now + 0.001)
    for rate, wait in ((5.0, 0.2), (1e6, 0.02)):
        service.rate = rate
        assert _slept(app, service) == (Woken.BY_TIME, [wait])


def test_what_is_due_later_is_waited_for_that_long(app: App) -> None:
    service = _now(app)
    _park(app, service, time.time() + 2)
    woken, (slept,) = _slept(app, service)
    assert woken is Woken.BY_TIME
    assert 1 < slept <= 2
