"""Results for as long as they are wanted: a value has its time, a state stays, and most calls leave no row.

    python examples/results_that_do_not_leak.py

What returned None needs no row: that it is done is known from where the group is. A value goes with its
record, or when its `result_ttl` is over, by the workers themselves; then the state is still told, and asking
for the value says what became of it.

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

import time

from respool import App, ResultExpired
from respool.replay import group_of
from respool.testing import work

app = App("reports")
app.queue("default", retention={"age": "30d", "count": 1_000_000})


@app.task
def notify(n: int) -> None: ...


@app.task(ignore_result=True)
def render(n: int) -> bytes:
    return b"x" * 1000


@app.task(result_ttl="3s")
def summarize(n: int) -> str:
    return f"the summary of report {n}"


def stored() -> int:
    """Return how many results are stored."""
    _, group = group_of(app, "default", "main")
    return sum(each.value is not None for each in app.engine.outcomes(group.id, 0, 1 << 62))


def main() -> None:
    notified, rendered = notify.delay_many(range(1000)), render.delay_many(range(1000))
    work(app)
    summaries = summarize.delay_many(range(100))
    work(app)  # in this process, for the example; else: respool -A results_that_do_not_leak worker
    print(f"2,100 calls are done, and {stored()} results are stored")
    print(f"one of them: {summaries.get(timeout=0)[7]}")
    print(f"a call without a result is done, too: {next(iter(notified)).state}, {next(iter(rendered)).state}")

    time.sleep(3.1)
    first = next(iter(summaries))
    try:
        first.get(timeout=0)
    except ResultExpired:
        print(f"three seconds later its value has expired; its state is {first.state}")
    while stored():
        work(app)  # workers keep house beside their work
    print(f"now {stored()} results are stored")


if __name__ == "__main__":
    main()
