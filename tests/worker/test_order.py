"""Order by key, through the public API and real workers (P8, H13)."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.engines.kits import KITS, SHARED
from tests.engines.test_conformance import finish
from tests.worker.support import Mark, Place, eventually

from respool import App, BadArguments, ConfigError, DeclarationConflict, GetTimeout
from respool.cli import main
from respool.cli.lag import lag_table
from respool.cli.target import Target
from respool.delivery.claim import Request, claim
from respool.delivery.order import Claimant
from respool.engines.base import Reads, Registration
from respool.errors import TimeLimitExceeded
from respool.keys import partition_of
from respool.replay import create_replay, purge
from respool.replay.storms import release
from respool.result import why_unfinished
from respool.testing import work
from respool.worker import host

CODE = """
app.queue("orders", ordered=True, partitions=4)
app.queue("narrow", ordered=True, partitions=1)


@app.task(queue="orders", key="user", max_retries=5, autoretry_for=(OSError,), default_retry_delay=0.02)
def step(user, n, fails=0):
    with noted("step", f"{user}:{n}"):
        time.sleep(0.002)
    if fails and once(f"fail-{user}-{n}-{fails}"):
        raise OSError(n)


@app.task(queue="narrow", key="user")
def slow(user, n):
    with noted("slow", f"{user}:{n}"):
        wait_for(f"go-{user}-{n}")


@app.task(queue="narrow", key="user", on_dead="block")
def stubborn(user, n):
    note("start", "stubborn", f"{user}:{n}")
    if n == 0 and not (HERE / "enough").exists():
        raise ValueError("not yet")


@app.task(queue="narrow", key="user", on_dead="block", time_limit=0.4)
def endless(user, n):
    with noted("endless", f"{user}:{n}"):
        if user == "a":
            time.sleep(60)


@app.task(queue="orders", key="user")
def fatal(user, n):
    with noted("step", f"{user}:{n}"):
        if once(f"die-{user}-{n}"):
            die()
"""


def check_order(marks: Iterable[Mark]) -> None:
    """Hold the outside record against P8: of a key one run at a time, and each after those before it."""
    runs: dict[str, list[tuple[float, str, int]]] = defaultdict(list)
    for mark in marks:
        user, _, n = mark.key.partition(":")
        runs[user].append((mark.at, mark.what, int(n)))
    for user, seen in runs.items():
        running: int | None = None
        last = -1
        for _, what, n in sorted(seen):
            if what == "start":
                assert running in (None, n), f"{user}: {n} started while {running} ran"
                assert n >= last, f"{user}: {n} ran after {last}"
                running, last = n, n
            else:
                running = None


# What the rules are, in this process


@pytest.fixture(params=SHARED)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    kit = KITS[request.param](request, tmp_path, "os")
    with App("shop", url=kit.url) as made:
        made.queue("orders", ordered=True, partitions=4)
        yield made
    kit.remove()


def ran(seen: list[tuple[str, int]], user: str) -> list[int]:
    return [n for each, n in seen if each == user]


def test_a_key_that_waits_blocks_only_itself(app: App) -> None:
    """Scheduled, to be retried, or of a task nobody knows: what comes after it of its key waits, no other."""
    seen: list[tuple[str, int]] = []

    @app.task(queue="orders", key="user", autoretry_for=(OSError,), max_retries=2, default_retry_delay=0)
    def step(user: str, n: int, fails: bool = False) -> None:
        seen.append((user, n))
        if fails and ran(seen, user).count(n) < 3:
            raise OSError(n)

    _ = app.engine
    due = time.time() + 3
    step.apply_async(("later", 0), countdown=3)
    app.send_task("unknown", ("ghost", 0), queue="orders", key="ghost")
    step.delay("again", 0, fails=True)
    for n in range(1, 5):
        for user in ("later", "ghost", "again", "free"):
            step.delay(user, n)
    work(app)
    assert ran(seen, "free") == [1, 2, 3, 4]
    assert ran(seen, "again") == [0, 0, 0, 1, 2, 3, 4]
    assert ran(seen, "later") == ran(seen, "ghost") == []
    main = next(g for g in app.groups() if g.stream == app.stream_of("queue", "orders").id)
    counts = app.engine.counts(main)
    assert counts.parked | {"blocked": counts.parked["blocked"] + counts.pending} == {
        "scheduled": 1,
        "unknown": 1,
        "blocked": 8,
    }

    @app.task(name="unknown", queue="orders")
    def ghost(user: str, n: int) -> None:
        seen.append((user, n))

    time.sleep(max(due - time.time(), 0) + 0.01)  # for its time
    work(app)
    assert ran(seen, "later") == ran(seen, "ghost") == [0, 1, 2, 3, 4]


def test_a_dead_letter_blocks_nobody_unless_it_is_to(app: App) -> None:
    seen: list[tuple[str, int]] = []

    @app.task(queue="orders", key="user")
    def skips(user: str, n: int) -> None:
        seen.append((user, n))
        if n == 0 and ran(seen, user).count(0) == 1:
            raise ValueError(n)

    @app.task(queue="orders", key="user", on_dead="block")
    def blocks(user: str, n: int) -> None:
        skips(user, n)

    handles = []
    for n in range(4):
        skips.delay("a", n)
        handles.append(blocks.delay("b", n))
        blocks.delay("c", n)
    work(app)
    (dead,) = app.dead_letters(key="b")
    given = f"--id {dead.id}"
    told = f"holds it up: respool dead redrive {given}, or respool dead drop {given}$"
    with pytest.raises(GetTimeout, match=told):
        handles[1].get(timeout=0)
    assert ran(seen, "a") == [0, 1, 2, 3]
    assert ran(seen, "b") == ran(seen, "c") == [0]
    target = Target(app.engine, app, app.name, app.location)
    (shown,) = (data for data in lag_table(target, target.groups).data if data["name"] == "orders")
    assert shown["held_keys"] == 2, "a is held up by nobody"
    late = blocks.delay("b", 4)  # no claim has come upon it
    for explained in (late, handles[1]):
        assert re.search(told, why_unfinished(explained) or "")
    assert "holds it up" not in (why_unfinished(skips.delay("a", 4)) or "")
    assert app.dead_letters(key="b").redrive() == 1
    assert app.dead_letters(key="c").drop() == 1
    work(app)
    assert ran(seen, "b") == [0, 0, 1, 2, 3, 4], "redriven, and then what waited for it"
    assert ran(seen, "c") == [0, 1, 2, 3], "dropped: what waited goes on"
    assert app.dead_letters(task="blocks").count() == 0


def test_a_redriven_call_keeps_the_order_of_what_is_open(app: App) -> None:
    """The dead 0 comes before the 1 that waits for its time, and before what waits for that."""
    seen: list[tuple[str, int]] = []

    @app.task(queue="orders", key="user")
    def step(user: str, n: int) -> None:
        seen.append((user, n))
        if n == 0:
            raise ValueError(n)

    _ = app.engine
    due = time.time() + 3
    step.delay("a", 0)
    step.apply_async(("a", 1), countdown=3)
    step.delay("a", 2)
    work(app)
    assert ran(seen, "a") == [0]
    for _ in range(2):
        assert app.dead_letters().redrive() == 1
        work(app)
    assert ran(seen, "a") == [0, 0, 0]
    time.sleep(max(due - time.time(), 0) + 0.01)  # for its time
    assert app.dead_letters().redrive() == 1
    work(app)
    assert ran(seen, "a") == [0, 0, 0, 0, 1, 2]


def test_purged_keys_are_free_again(app: App) -> None:
    seen: list[tuple[str, int]] = []

    @app.task(queue="orders", key="user")
    def step(user: str, n: int) -> None:
        seen.append((user, n))

    step.apply_async(("a", 0), countdown=600)
    for n in range(1, 5):
        step.delay("a", n)
    work(app)
    assert purge(app, "orders") == 5
    step.delay("a", 9)
    work(app)
    assert ran(seen, "a") == [9]


def test_keys_that_cannot_be_are_refused_and_nothing_is_sent(app: App) -> None:
    @app.task(queue="orders", key=lambda user, n: user["id"])
    def step(user: Any, n: int) -> None: ...

    @app.task(queue="orders", key="user")
    def named(n: int, *, user: Any = None) -> None: ...

    @app.task
    def plain(n: int) -> None: ...

    @app.task(priority=3)
    def ranked(n: int) -> None: ...

    with pytest.raises(BadArguments, match="its key function raised KeyError: 'id'; nothing was sent"):
        step.delay({}, 1)
    for wrong in (None, 1.5, True, b"x", ["x"]):
        with pytest.raises(BadArguments, match="neither text nor a whole number; nothing was sent"):
            step.delay({"id": wrong}, 1)
        with pytest.raises(BadArguments, match=r"the argument 'user', is .*neither text nor"):
            named.delay(1, user=wrong)
        if wrong is not None:
            with pytest.raises(BadArguments, match="neither text nor"):
                named.apply_async((1,), {"user": "u"}, key=wrong)  # type: ignore[arg-type]
    with pytest.raises(BadArguments, match="neither text nor"):
        named.delay_many([1, 2])
    with pytest.raises(BadArguments, match="key and priority exclude each other"):
        step.apply_async(({"id": 1}, 1), priority=9)
    with pytest.raises(BadArguments, match="key and priority exclude each other"):
        ranked.apply_async((1,), key="k", queue="orders")
    with pytest.raises(ConfigError, match="queue default is not ordered"):
        plain.apply_async((1,), key="k")
    with pytest.raises(ConfigError, match="queue orders is ordered, and takes no priorities"):
        plain.apply_async((1,), priority=9, queue="orders")
    with pytest.raises(ConfigError, match="key and priority exclude each other"):
        app.task(name="both", key="n", priority=3)(lambda n: None)
    with pytest.raises(ConfigError, match="key='m' is none of its parameters: n"):
        app.task(name="misspelt", key="m")(lambda n: None)
    with pytest.raises(ConfigError, match="neither the name of a parameter nor a function"):
        app.task(name="number", key=7)(lambda n: None)
    with pytest.raises(ConfigError, match='neither "skip" nor "block"'):
        app.task(name="dead", on_dead="stop")(lambda n: None)
    for stream in app.engine.streams():
        assert all(lo == hi for _, lo, hi in app.engine.bounds(stream)), "something was sent"


def test_declarations_of_order(app: App, tmp_path: Path) -> None:
    for wrong in (0, 5000, "4", True):
        with pytest.raises(ConfigError, match="is no number from 1 to 4096"):
            app.queue("wrong", ordered=True, partitions=wrong)
    with pytest.raises(ConfigError, match="goes with ordered=True"):
        app.queue("wrong", partitions=4)
    with pytest.raises(DeclarationConflict, match="partitions"):
        app.queue("orders", ordered=True, partitions=8)
    assert len(app.stream_of("queue", "orders").logs) == 4
    events = app.stream("events")
    with pytest.raises(ConfigError, match="ordered=True needs a stream with a key"):
        events.subscribe(lambda event: None, group="g", name="g", ordered=True)
    keyed = app.stream("keyed", key="user")
    with pytest.raises(ConfigError, match="key= is of calls"):
        keyed.subscribe(lambda event: None, group="g", name="g", key="user")
    again = App("shop", url=app.url)
    again.queue("orders")
    with pytest.raises(DeclarationConflict, match="ordered=True"):
        _ = again.engine
    again.close()


def test_how_keys_are_given(app: App) -> None:
    """By name or by a function, in each way to send; numbers and text that say the same are one key."""

    @app.task(queue="orders", key="user", bind=True)
    def named(self: Any, n: int, user: int | str = "nobody") -> tuple[str, int]:
        return self.request.key, self.request.partition

    @app.task(queue="orders", key=lambda n, user="x": f"{user}-{n % 2}", bind=True)
    def made(self: Any, n: int, user: str = "x") -> tuple[str, int]:
        return self.request.key, self.request.partition

    @app.task(queue="orders", bind=True)
    def plain(self: Any, n: int) -> tuple[str | None, int]:
        return self.request.key, self.request.partition

    sent = {
        "7": [named.delay(1, 7), named.delay(2, user="7"), asyncio.run(named.adelay(3, user=7))],
        "nobody": [named.delay(1), *named.delay_many([2, 3])],
        "other": [named.apply_async((1, 7), key="other"), plain.apply_async((1,), key="other")],
        "x-1": [made.delay(1), *made.apply_many([((3,), {}), ((5,), {"user": "x"})])],
    }
    unkeyed = plain.delay_many(range(40))
    work(app)
    for key, results in sent.items():
        assert [r.get(0) for r in results] == [[key, partition_of(key, 4)]] * len(results)
    places = [place for key, place in unkeyed.get(0) if key is None]
    assert set(places) == {0, 1, 2, 3}, "those without a key are spread"


def test_an_ordered_subscription(app: App) -> None:
    seen: list[tuple[str, int]] = []
    events = app.stream("events", key="user", partitions=4)

    @events.subscribe(ordered=True, start="earliest", autoretry_for=(OSError,), default_retry_delay=0)
    def follow(event: dict[str, Any]) -> None:
        seen.append((event["user"], event["n"]))
        if ran(seen, event["user"]).count(event["n"]) <= event["n"] % 3:
            raise OSError

    _ = app.engine
    events.publish_many({"user": f"u{n % 5}", "n": n} for n in range(60))
    for n in range(60, 80):
        events.publish({"user": f"u{n % 5}", "n": n})
    work(app)
    for user in range(5):
        assert ran(seen, f"u{user}") == sorted(n for n in range(user, 80, 5) for _ in range(n % 3 + 1))
    again = App("shop", url=app.url)
    again.stream("events", key="user", partitions=4).subscribe(follow.fn, group="follow", name="follow")
    with pytest.raises(DeclarationConflict, match="subscription follow was declared with ordered=True"):
        _ = again.engine
    again.close()


def test_a_replay_of_an_ordered_queue_keeps_its_order(app: App) -> None:
    seen: list[tuple[str, int]] = []

    @app.task(queue="orders", key="user", autoretry_for=(OSError,), default_retry_delay=0)
    def step(user: str, n: int) -> None:
        seen.append((user, n))
        if ran(seen, user).count(n) % 2:
            raise OSError

    step.apply_many([((f"u{n % 7}", n), {}) for n in range(70)])
    work(app)
    seen.clear()
    create_replay(app, "orders", "v2", None)
    work(app, group="v2")
    for user in range(7):
        assert ran(seen, f"u{user}") == [n for n in range(user, 70, 7) for _ in range(2)]


def test_calls_of_a_run_keep_the_order_of_their_keys(app: App) -> None:
    seen: list[tuple[str, int]] = []

    @app.task
    def parent(base: int) -> None:
        for n in range(3):
            child.delay(f"u{n}", base + n)
        child.apply_many([((f"u{n}", base + n + 3), {}) for n in range(3)])

    @app.task(queue="orders", key="user")
    def child(user: str, n: int) -> None:
        seen.append((user, n))

    for base in (0, 10, 20):
        parent.delay(base)
    work(app)
    assert ran(seen, "u1") == [1, 4, 11, 14, 21, 24]
    assert len(seen) == 18


def test_what_follows_a_stopped_call_of_its_key_waits_with_it(app: App) -> None:
    """Whatever its task: it may be in the same lease, of which only the stopped task's calls wait."""
    seen: list[tuple[str, int]] = []
    down = [True]

    @app.task(queue="orders", key="user", breaker={"failures": 1, "pause": 60})
    def pay(user: str, n: int) -> None:
        if down[0]:
            raise OSError("nobody there")
        seen.append((user, n))

    @app.task(queue="orders", key="user")
    def ship(user: str, n: int) -> None:
        seen.append((user, n))

    pay.delay("first", 0)
    work(app)
    ship.apply_many([(("many", n), {}) for n in range(400)])  # quick: the more are taken at once
    behind = []
    for n in range(20):
        pay.delay(f"u{n}", 1)
        behind.append(ship.delay(f"u{n}", 2))
    work(app)
    assert seen == [("many", n) for n in range(400)], "and nothing that comes after a call that waits"

    main = app.main_of("orders")
    worker = app.engine.register(Registration("shop", "w", "h", "b", 1, time.time(), {"groups": [main.id]}))
    said = {re.sub(r"\d+\.\d", "…", why_unfinished(result)) for result in behind}
    assert "its task, or that of an earlier one of its key, is stopped by its breaker for … s more" in said
    app.engine.drop_worker(worker)

    down[0] = False
    assert release(app, "pay") == 1
    work(app)
    assert [ran(seen, f"u{n}") for n in range(20)] == [[1, 2]] * 20


# With real workers

on_each_engine = pytest.mark.parametrize("place", ["sqlite", "postgres", "kafka"], indirect=True)


@on_each_engine
def test_keys_run_side_by_side_and_each_in_order(place: Place) -> None:
    """Of one partition: two children run two keys; a third waits for none of them, nor do they for it."""
    module = place.module(CODE)
    for n in range(2):
        for user in "ab":
            module.slow.delay(user, n)
    place.worker(2)
    place.await_start("slow", "a:0")
    place.await_start("slow", "b:0")
    module.slow.delay("c", 0)
    place.touch("go-b-0")
    place.await_start("slow", "b:1")
    assert place.runs("slow")["a:1"] == 0
    place.touch("go-b-1")
    place.await_start("slow", "c:0")
    assert place.runs("slow")["a:1"] == 0
    place.touch("go-a-0")
    place.await_start("slow", "a:1")
    for name in ("go-a-1", "go-c-0"):
        place.touch(name)
    eventually(lambda: place.idle_in("narrow"))
    check_order(place.marks(name="slow"))
    assert set(place.runs("slow").values()) == {1}
    place.check()


@on_each_engine
def test_retries_joins_and_leaves_keep_the_order(place: Place) -> None:
    """Two workers, then three; one of them is ended warmly, and one killed, in the midst of retries."""
    module = place.module(CODE)
    chance = random.Random(1)
    for n in range(40):
        for user in range(12):
            fails = int(chance.random() < 0.15)
            if fails:
                place.touch(f"fail-u{user}-{n}-1")
            module.step.delay(f"u{user}", n, fails)
    first, second = place.worker(2), place.worker(1)
    eventually(lambda: len(place.marks("end")) > 60)
    third = place.worker(2)
    eventually(lambda: len(place.marks("end")) > 150)
    first.signal(signal.SIGTERM)
    eventually(lambda: len(place.marks("end")) > 250)
    third.kill_group()
    eventually(lambda: place.idle_in("orders"), timeout=60)
    second.stop()
    check_order(place.marks(name="step"))
    ended = {mark.key for mark in place.marks("end", "step")}
    assert ended == {f"u{user}:{n}" for user in range(12) for n in range(40)}
    place.check()


@on_each_engine
def test_a_run_whose_process_dies_keeps_its_place(place: Place) -> None:
    module = place.module(CODE)
    for n in range(6):
        for user in "ab":
            if n in (1, 3):
                place.touch(f"die-{user}-{n}")
            module.fatal.delay(user, n)
    place.worker(2)
    eventually(lambda: place.idle_in("orders"), timeout=60)
    check_order(place.marks(name="step"))
    for user in "ab":
        runs = [int(m.key[2:]) for m in place.marks("start", "step") if m.key[0] == user]
        assert runs == [0, 1, 1, 2, 3, 3, 4, 5]
    place.check()


@on_each_engine
def test_a_partition_with_too_much_that_waits_says_so(place: Place) -> None:
    """Beyond what may be blocked the cursor waits, and lag shows it; then all comes to its turn (H13)."""
    module = place.module(CODE)
    calls = [(("a", n), {}) for n in range(1010)]
    calls[500:500] = [(("c", 1), {})]
    module.stubborn.apply_many([*calls, (("b", 1), {})])
    place.worker(1)
    eventually(lambda: place.counts(queue="narrow").pending == 511, "c went, and a before it is blocked")
    beat = place.registered()[0].beat
    eventually(lambda: place.registered()[0].beat > beat + 3)
    counts = place.counts(queue="narrow")
    assert counts[:3] == (511, 0, 0), "as many more may be blocked as are not enough to come to b"
    assert counts.parked == {"dead": 1, "blocked": 499}
    assert place.runs("stubborn") == {"a:0": 1, "c:1": 1}
    target = Target(place.app.engine, place.app, place.app.name, place.app.location)
    (shown,) = (data for data in lag_table(target, target.groups).data if data["name"] == "narrow")
    assert (shown["blocked"], shown["stalled"]) == (499, 1)
    place.touch("enough")
    assert place.app.dead_letters(task="stubborn").redrive() == 1
    place.await_start("stubborn", "b:1")
    eventually(lambda: place.idle_in("narrow"), timeout=60)
    order = [int(mark.key[2:]) for mark in place.marks("start", "stubborn") if mark.key[0] == "a"]
    assert order == [0, *range(1010)]


def test_an_ordered_run_is_ended_when_the_worker_cannot_prove_that_it_lives(place: Place) -> None:
    """H5: past its deadline its key may be another worker's; nobody is charged."""
    module = place.module(CODE)
    module.slow.delay("a", 0)
    worker = place.worker(1)
    pid = place.await_start("slow", "a:0").pid
    worker.signal(signal.SIGSTOP)  # it beats no more, nor does it end its child

    def ended() -> bool:
        try:
            return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True

    eventually(ended, "the end of the child's process")
    worker.signal(signal.SIGCONT)
    place.touch("go-a-0")
    eventually(lambda: place.idle_in("narrow"))
    assert place.runs("slow") == {"a:0": 2}
    assert place.app.dead_letters().count() == 0


def test_a_call_that_is_killed_at_its_time_limit_blocks_its_key(place: Place) -> None:
    module = place.module(CODE)
    calls = [module.endless.delay("a", n) for n in range(3)]
    place.worker(2)
    with pytest.raises(TimeLimitExceeded):
        calls[0].get(timeout=30)
    module.endless.delay("b", 0).get(timeout=10)
    eventually(
        lambda: place.counts(queue="narrow").parked == {"dead": 1, "blocked": 2}, "two wait for the dead"
    )
    assert place.runs("endless") == {"a:0": 1, "b:0": 1}


def test_a_burst_does_not_end_while_another_holds_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may go while a call of the key runs; it may be over by the time that somebody looks for it."""
    app = App("t", url="sqlite:///:memory:")
    app.queue("orders", ordered=True)

    @app.task(queue="orders", key=lambda n: "u")
    def note(n: int) -> None: ...

    note.delay_many(range(3))
    engine, main, may_go = app.engine, app.main_of("orders"), host._may_go

    def taken_meanwhile(*args: Any) -> bool:
        who = Claimant(1, 0, 1)
        request = Request(1, 1, 0, 1 << 32 | 7, 1.0, ordered=who)
        reads = Reads(main.id, positions=True, due=1, returned=9, now=1.0, ordered=who)
        lease = engine.transact(reads, lambda view, change: claim(view, change, request))
        assert lease is not None
        answer = may_go(*args)
        assert not answer, "the key is held"
        assert finish(engine, main, lease)
        return answer

    monkeypatch.setattr(host, "_may_go", taken_meanwhile)
    assert not host.all_done(engine, [main], {main.id})
    monkeypatch.undo()
    work(app)
    assert host.all_done(engine, [main], {main.id})
    app.close()


def test_lag_says_which_dead_letter_holds_up_a_key(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with App("shop", url=url) as app:
        app.queue("orders", ordered=True, partitions=4)

        @app.task(queue="orders", key="user", on_dead="block")
        def blocks(user: str) -> None:
            raise ValueError(user)

        def told() -> str:
            result = CliRunner().invoke(main, ["--url", url, "lag"])
            assert result.exit_code == 0, result.output
            return " ".join(result.output.split())

        first = blocks.delay("a")
        work(app)
        given = f"respool dead redrive --id {first.id}, or respool dead drop --id {first.id}"
        assert f"shop/orders: 1 dead letter holds up its key, and what comes of it waits: {given}" in told()
        blocks.delay("b")
        work(app)
        assert (
            "shop/orders: 2 dead letters hold up their keys, and what comes of it waits: see: respool"
            in told()
        )
