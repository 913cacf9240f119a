"""Hypothesis profiles: `dev` by default, `ci` where CI is set, `soak` where SOAK is.

Another: `pytest --hypothesis-profile=soak`. The mark of what needs a server: `pytest -m "not server"`. And
what makes the collecting of some thousands of tests quick.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from tests.rewriting import rewrite_share

_SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]  # a machine's steps are slow beside a function's

settings.register_profile(
    "dev",
    max_examples=50,
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=_SLOW,
    phases=set(Phase) - {Phase.explain},  # it traces each line: minutes, for a machine of a hundred steps
)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile(
    "soak", settings.get_profile("dev"), max_examples=20_000, stateful_step_count=150, print_blob=True
)
settings.load_profile("soak" if os.environ.get("SOAK") else "ci" if os.environ.get("CI") else "dev")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so it is for what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a command under test must hear Ctrl-C
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # so it is under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a worker under test must hear that its terminal is closed

_SERVERS = ("postgres", "kafka", "newest", "oldest", "pgbouncer", "server")
"""How fixtures begin that start a server, and parameters that name one."""


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without collections of garbage, which would look again and again through what is kept."""
    gc.disable()
    try:
        worker = getattr(session.config, "workerinput", None)
        if worker is not None:
            rewrite_share(session.config, int(worker["workerid"].removeprefix("gw")), worker["workercount"])
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a server, by its fixtures or by what it is run for; put first what is long."""
    for item in items:
        named = {*getattr(item, "fixturenames", ()), *_texts(item)}
        if any(name.startswith(_SERVERS) or name in _OF_SERVERS for name in named) or _starts_one(item):
            item.add_marker("server")
    items[:] = _long_first(items, getattr(config, "workerinput", {}).get("workercount", 1))


def _long_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Deal out the long tests: each of xdist's workers begins with an even part of all, in order."""
    long = [item for item in items if item.get_closest_marker("long")]
    rest = [item for item in items if not item.get_closest_marker("long")]
    parts = [
        long[n::workers] + rest[n * len(rest) // workers : (n + 1) * len(rest) // workers]
        for n in range(workers)
    ]
    return [item for part in parts for item in part]


def pytest_collection_finish() -> None:
    """Leave what was collected out of all collections of garbage: it is much, and stays.

    And keep no byte code of what tests write: two versions made within a second would be taken for one.
    """
    gc.collect()
    gc.freeze()
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


_OF_SERVERS = (
    *("database", "session_database", "session_newest", "session_oldest", "session_pooled"),
    *("broker", "secured"),
)
_STARTED = {"PostgresServer", "KafkaServer", "PgBouncer"}


def _starts_one(item: pytest.Item) -> bool:
    """Say whether a test's own code starts a server."""
    code = getattr(getattr(item, "function", None), "__code__", None)
    return code is not None and not _STARTED.isdisjoint(code.co_names)


def _texts(item: pytest.Item) -> Iterator[str]:
    """Yield those parameters of a test that are texts, and those within pairs of them."""
    callspec = getattr(item, "callspec", None)
    for value in () if callspec is None else callspec.params.values():
        each = value if isinstance(value, tuple) else (value,)
        yield from (name for name in each if isinstance(name, str))
