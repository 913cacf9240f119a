"""What is measured on Kafka only: partitions, many workers on one, and a bare loop to compare with."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.cases.common import Sizes, timed_drain, use, worker
from bench.peers import common

PARTITIONS = 4
COMMIT_EACH = 5000
SLEEPS = 300  # records a worker, each of 10 ms, …
WARM = 20  # … after so many: each process connects, and prepares its statements, with its first


def partitions(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Events of four partitions that a function appends a byte for, run by two processes."""
    marks = use(folder)
    from bench.apps.parts import app, events

    n = sizes.drain // PARTITIONS * PARTITIONS
    events.publish_many({"key": f"k{i % 64}", "n": i} for i in range(n))
    app.close()
    with worker(folder, "bench.apps.parts", options=("--group", "marks")) as running:
        timed = timed_drain(marks, n, running)
    return {"rate": timed.rate, "second_half_rate": timed.second_half_rate}


def bare_loop(folder: Path, sizes: Sizes) -> dict[str, float]:
    """The records of `subscription`, consumed by the driver alone: decode, call, commit each 5,000."""
    use(folder)
    import msgspec
    from bench.apps.events import app, events, nothing
    from confluent_kafka import Consumer, TopicPartition

    total = events.publish_many([f"{i:098d}" for i in range(sizes.events)])
    engine: Any = app.engine
    place = engine.place(app.stream_of("stream", "events").logs[0])
    consumer = Consumer(
        {
            "bootstrap.servers": engine.options.client["bootstrap.servers"],
            "group.id": "bare",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.assign([TopicPartition(place.topic, 0, 0)])
    decode, call = msgspec.json.Decoder().decode, nothing.fn
    done = since = 0
    start = 0.0
    while done < total:
        for message in consumer.consume(COMMIT_EACH, 0.1):
            if message.error() is None:
                start = start or time.perf_counter()
                call(decode(message.value()))
                done, since = done + 1, since + 1
        if since >= COMMIT_EACH:
            consumer.commit(asynchronous=False)
            since = 0
    took = time.perf_counter() - start
    consumer.close()
    app.close()
    return {"rate": total / took}


def many_workers(folder: Path, sizes: Sizes) -> dict[str, float]:
    """One partition whose records sleep for 10 ms: one worker, then eight."""
    marks = use(folder)
    from bench.apps.parts import app, sleep

    rates = {}
    for count in (1, 8):
        before, n = marks.stat().st_size + WARM * count, SLEEPS * count
        with ExitStack() as stack:
            for _ in range(count):
                running = stack.enter_context(
                    worker(folder, "bench.apps.parts", processes=1, options=("-Q", "default"))
                )
            deadline = time.monotonic() + common.READY
            while len(app.engine.workers()) < count:
                if time.monotonic() > deadline:
                    running.fail("the workers did not start")
                time.sleep(0.05)
            sleep.delay_many(range(WARM * count))
            common.wait_for_size(marks, before, running)
            sleep.delay_many(range(n))
            rates[count] = timed_drain(marks, n, running, before).rate
    app.close()
    return {"one": rates[1], "eight": rates[8], "ratio": rates[8] / rates[1]}
