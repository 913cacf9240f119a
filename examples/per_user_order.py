"""Per-user order: each user's events one by one, however often one is retried; users side by side.

    python examples/per_user_order.py

A ledger books transfers. Those of one account must be booked in the order in which they were sent, though
the bank is out of reach now and then and a transfer has to be tried again. No other account waits for that.

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

from collections import defaultdict

from respool import App
from respool.testing import work

app = App("ledger")
app.queue("transfers", ordered=True)
booked: dict[str, list[int]] = defaultdict(list)
tries: dict[tuple[str, int], int] = defaultdict(int)


@app.task(queue="transfers", key="account", autoretry_for=(ConnectionError,), default_retry_delay=0.05)
def book(account: str, number: int) -> None:
    tries[account, number] += 1
    if account == "anna" and number == 1 and tries[account, number] < 3:
        raise ConnectionError("the bank is out of reach")
    booked[account].append(number)


def main() -> None:
    for number in range(4):
        for account in ("anna", "bert", "cleo"):
            book.delay(account, number)
    work(app)  # in this process, for the example; else: respool -A per_user_order worker -c 4

    for account, numbers in sorted(booked.items()):
        print(f"{account}: {numbers}")
    print(f"anna's transfer 1 was tried {tries['anna', 1]} times, and those behind it waited")


if __name__ == "__main__":
    main()
