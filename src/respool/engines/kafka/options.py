"""How to reach a cluster, and what may be said to it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from ...errors import ConfigError
from ...location import Location
from ...units import duration

OURS = frozenset(
    (
        *("acks", "request.required.acks", "enable.idempotence", "auto.offset.reset", "isolation.level"),
        *("enable.auto.commit", "enable.partition.eof", "enable.auto.offset.store", "group.id"),
        *("group.instance.id", "transactional.id", "allow.auto.create.topics", "partitioner"),
        *("message.timeout.ms", "delivery.timeout.ms"),
    )
)
"""Properties that our promises rest on."""

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """How to reach a cluster. `client` may hold passwords, and is shown to nobody."""

    client: dict[str, Any]
    shown: str
    prefix: str = ""
    replication: int = -1  # as many copies as the cluster makes by itself
    topic: dict[str, str] | None = None  # for the topics that we make
    id_window: float = DAY
    timeout: float = 10.0

    def __repr__(self) -> str:
        return f"KafkaOptions({self.shown!r})"


def kafka_options(location: Location, timeout: float) -> KafkaOptions:
    """Return what a URL says. Raises ConfigError for a property that is not to be set."""
    assert location.server is not None
    given = dict(parse_qsl(location.server.value, keep_blank_values=True))
    topic = {
        name.removeprefix("topic."): given.pop(name) for name in list(given) if name.startswith("topic.")
    }
    for name in given:
        if name in OURS:
            raise ConfigError(f"{location.shown}: {name} is not to be set: what Respool promises rests on it")
    client: dict[str, Any] = dict(given)
    if "oauth_cb" in location.options:
        client["oauth_cb"] = _named(location.options["oauth_cb"], location.shown)
    return KafkaOptions(
        client,
        location.shown,
        location.options.get("prefix", ""),
        int(location.options.get("replication", -1)),
        topic,
        duration(location.options.get("id_window", DAY), "id_window"),
        timeout,
    )


def _named(path: str, shown: str) -> Any:
    """Return the function that `module:function` names."""
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{shown}: oauth_cb={path} cannot be imported: {error}") from error
    return found
