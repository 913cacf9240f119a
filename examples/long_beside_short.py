"""Tasks of 80 ms, 45 s and 12 minutes in one pool: no short one waits while a process is free.

    python examples/long_beside_short.py

A lease ends when its worker dies, never because its work is long, so the twelve minutes need no setting, and
are run once. A process that has taken many short calls and comes upon a long one gives the others back.

The log is a file in the working directory, or what RESPOOL_URL says. Here all is 200 times as fast.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from respool import App

app = App("studio", beat=0.2, worker_ttl=1.0)  # the longest run is several times as long as this
FASTER = 200


@app.task
def hello(n: int) -> int:
    time.sleep(0.05)
    return os.getpid()


@app.task
def thumbnail(n: int) -> float:
    time.sleep(0.08 / FASTER)
    return time.time()


@app.task
def preview(n: int) -> float:
    time.sleep(45 / FASTER)
    return time.time()


@app.task(bind=True)
def film(self, n: int) -> tuple[float, int]:
    time.sleep(12 * 60 / FASTER)
    return time.time(), self.request.deliveries


def main() -> None:
    command = [sys.executable, "-m", "respool", "-A", __file__, "--url", app.url, "worker", "-c", "3"]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    processes: set[int] = set()
    while len(processes) < 3:  # for the example, so that none is still starting
        processes.update(hello.delay_many(range(6)).get(timeout=60))

    long = film.delay(0)
    previews = preview.delay_many(range(3))
    short = thumbnail.delay_many(range(300))
    ended = short.get(timeout=60)
    print(f"300 thumbnails are done; is the film? {long.ready()}")
    film_ended, deliveries = long.get(timeout=60)
    print(f"they were done before the film: {max(ended) < film_ended}")
    print(f"and so were the previews: {max(previews.get(timeout=60)) < film_ended}")
    print(f"the film was run {len(long.history())} time, and delivered again {deliveries} times")
    worker.send_signal(signal.SIGTERM)
    print(f"the worker's exit code is {worker.wait(30)}")


if __name__ == "__main__":
    main()
