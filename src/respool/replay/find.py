"""What the functions of this package share: whose engine, which queue, which parked records."""

from __future__ import annotations

from collections.abc import Iterator

from ..app import App
from ..engines.base import Engine, Group, ParkedFilter, Stream
from ..errors import ConfigError, UnknownName, suggest

SLICE = 500  # parked records changed in one transaction

Source = App | Engine
"""What the functions of this package are about: an engine where no code is needed."""


def queue_of(source: Source, queue: str, *, app: str | None = None) -> Stream:
    """Return a queue as stored. Raises UnknownName, which suggests the near one."""
    engine, app = sides(source, app)
    streams = engine.streams()
    queues = [s for s in streams if s.kind == "queue" and app in (None, s.app)]
    found = [s for s in queues if s.name == queue]
    if len(found) > 1:
        apps = ", ".join(sorted(s.app for s in found))
        raise ConfigError(f"several apps have a queue {queue}: {apps}; say which with -A")
    if found:
        return found[0]
    if any(s.kind == "stream" and s.name == queue for s in streams):
        near = suggest(queue, [s.name for s in queues])
        raise ConfigError(f"{queue} is a stream of events, not a queue{near}")
    raise UnknownName("queue", queue, {s.name for s in queues})


def sides(source: Source, app: str | None) -> tuple[Engine, str | None]:
    """Return the engine, and the app that listings keep to."""
    return (source.engine, source.name) if isinstance(source, App) else (source, app)


def parked_slices(engine: Engine, group: Group, wanted: ParkedFilter) -> Iterator[list[tuple[int, str]]]:
    """Yield what is parked, in the order of positions: what comes back meanwhile is not met again."""
    after = -1
    while found := engine.parked_after(wanted, group.id, after, SLICE):
        after = found[-1][0]
        yield found
