"""Event fan-out: one stream, many readers, each at its own pace; who comes later reads from the beginning.

    python examples/event_fan_out.py

A shop publishes its orders once. The warehouse and the mailer each handle every one of them, and a mailer
that is out of order holds up nobody else. Later somebody wants statistics: a new group, over all that was.

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from respool import App
from respool.testing import work

app = App("shop")
orders = app.stream("orders", key="customer", partitions=4)
packed: list[int] = []
mailed: list[int] = []
tries: Counter[int] = Counter()


@orders.subscribe(group="warehouse")
def pack(order: dict[str, Any]) -> None:
    packed.append(order["number"])


@orders.subscribe(group="mailer", autoretry_for=(ConnectionError,), default_retry_delay=0.05)
def mail(order: dict[str, Any]) -> None:
    tries[order["number"]] += 1
    if order["number"] == 2 and tries[2] < 3:
        raise ConnectionError("the mail server is out of reach")
    mailed.append(order["number"])


def main() -> None:
    for number in range(6):
        orders.publish({"number": number, "customer": ("anna", "bert")[number % 2], "total": 10 * number})
    work(app)  # in this process, for the example; else: respool -A event_fan_out worker
    print(f"packed: {sorted(packed)}; mailed: {sorted(mailed)}")
    print(f"order 2 was mailed at the third try: {tries[2] == 3}; it was packed meanwhile: {2 in packed}")

    turnover: Counter[str] = Counter()

    @orders.subscribe(group="statistics", start="earliest")
    def add_up(order: dict[str, Any]) -> None:
        turnover[order["customer"]] += order["total"]

    work(app)
    print(f"a reader that came later has seen all: {dict(sorted(turnover.items()))}")
    print(f"and nobody packed or mailed anything twice: {len(packed) == len(mailed) == 6}")

    last = [event.value["number"] for event in orders.read()][-2:]
    print(f"the events are still there: {len(list(orders.read()))}, the last of them {sorted(last)}")


if __name__ == "__main__":
    main()
