"""Many that are sent together, of which a part is stored when one fails: it is said how many (P1)."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from respool import App, AppendUnknown, BadArguments, EngineUnavailable, LogMoved, QueueFull, Refused
from respool.errors import PartlyAppended, RespoolError
from respool.producer import CHUNK_RECORDS

BOTH = [
    EngineUnavailable("locked; nothing was sent"),
    LogMoved("it is being moved"),
    AppendUnknown("no answer"),
]


@pytest.fixture
def app() -> Iterator[App]:
    with App("shop", url="sqlite:///:memory:", append_timeout=0.05) as made:
        made.queue("ordered", ordered=True)
        made.queue("small", max_pending=10, when_full="raise")

        @made.task
        def plain(n: int) -> None: ...

        @made.task(queue="small")
        def small(n: int) -> None: ...

        @made.task(queue="ordered", key="n")
        def keyed(n: int) -> None: ...

        made.stream("events", key="k")
        yield made


def fails(app: App, name: str, error: RespoolError, after: int) -> None:
    """Have one of the engine's appends fail, once it has succeeded so often."""
    engine, done = app.engine, [0]
    real = getattr(engine, name)

    def append(*given: Any, **more: Any) -> Any:
        if done[0] == after:
            raise error
        done[0] += 1
        return real(*given, **more)

    setattr(engine, name, append)


def pending(app: App, queue: str) -> int:
    return app.lag(queue)


@pytest.mark.parametrize("error", BOTH, ids=lambda error: type(error).__name__)
def test_a_chunk_that_fails_after_others(app: App, error: RespoolError) -> None:
    """It is no refusal: who takes it for one would send all of it again."""
    fails(app, "append_run", error, 2)
    with pytest.raises(PartlyAppended, match=r"10,000 sent before") as raised:
        app.tasks["plain"].delay_many(range(3 * CHUNK_RECORDS))
    assert isinstance(raised.value, AppendUnknown)
    assert not isinstance(raised.value, Refused)
    assert (raised.value.stored, raised.value.error) == (2 * CHUNK_RECORDS, error)
    assert pending(app, "default") == raised.value.stored


def test_the_first_chunk_that_fails_is_what_it_is(app: App) -> None:
    fails(app, "append_run", BOTH[0], 0)
    with pytest.raises(EngineUnavailable) as raised:
        app.tasks["plain"].delay_many(range(10))
    assert raised.value.stored == 0


@pytest.mark.parametrize("error", BOTH, ids=lambda error: type(error).__name__)
def test_keys_that_go_to_many_logs(app: App, error: RespoolError) -> None:
    """Log by log: what is stored is counted over all of them, and over all portions before."""
    fails(app, "append_rows", error, 20)
    with pytest.raises(PartlyAppended) as raised:
        app.tasks["keyed"].delay_many(range(2000))
    assert raised.value.error is error
    assert raised.value.stored == pending(app, "ordered") > 0


def test_events_with_keys(app: App) -> None:
    events = app.stream_handles["events"]
    fails(app, "append_many", BOTH[0], 1)
    with pytest.raises(PartlyAppended) as raised:
        events.publish_many({"k": "one", "n": n} for n in range(600))
    assert raised.value.stored == len(list(events.read())) == 256


def test_what_the_caller_can_mend_keeps_its_class(app: App) -> None:
    """And says how many came before it."""

    def items() -> Iterator[Any]:
        yield from range(CHUNK_RECORDS)
        yield "text"

    with pytest.raises(BadArguments) as raised:
        app.tasks["plain"].delay_many(items())
    assert raised.value.stored == pending(app, "default")
    fails(app, "append_run", BOTH[0], 99)
    with pytest.raises(QueueFull) as full:
        app.tasks["small"].delay_many(range(2 * CHUNK_RECORDS))
    assert full.value.stored == pending(app, "small") == CHUNK_RECORDS
    assert "5,000 that were sent before it are stored" in "".join(traceback.format_exception(full.value))
