"""Streams: logs of events that any number of groups read, each at its own pace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from .delivery.spans import Span, joined
from .encoding.codec import codec_for
from .engines import public_id
from .engines.base import Engine, Record
from .errors import BadArguments, ConfigError, CorruptBody, UnknownName
from .keys import partition_of
from .record import Meta, checked_headers, checked_type, id_text, offset_of, parse_id
from .retention import UNSET
from .units import moment, utc

if TYPE_CHECKING:
    from .app import App

MOST_MISSING = 1000  # ranges where something may yet appear while others are read
PAGE = 1000  # records read at a time
FIRST_TOO_LARGE = 1 << 40  # of offsets


class Event(msgspec.Struct, frozen=True):
    """One record of a stream, as `Stream.read` gives it."""

    id: str
    time: datetime
    partition: int
    offset: int
    key: str | None
    type: str
    headers: Mapping[str, str]
    value: Any


class StreamHandle:
    """A stream as an app declares it. Made by `app.stream`."""

    def __init__(
        self,
        app: App,
        name: str,
        key: str | None,
        partitions: int,
        content_type: str,
        retention: Any,
        offload_over: int,
        foreign: bool = False,
        codec: Any = None,
        cloudevents: bool = False,
    ) -> None:
        self.app, self.name, self.key, self.retention = app, name, key, retention
        self.offload_over = offload_over
        self.partitions = partitions
        self.content_type = content_type
        self.codec = codec if codec is not None else codec_for(content_type, app.settings["pickle_key"])
        self.foreign, self.cloudevents = foreign, cloudevents
        self._stored_type = None if content_type == "json" else content_type

    def __repr__(self) -> str:
        return f"<Stream {self.name}>"

    @property
    def settings(self) -> dict[str, Any]:
        """What is stored at creation, and compared with later declarations."""
        said: dict[str, Any] = {
            "key": self.key,
            "serializer": self.content_type,
            **({} if self.retention is UNSET else {"retention": self.retention}),
        }
        if self.foreign:  # how many partitions it has is for others to say
            return {**said, "foreign": True}
        said["partitions"] = self.partitions
        return {**said, "cloudevents": True} if self.cloudevents else said

    def publish(
        self,
        value: Any,
        *,
        record_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str = "",
    ) -> str:
        """Append one event; it is on disk when this returns (P1).

        Parameters:
            value: what JSON returns exactly (or msgpack, with `serializer="msgpack"`).
            record_id: an id of your own; the same id and value again append nothing.
            headers: text by name. type: a name for the kind of event, "" for none.

        Returns: the record's id. Raises: BadArguments, NotEncodable, RecordTooLarge, EngineUnavailable,
            AppendUnknown.
        """
        body, meta, partition = self._encoded(value, headers)
        id = None if record_id is None else parse_id(record_id)
        return id_text(self.app.sender.event(self, partition, checked_type(type), body, meta, id))

    async def apublish(
        self,
        value: Any,
        *,
        record_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str = "",
    ) -> str:
        """Append one event without holding up the event loop; else like `publish`."""
        body, meta, partition = self._encoded(value, headers)
        id = None if record_id is None else parse_id(record_id)
        sent = await self.app.sender.aevent(self, partition, checked_type(type), body, meta, id)
        return id_text(sent)

    def publish_many(self, values: Iterable[Any], *, type: str = "") -> int:
        """Append many events in large synced chunks.

        Parameters:
            values: what JSON returns exactly (or msgpack, with `serializer="msgpack"`), each an event.
            type: a name for the kind of all of them, "" for none.

        Returns: how many. Raises: as `publish`; PartlyAppended where some are stored already:
            `error.stored` of them, which stay.
        """
        type = checked_type(type)
        if not isinstance(values, Iterable):
            raise BadArguments(f"stream {self.name}: {values!r:.80} is no list or other iterable of events")
        if self.key is None and not self.foreign:
            encode = self.codec.encode
            bodies = (encode(value) for value in values)
            return self.app.sender.events(self, type, bodies, Meta(content_type=self._stored_type))
        return self.app.sender.keyed_events(self, type, (self._encoded(value, None) for value in values))

    def read(
        self, *, since: Any = None, until: Any = None, offset: int | None = None, partition: int | None = None
    ) -> Iterator[Event]:
        """Yield the events of a window, a partition at a time, each in the order it was appended.

        On PostgreSQL those of a transaction that began before others and commits while it is read come at the
        end of their partition.

        Parameters:
            since, until: aware datetimes; since <= time < until.
            offset: with `partition` (default 0): begin there instead.

        Raises: CorruptBody at an event that cannot be read, and says how to go on behind it.
        """
        low = None if since is None else moment(since, "since")
        high = None if until is None else moment(until, "until")
        if offset is not None and (not isinstance(offset, int) or not 0 <= offset < FIRST_TOO_LARGE):
            raise ConfigError(f"stream {self.name}: offset={offset!r} is not a number from 0 on")
        if partition is not None and partition not in range(self.partitions):
            raise ConfigError(
                f"stream {self.name}: partition={partition!r} is not a number from 0 to {self.partitions - 1}"
            )
        if offset is not None and partition is None:
            partition = 0
        return self._events(low, high, offset, partition)

    def _events(
        self, low: float | None, high: float | None, offset: int | None, partition: int | None
    ) -> Iterator[Event]:
        stored = self.app.stream_of("stream", self.name)
        for number, (_, lo, hi) in enumerate(self.app.engine.window(stored, low, high)):
            if partition is not None and number != partition:
                continue
            start = lo if offset is None else max(lo, (lo & ~(FIRST_TOO_LARGE - 1)) | offset)
            yield from self._read_range(number, start, hi, low, high)

    def _read_range(
        self, number: int, lo: int, hi: int, since: float | None, until: float | None
    ) -> Iterator[Event]:
        engine: Engine = self.app.engine
        late = engine.capabilities.numbers_first
        missing: list[Span] = []

        def events(page: list[Record]) -> Iterator[Event]:
            for record in page:
                if (since is None or record.time >= since) and (until is None or record.time < until):
                    yield self._event(record, number)

        while lo < hi:
            page = engine.records(lo, hi, PAGE)
            if late and (not page or page[-1].pos - lo >= len(page)):
                missing += _missing(lo, page, MOST_MISSING - len(missing))
            yield from events(page)
            if len(page) < PAGE:
                break
            lo = page[-1].pos + 1
        if missing:
            there = [Span(row[0], row[0] + 1) for row in engine.rows(missing)]
            for span in joined(there):
                yield from events(engine.records(span.lo, span.hi, span.hi - span.lo))

    def _event(self, record: Record, number: int) -> Event:
        meta, body = record.meta, record.body
        try:
            if meta.damaged is not None:
                raise CorruptBody(f"its attributes cannot be read: {meta.damaged}")
            if meta.offloaded is not None:
                body = self.app.payloads.load(body)
            value = self.decode(body, meta.content_type)
        except CorruptBody as error:
            offset = offset_of(record.pos)
            raise CorruptBody(
                f"stream {self.name}, partition {number}, offset {offset}: {error}. To go on behind it: "
                f"read(partition={number}, offset={offset + 1})"
            ) from error
        return Event(
            id_text(public_id(record.id)),
            utc(record.time),
            number,
            offset_of(record.pos),
            meta.key,
            record.task,
            meta.headers or {},
            value,
        )

    def subscribe(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        group: str | None = None,
        start: str = "latest",
        ordered: bool = False,
        **options: Any,
    ) -> Any:
        """Register a function that is called with each event, by this app's workers.

        Parameters:
            group: the consumer group's name within the app; default: the function's name.
            start: where a new group begins: "latest", after what is there when an app with this
                subscription first opens the log, or "earliest". Ignored where the group exists.
            ordered: events of one key are handled one by one and in order, retries included; those of
                different keys side by side. Needs a stream with a key. Fixed when the group is made.
            options: a task's options, less those that say how its calls are sent: `queue`, `key`, `priority`,
                `expires`, `unique`, …

        >>> @events.subscribe(group="audit", start="earliest")  # doctest: +SKIP
        ... def audit(event): print(event)
        """
        if start not in ("earliest", "latest"):
            from_then = f"respool groups create {group or 'GROUP'} --stream {self.name} --start 7d"
            raise UnknownName("start", start, ("earliest", "latest"), f"of a moment: first {from_then}")

        def register(function: Callable[..., Any]) -> Any:
            return self.app.add_subscription(self, function, group, start, options, ordered=ordered)

        return register if fn is None else register(fn)

    def decode(self, body: bytes, content_type: str | None) -> Any:
        """Return an event from its body. Raises CorruptBody."""
        if content_type is None and self.foreign:
            return self.codec.decode(body)
        return codec_for(content_type or "json", self.app.settings["pickle_key"]).decode(body)

    def _encoded(self, value: Any, headers: Mapping[str, str] | None) -> tuple[bytes, Meta, int]:
        if self.foreign:
            raise ConfigError(
                f"stream {self.name} is foreign: another program writes it, and nobody here does"
            )
        key = None
        if self.key is not None:
            key = self._key_of(value)
        said = checked_headers(headers) if headers else None
        meta = Meta(key=key, headers=said, content_type=self._stored_type)
        return self.codec.encode(value), meta, 0 if key is None else partition_of(key, self.partitions)

    def _key_of(self, value: Any) -> str:
        if not isinstance(value, Mapping) or self.key not in value:
            raise BadArguments(
                f"stream {self.name}: the event has no {self.key!r}, which is the stream's key"
            )
        key = value[self.key]
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise BadArguments(
                f"stream {self.name}: key {self.key!r} is {key!r}, neither text nor a whole number"
            )
        return str(key)


def check_name(kind: str, name: object) -> str:
    """Return a stream's, queue's, group's or app's name; raise ConfigError for one that cannot be."""
    if isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable() and name == name.strip():
        return name
    article = "an" if kind[0] in "aeiou" else "a"
    raise ConfigError(
        f"{name!r} cannot name {article} {kind}: printable text of 1 to 200 characters, no blanks around it"
    )


def _missing(lo: int, page: list[Record], most: int) -> list[Span]:
    """Return the ranges from a position on where there is no record before one that is there."""
    found = []
    for record in page:
        if record.pos > lo:
            found.append(Span(lo, record.pos))
        lo = record.pos + 1
    return found[:most]
