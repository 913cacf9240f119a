"""How full a queue may become is stored with it, on every engine: whoever sends to it keeps to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, SHARED
from tests.engines.test_roles import Roles
from tests.engines.test_roles import roles as roles

from respool import App, pressure
from respool.engines import grant, migrate
from respool.errors import QueueFull, UnknownName
from respool.location import parse_url
from respool.testing import work

Make = Callable[..., App]


@pytest.fixture(params=SHARED)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make apps of one name on one store, as different processes would."""
    kit = KITS[request.param](request, tmp_path, "os")
    apps: list[App] = []

    def made(**options: Any) -> App:
        apps.append(App("shop", url=kit.url))
        apps[-1].queue("mails", **options)
        return apps[-1]

    yield made
    for app in apps:
        app.close()
    kit.remove()


def send(app: App, amount: int = 1) -> None:
    for n in range(amount):
        app.send_task("mail", (n,), queue="mails")


def test_who_does_not_declare_it_keeps_to_it(make: Make) -> None:
    declaring = make(max_pending=5, when_full="raise")
    send(declaring, 5)
    other = make()
    with pytest.raises(QueueFull, match="its max_pending is 5; nothing was sent"):
        send(other)
    assert other.pressure() == other.pressure("mails") == 1.0
    assert other.lag("mails") == 5


def test_what_was_declared_last_holds_for_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is changed by deploying another; who runs on learns it."""
    monkeypatch.setattr(pressure, "AGAIN", 0.0)
    old = make(max_pending=5, when_full="raise")
    send(old, 5)
    with pytest.raises(QueueFull):
        send(old)
    new = make(max_pending=8, max_pending_wait=0)
    send(new)
    send(old, 2)
    with pytest.raises(QueueFull, match=r"max_pending is 8 and there was no room within 0 s"):
        send(old)
    assert old.pressure() == 1.0


def test_none_takes_it_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "AGAIN", 0.0)
    old = make(max_pending=2, when_full="raise")
    send(old, 2)
    free = make(max_pending=None)
    send(free, 3)
    send(old, 3)
    assert free.pressure() == 0.0
    send(make(), 3)
    assert free.lag("mails") == 11


def test_workers_run_what_is_there(make: Make) -> None:
    app = make(max_pending=2, when_full="raise")
    ran: list[int] = []

    @app.task(queue="mails")
    def mail(n: int) -> None:
        ran.append(n)

    send(app, 2)
    work(app)
    assert ran == [0, 1]
    send(app, 2)
    work(app)
    assert len(ran) == 4


def test_a_producer_that_may_not_store_it_says_so(roles: Roles, caplog: pytest.LogCaptureFixture) -> None:
    with App("shop", url=roles.of("owner")) as owner:
        migrate(parse_url(roles.of("owner")))
        owner.queue("mails")
        _ = owner.engine
        grant(parse_url(roles.of("owner")), roles.name("producer"))
    with App("shop", url=roles.of("producer")) as app, caplog.at_level(logging.WARNING, "respool"):
        app.queue("mails", max_pending=3, when_full="raise")
        send(app, 3)
        with pytest.raises(QueueFull, match="its max_pending is 3"):
            send(app)
    assert "queue mails: its max_pending could not be stored" in caplog.text


def test_a_queue_that_the_app_does_not_have_is_refused(make: Make) -> None:
    """A number for a name with a slip in it would say for ever that there is room."""
    app = make(max_pending=2)
    for ask in (app.pressure, app.lag):
        with pytest.raises(UnknownName, match="mials"):
            ask("mials")
    assert make().pressure("mails") == 0.0
