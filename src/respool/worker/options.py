"""What a worker is started with, handed from the command to the supervisor and its children."""

from __future__ import annotations

import msgspec


class WorkerOptions(msgspec.Struct, frozen=True):
    """The options of `respool worker`."""

    app: str  # where the App is: "shop", "shop:app", …
    url: str | None = None
    queues: list[str] | None = None
    group: str | None = None
    concurrency: int = 0  # processes; 0: as many as there are processors
    pool: str = "processes"
    burst: bool = False
    grace: float | None = None  # seconds that running tasks get after the first signal, None: all they need
    max_tasks_per_child: int | None = None
    name: str = ""


class Hello(msgspec.Struct):
    """What a child says once it has the app."""

    pid: int
    app: str
    url: str
    shown_url: str
    settings: dict[str, float]  # beat, worker_ttl, poll_interval, append_timeout
    durability: str
    services: list[tuple[int, str, list[int]]]  # group id, in words, logs
    tasks: list[str]
    deliveries: list[tuple[int, dict[str, tuple[int, bool]]]]  # by group, task
    ordered: list[int] = []  # groups
    dead_ttls: list[tuple[int, dict[str, float]]] = []  # the same of `dead_letter_ttl`, where there is one
    blobs: str | None = None  # the store of large payloads, where one was named
    blob_timeout: float = 30.0


class Welcome(msgspec.Struct):
    """What the supervisor answers."""

    worker: int
    file: str
    index: int
    burst: bool = False
    name: str = ""  # the worker's, for people


class Refusal(msgspec.Struct):
    """What a child says instead where it cannot start."""

    error: str
    usage: bool = False  # the command was wrong, rather than the app: see `loading.is_misuse`


EXIT_REFUSED = 64
EXIT_RECYCLED = 65
EXIT_LOST = 66  # an engine error: the supervisor finds out what is left
EXIT_LATE = 67  # it ran a call of an ordered group when its deadline was over
encode = msgspec.json.Encoder().encode
