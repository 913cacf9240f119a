"""A producer that is faster than its workers slows down, and one number says how far they are behind.

    python examples/producer_that_slows_down.py

A queue with `max_pending` takes no more when it is full: `delay()` waits for room, or raises QueueFull at
once. `app.lag()` is what there is to do as soon as may be: the number to watch and to alert on.
`app.pressure()` is its share of `max_pending`, for producers that slow down before.

By command: respool -A producer_that_slows_down lag --json

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from respool import App, QueueFull

app = App("mailing")
app.queue("mails", max_pending=100, max_pending_wait="30s")
app.queue("previews", max_pending=10, when_full="raise")


@app.task(queue="mails")
def mail(address: str) -> None:
    time.sleep(0.001)


@app.task(queue="previews")
def preview(n: int) -> None: ...


def main() -> None:
    refused = 0
    for n in range(15):
        try:
            preview.delay(n)
        except QueueFull:
            refused += 1  # answer "later", or leave it out
    print(
        f"previews: {app.lag('previews')} to do, {refused} refused; pressure {app.pressure('previews'):.0%}"
    )

    mail.delay_many(f"reader-{n}@example.org" for n in range(100))
    print(
        f"mails: {app.lag('mails')} to do, pressure {app.pressure('mails'):.0%}: who sends waits from now on"
    )
    command = [
        sys.executable,
        "-m",
        "respool",
        "-A",
        __file__,
        "--url",
        app.url,
        "worker",
        "-c",
        "1",
        "-Q",
        "mails",
    ]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    most = 0
    for n in range(1000):  # faster than one process can mail
        mail.delay(f"customer-{n}@example.org")
        if n % 50 == 0:
            most = max(most, app.lag("mails"))
    print(f"1,000 more were sent, and there were never more than 150 to do: {most <= 150}")
    while app.lag("mails"):
        time.sleep(0.02)
    print(f"now all are done: lag {app.lag('mails')}, pressure {app.pressure('mails'):.0%}")
    worker.send_signal(signal.SIGTERM)
    print(f"the worker's exit code is {worker.wait(30)}")


if __name__ == "__main__":
    main()
