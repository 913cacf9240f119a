"""Group commit: whoever leads, leaves or is cancelled, nobody waits for somebody who does not come (H17)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from respool.delivery.model import NewCall
from respool.errors import AppendUnknown, EngineUnavailable
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


def row(n: int) -> NewCall:
    return NewCall(1, "t", b"%d" % n, None, n.to_bytes(13, "big") + b"\0\0\0", 0.0)


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
