"""Unique calls and steps that are done once, on every engine that has them (H14, H16)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engines.kits import KITS, EngineKit
from tests.engines.test_conformance import finish, grant

from respool import App, DuplicateCall
from respool.clock import now as wall_clock
from respool.delivery.death import Cause, Suspect, bury_lease
from respool.delivery.model import Lease, NewCall, Verdict
from respool.delivery.settle import give_back
from respool.engines.base import Engine, Group, LeaseLost, Reads, Stream
from respool.errors import ConfigError, EngineError
from respool.record import new_head
from respool.replay import plan_seek, seek
from respool.testing import work

NOW = 1_700_000_000.0


def _kit(request: pytest.FixtureRequest, folder: Path) -> Iterator[EngineKit]:
    made = KITS[request.param](request, folder, "os")
    yield made
    made.remove()


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    yield from _kit(request, tmp_path)


def call(queue: Stream, id: Any = None, body: bytes = b"b") -> NewCall:
    return NewCall(queue.logs[0], "send", body, None, id or new_head(wall_clock()), NOW)


# The engine


def test_a_call_and_its_lock_are_stored_together(engine: Engine, queue: Stream) -> None:
    first = call(queue)
    pos = engine.append_unique(first, "k", None, None)
    lock = engine.lock_of("k")
    assert lock is not None
    assert (lock.key, lock.id, lock.pos, lock.until) == ("k", first.id, pos, None)
    assert engine.records(pos or 0, (pos or 0) + 1, 1)[0].id == first.id
    assert engine.append_unique(call(queue), "k", None, None) is None, "it was not free"
    assert engine.append_unique(call(queue), "k", new_head(NOW), None) is None, "it is another's"
    ((_, lo, hi),) = engine.bounds(queue)
    assert engine.record_count(lo, hi) == 1
    second = call(queue)
    assert engine.append_unique(second, "k", first.id, NOW + 5) is not None
    lock = engine.lock_of("k")
    assert lock is not None
    assert (lock.id, lock.until) == (second.id, NOW + 5)
    assert engine.lock_of("other") is None


def test_the_same_call_again_takes_nothing_more(engine: Engine, queue: Stream) -> None:
    first = call(queue)
    pos = engine.append_unique(first, "k", None, None)
    assert engine.append_unique(first, "k", first.id, None) == pos
    ((_, lo, hi),) = engine.bounds(queue)
    assert engine.record_count(lo, hi) == 1


def test_an_id_of_the_users_own(engine: Engine, queue: Stream) -> None:
    pos = engine.append_unique(call(queue, "shop\0order-7"), "k", None, None)
    lock = engine.lock_of("k")
    assert lock is not None
    assert lock.id == "shop\0order-7"
    assert engine.append_unique(call(queue), "k", "shop\0order-7", None) == (pos or 0) + 1


def test_a_run_that_lost_its_lease_sends_nothing(engine: Engine, queue: Stream) -> None:
    with pytest.raises(LeaseLost):
        engine.append_unique(call(queue), "k", None, None, (77, 1))
    assert engine.lock_of("k") is None
    ((_, lo, hi),) = engine.bounds(queue)
    assert engine.record_count(lo, hi) == 0


def test_no_such_log(engine: Engine, queue: Stream) -> None:
    with pytest.raises(EngineError, match="log 99"):
        engine.append_unique(NewCall(99, "send", b"b", None, new_head(NOW), NOW), "k", None, None)
    assert engine.lock_of("k") is None


def test_of_many_at_once_one_takes_it(kit: EngineKit, engine: Engine, queue: Stream) -> None:
    engines = [engine, *(kit.open() for _ in range(3))]
    began = threading.Barrier(4)

    def take(at: int) -> int:
        began.wait()
        took = 0
        for n in range(25):
            took += engines[at].append_unique(call(queue), f"k{n}", None, None) is not None
        return took

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take, range(4))) == 25
    ((_, lo, hi),) = engine.bounds(queue)
    assert engine.record_count(lo, hi) == 25


def sweep_while(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object], now: float = NOW
) -> int:
    """Sweep the locks; something happens between the look at them and the removal of what has ended."""

    class Between:
        """How far the sweep is: written down once it has looked."""

        def __get__(self, engine: Any, kind: type) -> str:
            return ""

        def __set__(self, engine: Any, swept: str) -> None:
            happened.append(happens())

    happened: list[object] = []
    inner = getattr(engine, "inner", engine)
    inner.__dict__.pop("_swept", None)
    monkeypatch.setattr(type(inner), "_swept", Between())
    gone = engine.sweep_locks(now, 100)
    assert happened
    return gone


def test_a_lock_stays_where_its_record_is_parked_during_a_sweep(
    engine: Engine, main: Group, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leased when the sweep looks, to be tried again when it removes what has ended: no end (H16)."""
    pos = engine.append_unique(call(queue), "k", None, None)
    assert pos is not None
    lease = grant(engine, main, 1)
    assert lease is not None
    again = Verdict(pos, reason="retry", due=NOW + 9, task="send")
    assert sweep_while(engine, monkeypatch, lambda: finish(engine, main, lease, again)) == 0
    assert engine.lock_of("k") is not None


def test_a_lock_that_is_taken_anew_during_a_sweep_stays(
    engine: Engine, main: Group, queue: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call(queue)
    engine.append_unique(first, "k", None, NOW - 1)
    lease = grant(engine, main, 1)
    assert lease is not None
    finish(engine, main, lease)

    def again() -> int | None:
        return engine.append_unique(first, "k", first.id, NOW + 60)

    assert sweep_while(engine, monkeypatch, again) == 0
    lock = engine.lock_of("k")
    assert lock is not None
    assert engine.sweep_locks(NOW + 60, 100) == 1
    assert engine.lock_of("k") is None


def test_a_step_is_kept_as_it_was_first(engine: Engine) -> None:
    assert engine.step_done(5, "charge") is None
    engine.keep_step(5, "charge", b"one", NOW)
    engine.keep_step(5, "charge", b"two", NOW)
    engine.keep_step(6, "charge", b"six", NOW)
    assert engine.step_done(5, "charge") == b"one"
    assert engine.step_done(6, "charge") == b"six"
    assert engine.step_done(5, "mail") is None


# As a user sees it


@pytest.fixture
def make_app(kit: EngineKit) -> Iterator[Callable[..., App]]:
    apps: list[App] = []

    def make(**settings: Any) -> App:
        if kit.url is not None:
            kit.open().close()
        apps.append(App("shop", url=kit.url or "sqlite:///:memory:", **settings))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def test_by_arguments_until_done(make_app: Callable[..., App]) -> None:
    app, ran = make_app(), []

    @app.task(unique=True)
    def build(page: str, depth: int = 1) -> None:
        ran.append((page, depth))

    first = build.delay("a")
    assert build.delay("a", 1) == first, "given by name, by place or by default"
    assert build.delay(page="a", depth=1) == first
    assert build.delay("b") != first
    assert len(build.delay_many(["a", "b", "c", "a"])) == 4
    work(app)
    assert sorted(ran) == [("a", 1), ("b", 1), ("c", 1)]
    assert build.delay("a") != first, "it has ended"


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    name: str
    tags: set[str] = field(default_factory=set)


class Doc(msgspec.Struct):
    point: Point
    words: dict[str, Any] = {}


MISSING: Any = object()
"""No one can send it."""


def test_declared_arguments_are_compared_as_they_are_sent(make_app: Callable[..., App]) -> None:
    app, ran = make_app(), []

    @app.task(unique=True)
    def draw(
        point: Point, doc: Doc | None = None, color: Color = Color.RED, *more: date, at: Any = MISSING
    ) -> None:
        ran.append((point, doc, color, more))

    @app.task(unique=True, batch=10)
    def both(items: list[tuple[Point, Color]]) -> list[None]:
        ran.extend(items)
        return [None] * len(items)

    @app.task(unique=lambda point: point.name)
    def named(point: Point) -> None: ...

    @app.task(unique=True, debounce=0.001)
    def last(point: Point) -> None: ...

    tags = {"a", "b", "c"}
    first = draw.delay(Point("a", tags), Doc(Point("b"), {"x": 1, "y": [{"p": 1, "q": 2}]}), Color.RED)
    again = Doc(Point("b"), {"y": [{"q": 2, "p": 1}], "x": 1})
    for same in (
        draw.delay(Point("a", set(tags)), again),
        draw.delay(point=Point("a", tags), doc=again, color=Color.RED),
        draw.apply_async((Point("a", tags),), {"color": Color.RED, "doc": again}),
    ):
        assert same == first
    others = [
        draw.delay(Point("a", {"a"}), again),
        draw.delay(Point("a", tags)),
        draw.delay(Point("a", tags), again, Color.BLUE),
        draw.delay(Point("a", tags), again, Color.RED, date(2026, 1, 31)),
        draw.delay(Point("a", tags), Doc(Point("b"), {"x": 1, "y": [{"p": 2, "q": 1}]})),
        draw.delay(Point("a", tags), again, at=None),
    ]
    assert len({each.id for each in (first, *others)}) == 7
    pairs = both.apply_many([((Point("a"), color), {}) for color in (Color.RED, Color.RED, Color.BLUE)])
    assert len({each.id for each in pairs}) == 2
    assert named.delay(Point("a", {"x"})) == named.delay(Point("a"))
    assert last.delay(Point("a")) != last.delay(Point("a")), "it replaces the first"
    work(app)
    assert next(each for each in ran if len(each) == 4) == (Point("a", tags), again, Color.RED, ())
    assert len(ran) == 9


def test_dicts_are_the_same_whatever_the_order_of_their_keys(make_app: Callable[..., App]) -> None:
    app = make_app()

    @app.task(unique=True)
    def index(doc: Any, **more: Any) -> None: ...

    first = index.delay({"a": 1, "b": [{"c": (1,), 2: None}]}, x=1, y={"p": 1, "q": 2})
    assert index.delay({"b": [{2: None, "c": [1]}], "a": 1}, y={"q": 2, "p": 1}, x=1) == first
    assert index.delay({"b": [{2: None, "c": [1]}], "a": 2}, y={"q": 2, "p": 1}, x=1) != first
    assert index.delay([["a", 1]]) != index.delay({"a": 1})
    assert index.delay(["b", "a"]) != index.delay(["a", "b"])


def test_by_key_by_function_and_raise(make_app: Callable[..., App]) -> None:
    app = make_app()

    @app.task(unique="user", on_duplicate="raise")
    def greet(user: int, text: str) -> None: ...

    @app.task(unique="function")
    def report(day: str) -> None: ...

    @app.task(unique=lambda order: order["id"])
    def ship(order: dict[str, int]) -> None: ...

    first = greet.delay(1, "hello")
    greet.delay(2, "hello")
    with pytest.raises(DuplicateCall, match="nothing was sent") as caught:
        greet.delay(1, "good bye")
    assert caught.value.existing == first
    assert report.delay("monday") == report.delay("tuesday")
    assert ship.delay({"id": 1, "n": 1}) == ship.delay({"id": 1, "n": 2})
    assert ship.delay({"id": 2, "n": 1}) != ship.delay({"id": 1, "n": 1})


def test_until_it_is_started(make_app: Callable[..., App]) -> None:
    app = make_app()
    seen: list[Any] = []

    @app.task(unique="function", unique_until="started")
    def refresh(n: int) -> None:
        seen.append(n)
        if n == 0:
            seen.append(refresh.delay(1))

    first = refresh.delay(0)
    assert refresh.delay(5) == first
    work(app)
    assert seen[0] == 0
    assert seen[1] != first, "one was running, which takes in nothing any more"
    assert seen[2:] == [1]


def test_unique_calls_of_a_key_keep_their_order(make_app: Callable[..., App]) -> None:
    """H13: what waits for its time holds up its key, whether or not it is unique."""
    app, ran = make_app(), []
    app.queue("orders", ordered=True, partitions=1)

    @app.task(queue="orders", key="user", unique=True)
    def step(user: str, n: int) -> None:
        ran.append((user, n))

    step.apply_async(("a", 0), countdown=3600)
    step.delay("a", 1)
    step.delay("b", 2)
    work(app)
    assert ran == [("b", 2)]


def test_what_is_done_dead_or_purged_holds_nothing(make_app: Callable[..., App]) -> None:
    app = make_app()

    @app.task(unique="function")
    def fails(n: int) -> None:
        raise ValueError(n)

    first = fails.delay(1)
    work(app)
    assert first.state == "FAILURE"
    second = fails.delay(2)
    assert second != first
    from respool.replay import purge

    purge(app, "default")
    assert second.state == "REVOKED"
    assert fails.delay(3) != second


def test_a_retry_holds_it(make_app: Callable[..., App]) -> None:
    app = make_app()

    @app.task(unique="function", autoretry_for=(OSError,), default_retry_delay=0, max_retries=1)
    def flaky(n: int) -> None:
        handles.append(flaky.delay(n))
        raise OSError

    handles: list[Any] = []
    first = flaky.delay(1)
    work(app)
    assert handles == [first, first]


def test_a_replay_frees_nothing_and_takes_nothing(make_app: Callable[..., App]) -> None:
    app, ran = make_app(), []

    @app.task(unique=True)
    def build(n: int) -> None:
        ran.append(n)
        if n < 100:
            build.delay(n + 100)

    from respool.replay import create_replay

    done = build.delay(1)
    work(app)
    waiting = build.delay(2)
    create_replay(app, "default", "v2", ("build",))
    work(app, group="v2")
    assert waiting.state == "PENDING"
    assert build.delay(2) == waiting, "its run in the replay is no end"
    assert done.state == "SUCCESS"


def test_for_a_window(make_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()

    @app.task(unique="function", unique_for="1h")
    def digest(n: int) -> None: ...

    first = digest.delay(1)
    work(app)
    assert first.state == "SUCCESS"
    assert digest.delay(2) == first, "though it has ended"
    later = time.time() + 3601
    monkeypatch.setattr("respool.unique.wall_clock", lambda: later)
    assert digest.delay(3) != first


@pytest.mark.parametrize("until", [{}, {"unique_until": "started"}, {"unique_for": "2h"}])
@pytest.mark.parametrize("where", ["pending", "parked", "returned", "expired"])
def test_what_has_expired_before_it_began_holds_nothing(
    make_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch, until: dict[str, Any], where: str
) -> None:
    """It will never run, so its handle is no answer to who wants that done."""
    app, ran = make_app(), []

    @app.task(unique="function", **until)
    def refresh(n: int) -> int:
        ran.append(n)
        return n

    options: dict[str, Any] = {"countdown": 1800} if where == "parked" else {}
    first = refresh.apply_async((1,), expires=3600, **options)
    if where == "parked":
        work(app)
        assert first.state == "SCHEDULED"
    elif where == "returned":
        main, lease = leased(app)
        app.engine.transact(
            Reads(main.id, (lease.id,)),
            lambda view, change: give_back(view, change, lease.id, 1, [lease.spans[0][:2]], 77),
        )
    if where != "returned" or "unique_until" not in until:  # a worker has taken it
        assert refresh.delay(2) == first
    later = time.time() + 3601
    for module in ("unique", "worker.calling"):
        monkeypatch.setattr(f"respool.{module}.wall_clock", lambda: later)
    if where == "expired":
        work(app)
        assert first.state == "REVOKED"
    second = refresh.delay(3)
    assert second != first
    assert refresh.delay(4) == second
    work(app)
    assert second.get(timeout=0) == 3
    assert ran == [3]
    assert where == "parked" or first.state == "REVOKED"


@pytest.mark.parametrize("how", ["runs", "lost", "sought"])
def test_what_was_begun_in_time_or_is_done_again_holds_its_key(
    make_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever its `expires`: it will run, or does."""
    app, ran = make_app(), []

    @app.task(unique="function")
    def refresh(n: int) -> int:
        ran.append(n)
        return n

    first = refresh.apply_async((1,), expires=3600)
    if how == "sought":
        monkeypatch.setattr(app.engine, "sweep_locks", lambda now, limit: 0)  # it forgets what has ended
        work(app)
        main = app.main_of("default")
        plan = plan_seek(app.engine, app.stream_of("queue", "default"), main, "earliest")
        seek(app.engine, main, plan)
    else:
        main, lease = leased(app)
    later = time.time() + 3601
    for module in ("unique", "worker.calling"):
        monkeypatch.setattr(f"respool.{module}.wall_clock", lambda: later)
    assert refresh.delay(2) == first
    if how != "sought":
        suspects = [Suspect(lease.spans[0].lo, "refresh", 3, "stopped", b"e")] if how == "lost" else []
        app.engine.transact(
            Reads(main.id, (lease.id,)),
            lambda view, change: bury_lease(
                view, change, lease.id, 1, Cause.ORDERED, None, suspects, time.time()
            ),
        )
    assert (refresh.delay(3) == first) is (how != "runs"), "given back, it was not begun"
    work(app)
    assert ran == {"runs": [3], "lost": [1], "sought": [1, 1]}[how]


def test_what_was_claimed_when_it_had_expired_holds_nothing(make_app: Callable[..., App]) -> None:
    """Its worker will say so; one that was claimed before may run."""
    app = make_app()

    @app.task(unique="function")
    def refresh(n: int) -> None: ...

    first = refresh.apply_async((1,), expires=0.000001)
    main, lease = leased(app)
    assert first.state == "PENDING"
    second = refresh.delay(2)
    assert second != first
    assert engine_of(app).leases(main) == [lease]


def leased(app: App) -> tuple[Group, Lease]:
    """Have a worker of number 1 claim what there is."""
    main = app.main_of("default")
    lease = grant(engine_of(app), main, 8, now=time.time())
    assert lease is not None
    return main, lease


def engine_of(app: App) -> Engine:
    engine: Engine = app.engine
    return engine


def test_the_last_one_wins(make_app: Callable[..., App]) -> None:
    app, ran = make_app(), []

    @app.task(unique="doc", debounce=0.2)
    def index(doc: str, version: int) -> None:
        ran.append((doc, version))

    calls = [index.delay("a", version) for version in range(4)]
    other = index.delay("b", 9)
    until = time.monotonic() + 20
    while len(ran) < 2 and time.monotonic() < until:
        work(app)
    assert sorted(ran) == [("a", 3), ("b", 9)]
    work(app)
    assert [each.state for each in calls] == ["REVOKED"] * 3 + ["SUCCESS"]
    assert other.state == "SUCCESS"


def test_replaced_before_it_began(make_app: Callable[..., App]) -> None:
    app, ran = make_app(), []

    @app.task(unique="doc", on_duplicate="replace")
    def index(doc: str, version: int) -> None:
        ran.append(version)

    old, new = index.delay("a", 1), index.delay("a", 2)
    work(app)
    assert ran == [2]
    assert (old.state, new.state) == ("REVOKED", "SUCCESS")
    assert [attempt.how for attempt in old.history()] == ["replaced"]


def test_calls_of_runs_are_sent_at_once_and_once(make_app: Callable[..., App]) -> None:
    app = make_app(outbox_hold=None)
    states: list[str] = []

    @app.task(unique=True)
    def child(n: int) -> None: ...

    @app.task(autoretry_for=(OSError,), default_retry_delay=0, max_retries=1)
    def parent() -> None:
        made = child.delay(1)
        assert child.delay(1) == made
        states.append(made.state)
        raise OSError

    parent.delay()
    work(app)
    assert states[0] == "PENDING", "it is there, though its run goes on"
    ((_, lo, hi),) = app.engine.bounds(app.stream_of("queue", "default"))
    assert app.engine.task_counts(lo, hi, None, None)["child"] <= 2


def test_a_task_id_of_ones_own(make_app: Callable[..., App]) -> None:
    app = make_app()

    @app.task(unique="function")
    def once(n: int) -> None: ...

    first = once.apply_async((1,), task_id="mine")
    assert once.apply_async((1,), task_id="mine") == first
    assert once.delay(2).id == "mine"


def test_locks_of_what_has_ended_are_swept(make_app: Callable[..., App]) -> None:
    app = make_app()

    @app.task(unique=True)
    def build(n: int) -> None: ...

    build.delay(1)
    keys = f"{app.name}/build/"
    assert app.engine.sweep_locks(time.time(), 100) == 0
    work(app)
    app.engine.sweep_locks(time.time(), 100)
    key = build.unique.key(app.name, (1,), {}, ((1,), {}))  # type: ignore[union-attr]
    assert key.startswith(keys)
    assert app.engine.lock_of(key) is None


def test_a_step_is_done_once_through_retries_and_replays(make_app: Callable[..., App]) -> None:
    app, charged = make_app(), []

    def charge(amount: int) -> tuple[int, str]:
        charged.append(amount)
        return amount, "receipt"

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0, max_retries=2)
    def order(self: Any, amount: int) -> list[Any]:
        paid: list[Any] = self.once("charge", charge, amount)
        nothing = self.once("mail", lambda: None)
        if not self.request.replay and self.request.retries < 2:
            raise OSError
        return [*paid, nothing]

    from respool.replay import create_replay

    first = order.delay(5)
    order.delay(6)
    work(app)
    assert first.get(timeout=5) == [5, "receipt", None]
    create_replay(app, "default", "v2", ("order",))
    work(app, group="v2")
    assert first.of("v2").get(timeout=5) == [5, "receipt", None]
    assert charged == [5, 6]


def test_a_step_that_raises_is_not_done(make_app: Callable[..., App]) -> None:
    app, tried = make_app(), []

    def charge() -> int:
        tried.append(1)
        if len(tried) == 1:
            raise OSError
        return 7

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0)
    def order(self: Any) -> int:
        return int(self.once("charge", charge))

    result = order.delay()
    work(app)
    assert result.get(timeout=5) == 7
    assert len(tried) == 2


def test_a_step_of_a_coroutine(make_app: Callable[..., App]) -> None:
    app, charged = make_app(), []

    async def charge(amount: int) -> int:
        charged.append(amount)
        return amount

    @app.task(bind=True, autoretry_for=(OSError,), default_retry_delay=0)
    async def order(self: Any, amount: int) -> int:
        paid = await self.aonce("charge", charge, amount)
        if self.request.retries == 0:
            raise OSError
        return int(paid)

    @app.task(bind=True)
    def wrong(self: Any) -> None:
        self.once("charge", charge, 1)

    result, error = order.delay(3), wrong.delay()
    work(app)
    assert result.get(timeout=5) == 3
    assert charged == [3]
    with pytest.raises(ConfigError, match=r"await self\.aonce"):
        error.get(timeout=5)


def test_a_step_has_a_name_and_a_run() -> None:
    app = App("shop", url="sqlite:///:memory:")

    @app.task(bind=True)
    def order(self: Any) -> None:
        self.once("", print)

    with pytest.raises(ConfigError, match="only while a worker runs"):
        order()
    with app:
        result = order.delay()
        work(app)
        with pytest.raises(ConfigError, match="no name of a step"):
            result.get(timeout=5)


@pytest.mark.parametrize(
    "options",
    [
        {"unique": 7},
        {"unique": "usr"},
        {"unique_for": 5},
        {"on_duplicate": "raise"},
        {"unique": True, "on_duplicate": "ignore"},
        {"unique": True, "unique_until": "ended"},
        {"unique": True, "unique_until": "done", "unique_for": 5},
        {"unique": True, "unique_for": 0},
        {"unique": True, "on_duplicate": "replace", "unique_for": 5},
        {"debounce": 0},
        {"debounce": 1, "on_duplicate": "raise"},
    ],
)
def test_options_that_cannot_be_are_errors_at_import(options: dict[str, object]) -> None:
    app = App("shop", url="sqlite:///:memory:")
    with pytest.raises(ConfigError):

        @app.task(**options)
        def greet(user: str) -> None: ...
