"""Celery with Redis: a worker with a prefork pool of 2, everything else as Celery and Redis set it.

Variants: "plain" keeps no results (Celery's faster way); "results" keeps every one in Redis.
Call and get needs results, so both time the same task there.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.peers import common

NAME = "celery_redis"


def make_app(url: str) -> Any:
    from celery import Celery  # type: ignore[import-not-found,import-untyped,unused-ignore]

    app = Celery("bench", broker=url, backend=url, set_as_current=False)
    app.task(common.mark, name="plain", ignore_result=True)
    app.task(common.mark, name="results")
    app.finalize()
    return app


def work(url: str) -> None:
    """Be the worker, until SIGTERM."""
    make_app(url).worker_main(["worker", "--pool=prefork", "--concurrency=2", "--loglevel=WARNING"])


def redis_server() -> str:
    found = shutil.which("redis-server")
    if found is None:
        raise common.PeerError("redis-server is missing; install it with: sudo apt-get install redis-server")
    return found


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis of our own on the loopback, without persistence. Its URL."""
    port = common.free_port()
    options = {"port": str(port), "bind": common.LOOPBACK, "dir": str(folder), "save": "", "appendonly": "no"}
    command = [redis_server(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    with common.process(command, folder) as server:
        common.wait_for_port(port, server)
        yield f"redis://{common.LOOPBACK}:{port}/0"


def run(n: int = 5000, calls: int = 500) -> dict[str, Any]:
    """Measure with the interpreter that runs this."""
    version = subprocess.run([redis_server(), "--version"], capture_output=True, text=True, check=True).stdout
    versions = {p: importlib.metadata.version(p) for p in ("celery", "kombu", "redis")}
    versions["redis-server"] = version.split("v=")[-1].split()[0]
    variants: dict[str, common.Figures] = {}
    with common.temp_folder() as folder, redis(folder) as url:
        app = make_app(url)
        worker = [sys.executable, "-m", f"bench.peers.{NAME}", "--worker", url]
        results = app.tasks["results"]
        for name in ("plain", "results"):
            send = app.tasks[name].delay
            variants[name] = common.measure(
                folder, worker, send, lambda: results.delay().get(timeout=common.READY), n, calls
            )
        app.close()
    return common.report(NAME, versions, n, variants)


if __name__ == "__main__":
    common.main(NAME, run, work)
