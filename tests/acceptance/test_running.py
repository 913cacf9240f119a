"""How calls are run: in order, by priority, in batches, long beside short, within limits."""

from __future__ import annotations

import signal
import time
from collections import Counter, defaultdict

from tests.acceptance.stage import Stage
from tests.worker.support import eventually

ORDERED = """
app.queue("orders", ordered=True, partitions=2)
events = app.stream("events", key="user", partitions=2)


@app.task(queue="orders", key="user", autoretry_for=(OSError,), default_retry_delay=0.02, max_retries=9)
def step(user: str, n: int) -> None:
    with noted("step", f"{user}:{n}"):
        if user == "slow" and n == 0:
            wait_for("go")
    if n == 1 and once(f"fail-{user}"):
        raise OSError(n)
    if n == 2 and once(f"die-{user}"):
        die()


@app.task
def free(user: str, n: int) -> None:
    note("start", "free", f"{user}:{n}")


@events.subscribe(group="audit", ordered=True, start="earliest")
def audit(event):
    note("start", "audit", f"{event['user']}:{event['n']}")
"""


def test_order(stage: Stage) -> None:
    """By `key=` of the task and of the call, and of a subscription; retries, deaths, joins, leaves."""
    module = stage.module(ORDERED, max_deliveries=100)
    users = ("slow", "ada", "bert")
    for user in users[1:]:
        stage.touch(f"fail-{user}")
        stage.touch(f"die-{user}")
    first = stage.worker(2)
    for n in range(6):
        for user in users:
            module.step.delay(user, n)
        module.free.apply_async(("x", n), queue="orders", key="its own")
        module.events.publish({"user": "ada", "n": n})
    stage.await_start("step", "slow:0")
    stage.worker(2).said("serves")
    others = ("ada:5", "bert:5")
    eventually(
        lambda: {m.key for m in stage.marks("end", "step")} >= {*others},
        "a key that waits blocks itself only",
    )
    assert not any(mark.key == "slow:1" for mark in stage.marks())
    first.signal(signal.SIGTERM)
    stage.touch("go")
    assert first.wait() == 0
    eventually(lambda: stage.idle_in("orders") and len(stage.marks("start", "audit")) == 6, "all done")
    ends: dict[str, list[int]] = defaultdict(list)
    running: dict[str, int] = {}
    for mark in sorted(stage.marks(name="step"), key=lambda mark: mark.at):
        user, _, n = mark.key.partition(":")
        if mark.what == "start":
            assert running.get(user, int(n)) == int(n), "two of one key at once"
            running[user] = int(n)
        else:
            del running[user]
            ends[user].append(int(n))
    for user in users[1:]:
        assert ends[user] == [0, 1, 1, 2, 2, 3, 4, 5], "its retry, and its death, held its place"
    assert ends["slow"] == list(range(6))
    for name, key in (("free", "x"), ("audit", "ada")):
        assert [mark.key for mark in stage.marks("start", name)] == [f"{key}:{n}" for n in range(6)]
    stage.check()


PRIORITIES = """
@app.task
def step(n: int) -> None:
    note("start", "step", f"4:{n}")


@app.task(priority=9)
def urgent(n: int) -> None:
    note("start", "step", f"9:{n}")


@app.task
def busy(n: int) -> None:
    note("start", "busy", n)
    time.sleep(0.002)
"""


def test_priorities(stage: Stage) -> None:
    """9 first, and none starves; one of priority 9 behind a backlog starts at once."""
    module = stage.module(PRIORITIES)
    for n in range(10):
        module.step.apply_async((1000 + n,), priority=0)
    module.step.delay_many(range(10))
    module.urgent.delay_many(range(3000))
    stage.work()
    order = [mark.key for mark in stage.marks("start", "step")]
    lanes = ["0" if key.startswith("4:1") and len(key) == 6 else key[0] for key in order]
    first = {p: lanes.index(p) for p in "049"}
    last = {p: len(lanes) - lanes[::-1].index(p) for p in "049"}
    assert first["9"] < first["4"] < first["0"]
    assert first["0"] < last["9"], "the lowest had its share"

    module.busy.delay_many(range(3000))
    stage.worker(1)
    eventually(lambda: len(stage.marks("start", "busy")) > 50)
    waits = []
    for n in range(5000, 5005):
        sent = time.monotonic()
        module.step.apply_async((n,), priority=9)
        waits.append(stage.await_start("step", f"4:{n}").at - sent)
    assert sorted(waits)[2] < 0.1, waits
    assert len(stage.marks("start", "busy")) < 3000, "it was behind a backlog"
    (lag,) = stage.rows("lag", "--queue", "default")
    assert lag["pending"] > 0


BATCHES = """
@app.task(batch=500, batch_wait=0.1)
def embed(texts: list[str]) -> list[int]:
    note("start", "embed", len(texts))
    if "malformed" in texts:
        raise ValueError("cannot be embedded")
    return [len(text) for text in texts]


@app.task(
    batch=10, batch_wait=0.1, batch_key=lambda item: item[0]["tenant"],
    autoretry_for=(OSError,), default_retry_delay=0.01,
)
def store(items: list[tuple[dict, int]]) -> list:
    note("start", "store", "-".join(sorted({row["tenant"] for row, _ in items})) + f"/{len(items)}")
    return [OSError("again") if n == 3 and once("fail") else n for _, n in items]


events = app.stream("events")


@events.subscribe(group="sink", start="earliest", batch=8)
def sink(rows):
    note("start", "sink", len(rows))
"""


def test_batches(stage: Stage) -> None:
    module = stage.module(BATCHES)
    results = module.embed.delay_many("malformed" if n == 387 else "x" * (n % 7) for n in range(500))
    stage.work()
    values = list(results.iterate(0, propagate=False))
    assert isinstance(values[387], ValueError)
    assert [value for n, value in enumerate(values) if n != 387] == [n % 7 for n in range(500) if n != 387]
    sizes = [int(mark.key) for mark in stage.marks("start", "embed")]
    assert sizes[0] == 500
    assert len(sizes) <= 1 + 2 * 9
    (letter,) = stage.rows("dead", "list")
    assert (letter["task"], letter["error"]) == ("embed", "ValueError: cannot be embedded")
    assert stage.data("dead", "redrive", "--set", "args[0]=mended") == {"redriven": 1}
    stage.work()
    assert results.get(timeout=0)[387] == 6

    stage.touch("fail")
    stored = [module.store.delay({"tenant": "ab"[n % 2]}, n) for n in range(12)]
    module.events.publish_many({"n": n} for n in range(20))
    stage.work()
    assert [each.get(timeout=0) for each in stored] == list(range(12))
    assert [len(each.history()) for each in stored] == [2 if n == 3 else 1 for n in range(12)], (
        "retries are per call"
    )
    kinds = Counter(mark.key for mark in stage.marks("start", "store"))
    assert set(kinds) == {"a/6", "b/6", "b/1"}
    assert sorted(int(mark.key) for mark in stage.marks("start", "sink")) == [4, 8, 8]
    stage.check()


MIXED = """
app.queue("reports", max_concurrency=1)


@app.task
def short(n: int) -> None:
    note("start", "short", n)
    time.sleep(0.008)
    note("end", "short", n)


@app.task
def long(n: int) -> int:
    with noted("long", n):
        wait_for("go")
    return n


@app.task(max_concurrency=1)
def narrow(n: int) -> None:
    with noted("narrow", n):
        time.sleep(0.02)


@app.task(queue="reports")
def report(n: int) -> None:
    with noted("report", n):
        time.sleep(0.02)
"""


def test_long_beside_short(stage: Stage) -> None:
    """A long call holds up nothing while another process is free, needs no setting, and is delivered once."""
    module = stage.module(MIXED, beat=0.1, worker_ttl=0.5)
    stage.worker(2).said("serves")
    stage.children(2)
    module.short.delay_many(range(100))
    handle = module.long.delay(7)
    module.short.delay_many(range(100, 200))
    stage.await_start("long", "7")
    began = time.monotonic()
    eventually(lambda: len(stage.marks("end", "short")) == 200, "the short ones are done")
    eventually(lambda: time.monotonic() > began + 1, "twice the time to live of a worker")
    assert handle.state == "STARTED"
    stage.worker(1)  # looks for dead ones, and finds none
    for n in range(10):
        module.narrow.delay(n)
        module.report.delay(n)
    eventually(lambda: len(stage.marks("end", "narrow")) == len(stage.marks("end", "report")) == 10)
    stage.touch("go")
    assert handle.get(timeout=20) == 7
    assert set(_per_call(stage).values()) == {1}
    for name in ("narrow", "report"):
        assert _most_at_once(stage, name) == 1
    stage.check()


def _per_call(stage: Stage) -> Counter[tuple[str, str]]:
    return Counter((mark.name, mark.key) for mark in stage.marks("start"))


def _most_at_once(stage: Stage, name: str) -> int:
    now = most = 0
    for mark in sorted(stage.marks(name=name), key=lambda mark: mark.at):
        now += 1 if mark.what == "start" else -1
        most = max(most, now)
    return most


LIMITED = """
app.queue("slow", rate_limit="20/s", rate_burst=1)


@app.task(rate_limit="50/s", rate_burst=5)
def steady(n: int) -> None:
    note("start", "steady", n)


@app.task(rate_limit="20/s", rate_burst=2, limit_key=lambda tenant, n: tenant)
def hook(tenant: str, n: int) -> None:
    note("start", "hook", tenant)


@app.task(queue="slow")
def one(n: int) -> None:
    note("start", "slow", n)


@app.task(queue="slow")
def other(n: int) -> None:
    note("start", "slow", n)
"""


def test_limits(stage: Stage) -> None:
    """Of a task, of a queue, and of each key; a tenant with many calls does not starve one with few."""
    module = stage.module(LIMITED)
    module.hook.apply_many((("big", n), {}) for n in range(3000))
    module.hook.apply_many((("small", n), {}) for n in range(5))
    module.steady.delay_many(range(100))
    for n in range(15):
        module.one.delay(n)
        module.other.delay(100 + n)
    workers = [stage.worker(1), stage.worker(1)]
    eventually(lambda: stage.runs("hook")["small"] == 5, "the small tenant", 40)
    assert stage.runs("hook")["big"] < 500
    eventually(lambda: len(stage.runs("steady")) == 100 and len(stage.runs("slow")) == 30, "all", 40)
    for worker in workers:
        assert worker.stop() == 0
    for name, rate, burst in (("steady", 50, 5), ("slow", 20, 1)):
        times = sorted(mark.at for mark in stage.marks("start", name))
        took = times[-1] - times[0]
        assert len(times) <= burst + rate * (took + 0.5) * 1.05 + 2, (
            f"{name}: granted a while before it starts"
        )
        assert len(times) >= 0.2 * rate * took, f"{name} is served (how well: test_rates)"
    (lag,) = stage.rows("lag", "--queue", "default")
    assert lag["limited"] > 2000
    stage.check()
