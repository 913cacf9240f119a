"""Group commit: whoever leads, leaves or is cancelled, nobody waits for somebody who does not come (H17)."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from respool import producer as module
from respool.delivery.model import NewCall
from respool.engines import turns
from respool.engines.turns import GRACE, left
from respool.errors import AppendUnknown, EngineUnavailable, StreamUnavailable
from respool.producer import MAX_TOGETHER, Producer


class Log:
    """What a producer asks of an engine; notes what is appended together."""

    def __init__(self) -> None:
        self.together: list[list[bytes]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def append_rows(self, rows: Sequence[NewCall]) -> list[Any]:
        self.entered.set()
        assert self.go_on.wait(20)
        if self.error is not None:
            raise self.error
        self.together.append([row.body for row in rows])
        return []

    def append_row(self, row: NewCall) -> int:
        self.append_rows([row])
        return 1


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def producer(log: Log) -> Producer:
    return Producer(log, 1 << 20)  # type: ignore[arg-type]


def row(n: int, log: int = 1) -> NewCall:
    return NewCall(log, "t", b"%d" % n, None, n.to_bytes(13, "big") + b"\0\0\0", 0.0)


def test_who_was_to_lead_and_is_cancelled_passes_the_lead_on(log: Log, producer: Producer) -> None:
    """It had just been woken; a coroutine behind it looks at no clock, and would wait for ever."""

    async def main() -> None:
        with producer._lead:  # somebody commits at this moment
            first, second = (asyncio.create_task(producer.aappend(row(n))) for n in (1, 2))
            while len(producer._waiting) < 2:
                await asyncio.sleep(0)
        producer._wake_next()  # as who led does at the end
        first.cancel()
        await asyncio.wait_for(second, 10)
        assert first.cancelled()

    asyncio.run(main())
    assert [body for bodies in log.together for body in bodies] == [b"2"]


def test_a_leader_that_is_cancelled_appends_for_all(log: Log, producer: Producer) -> None:
    """The append is one call into the engine, in a thread: it goes on, and all whom it was for are told."""

    async def main() -> None:
        log.go_on.clear()
        leader = asyncio.create_task(producer.aappend(row(0)))
        while not log.entered.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(producer.aappend(row(n))) for n in range(1, 4)]
        while len(producer._waiting) < 3:
            await asyncio.sleep(0)
        leader.cancel()
        log.go_on.set()
        await asyncio.wait_for(asyncio.gather(*others), 10)

    asyncio.run(main())
    assert sorted(body for bodies in log.together for body in bodies) == [b"0", b"1", b"2", b"3"]


def test_coroutines_that_come_meanwhile_share_a_commit(log: Log, producer: Producer) -> None:
    async def main() -> None:
        log.go_on.clear()
        first = asyncio.create_task(producer.aappend(row(0)))
        while not log.entered.is_set():
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(producer.aappend(row(n))) for n in range(1, 1 + MAX_TOGETHER)]
        while len(producer._waiting) < MAX_TOGETHER:
            await asyncio.sleep(0)
        log.go_on.set()
        await asyncio.wait_for(asyncio.gather(first, *rest), 10)

    asyncio.run(main())
    assert [len(bodies) for bodies in log.together] == [1, MAX_TOGETHER]
    assert log.together[1] == [b"%d" % n for n in range(1, 1 + MAX_TOGETHER)], "in their order"


def test_each_hears_whether_it_was_sent(log: Log, producer: Producer) -> None:
    async def main(error: Exception) -> list[Any]:
        log.error = error
        sent = [asyncio.create_task(producer.aappend(row(n))) for n in range(3)]
        return await asyncio.gather(*sent, return_exceptions=True)

    assert {type(each) for each in asyncio.run(main(EngineUnavailable("locked")))} == {EngineUnavailable}
    unknown = asyncio.run(main(AppendUnknown("a sync failed")))
    assert {type(each) for each in unknown} == {AppendUnknown}
    assert len({each.ids for each in unknown}) == 3, "each with its own id, to be sent again"
    assert all(each.ids[0] in str(each) for each in unknown)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Silent(Log):
    """An engine that answers nothing to what is appended to some of its logs."""

    def __init__(self, clock: Clock, error: Exception, logs: int) -> None:
        super().__init__()
        self.clock, self.silent, self.logs = clock, error, logs
        self.waited: list[float] = []
        self.sent = 0

    def append_rows(self, rows: Sequence[NewCall]) -> list[Any]:
        if rows[0].log > self.logs:
            self.sent += len(rows)
            return []
        self.waited.append(left(TIMEOUT))
        self.clock.now += self.waited[-1]
        raise self.silent


TIMEOUT, UNKNOWN, AWAY = 3.0, AppendUnknown("no answer"), EngineUnavailable("locked")
ONE_AWAY = StreamUnavailable("no leader")


@pytest.mark.parametrize(
    ("error", "logs", "waited", "sent", "errors"),
    [
        (AWAY, 8, [TIMEOUT, GRACE], 0, {EngineUnavailable: 16}),
        (UNKNOWN, 8, [TIMEOUT, GRACE], 0, {AppendUnknown: 4, EngineUnavailable: 12}),
        (UNKNOWN, 1, [TIMEOUT], 14, {AppendUnknown: 2, type(None): 14}),
        (ONE_AWAY, 3, [TIMEOUT, GRACE, GRACE], 10, {StreamUnavailable: 6, type(None): 10}),
    ],
    ids=["locked", "silent", "one is silent", "each by itself"],
)
def test_waits_do_not_add_up_over_queues(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    logs: int,
    waited: list[float],
    sent: int,
    errors: dict[type, int],
) -> None:
    """P10: each has its error in its own time, however many others send to other queues."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(turns, "time", clock)
    silent = Silent(clock, error, logs)
    producer = Producer(silent, 1 << 20, TIMEOUT)  # type: ignore[arg-type]

    async def main() -> list[Any]:
        with producer._lead:
            rows = [row(n, 1 + n % 8) for n in range(16)]
            tasks = [asyncio.create_task(producer.aappend(each)) for each in rows]
            while len(producer._waiting) < len(tasks):
                await asyncio.sleep(0)
        producer._wake_next()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    told = asyncio.run(main())
    assert silent.waited == waited
    assert silent.sent == sent
    assert Counter(map(type, told)) == errors
    assert clock.now - Clock.now == sum(waited)


def test_who_stood_behind_one_that_waited_in_vain_is_tried_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(turns, "time", clock)
    silent = Silent(clock, AWAY, 8)
    producer = Producer(silent, 1 << 20, TIMEOUT)  # type: ignore[arg-type]
    behind = [module._Pending(row(n, n), threading.Event()) for n in range(2, 6)]
    with pytest.raises(EngineUnavailable):
        producer.append(row(1))
    producer._waiting.extend(behind)
    late = module._Pending(row(6, 6), threading.Event())
    producer._waiting.append(late)
    producer._append_waiting()
    assert silent.waited == [TIMEOUT, GRACE, TIMEOUT - GRACE], "who came later has its own time"
    assert [str(each.error) for each in behind] == ["locked"] + 3 * [
        "nothing was sent, after what others met: locked"
    ]
