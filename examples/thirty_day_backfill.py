"""Thirty days of calls, run again by a new version of the model: beside the old results, at a rate.

    python examples/thirty_day_backfill.py

The calls are on record, so a backfill is a replay: a group of its own over the window, here without the calls
that failed, and at no more than 500 a second, so that the service beside it has room. It stops when its
worker does, and goes on where it was. The results of both versions stand side by side, and nothing is sent
twice.

By command: respool -A texts replay --queue default --group v2 --task embed --since 30d \\
                --state SUCCESS --rate 500/s
            respool -A texts_v2 worker --group v2

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

import time

from respool import App
from respool.record import id_text, new_head
from respool.replay import Selection, create_replay, group_of, how_far
from respool.testing import work

DAY = 86400.0
app = App("texts")
next_app = App("texts", url=app.url)  # as a rule another module: -A texts_v2


@app.task
def embed(text: str) -> list[int]:
    if not text:
        raise ValueError("empty")
    return [len(text)]


@next_app.task(name="embed")
def embed_v2(text: str) -> list[int]:
    return [len(text), text.count("e")]


def record_of_forty_days() -> None:
    """Stand for forty days of a service: twenty calls a day, one of them with an empty text."""
    log, now = app.stream_of("queue", "default").logs[0], time.time()
    for day in range(40, 0, -1):
        at = now - day * DAY
        texts = ["" if n == 7 else f"the text {n} of day {day}" for n in range(20)]
        bodies = [embed.codec.encode(((text,), {}), "args") for text in texts]
        app.engine.append_run(log, "embed", bodies, None, new_head(at), at)


def main() -> None:
    record_of_forty_days()
    work(app)  # version 1, as it was
    print(f"{40 * 20} calls on record, {app.dead_letters().count()} of them dead letters")

    made = create_replay(
        next_app, "default", "v2", ["embed"], since=time.time() - 29.5 * DAY,
        selection=Selection(state="SUCCESS"), rate="500/s",
    )  # fmt: skip
    print(f"the backfill looks at {made.total} calls of the last 29 and a half days")
    work(next_app, group="v2")

    stream, group = group_of(app, "default", "v2")
    far = how_far(app.engine, group)
    print(f"over: {far.over}; left out, since they failed then: {far.skipped}; dead letters: {far.dead}")
    position = stream.logs[0] << 40 | 40 * 20 - 1
    (last,) = app.engine.records(position, position + 1, 1)
    call = app.AsyncResult(id_text(last.id))
    print(f"results beside each other: {call.get(timeout=0)} and {call.of('v2').get(timeout=0)}")
    print(f"the dead letters of main are as they were: {app.dead_letters(group='main').count()}")


if __name__ == "__main__":
    main()
