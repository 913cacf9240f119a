"""Which records a group runs: the filters among its settings, decided by the worker as it reads them.

    tasks           names of tasks
    since, until    times: what lies within the bounds can be outside of them (H19)
    key, headers    what a record has
    where           an expression over the record; with `places`, by task, at which place of `args` an
                    argument stands that it asks for by name, so that it is found however it was sent
    share           so much of all, by a hash of the id: the same records in each group, more where it is more
    state           how the call stands in another group, `of`
    positions       these records and no others

A group without any of them has no `Choice`, and its worker does nothing for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from zlib import crc32

from .delivery.spans import Span
from .encoding.codec import codec_for
from .engines import public_id
from .engines.base import Engine, Group, Record, Stream
from .errors import RespoolError
from .expression import Expression
from .places import Places
from .record import NO_META, Meta, Row, id_text, unpack_meta
from .reference import is_reference
from .states import state_name

Load = Callable[[bytes], Any]
FILTERS: Final = (
    "tasks", "since", "until", "key", "headers", "where", "share", "state", "of", "positions",
)  # fmt: skip
"""Settings of a group that say which records it runs."""


class Choice:
    """The filters of one group, compiled."""

    def __init__(
        self,
        stream: Stream,
        settings: Mapping[str, Any],
        of: Group | None,
        pickle_key: bytes | None,
        load: Load | None,
    ) -> None:
        self._load = load
        self._is_call = stream.kind == "queue"
        self._pickle_key = pickle_key
        tasks = settings.get("tasks")
        self.tasks = None if tasks is None else frozenset(tasks)
        self._since, self._until = settings.get("since"), settings.get("until")
        self._key: str | None = settings.get("key")
        self._headers: dict[str, str] = settings.get("headers") or {}
        where = settings.get("where")
        self._where = None if where is None else Expression(where)
        self._places: Mapping[str, Mapping[str, int]] = settings.get("places") or {}
        share = settings.get("share")
        self._below = None if share is None else int(share * (1 << 32))
        self._state, self._of = settings.get("state"), of
        positions = settings.get("positions")
        self._positions = None if positions is None else frozenset(positions)
        named = frozenset() if self._where is None else self._where.names
        self._reads_records = self._below is not None or bool(named & {"id", "time"})

    def left_out(self, engine: Engine, spans: Sequence[Span], rows: Sequence[Row]) -> frozenset[int]:
        """Return the positions of those records that the group does not run."""
        out: set[int] = set()
        if self.tasks is not None:
            tasks = self.tasks
            out.update(row[0] for row in rows if row[1] not in tasks)
        if self._since is not None or self._until is not None:
            out.update(engine.outside(spans, self._since, self._until))
        if self._positions is not None:
            out.update(row[0] for row in rows if row[0] not in self._positions)
        if self._state is not None and self._of is not None and len(out) < len(rows):
            out.update(self._in_other_states(engine, rows))
        if self._key is not None or self._headers or self._where is not None or self._reads_records:
            left = [row for row in rows if row[0] not in out]
            records = self._records(engine, left) if self._reads_records else {}
            out.update(row[0] for row in left if not self._matches(row, records.get(row[0])))
        return frozenset(out)

    def _in_other_states(self, engine: Engine, rows: Sequence[Row]) -> list[int]:
        assert self._of is not None
        found: list[int] = []
        for page in _pages(rows):
            places = Places(engine.group_page(self._of, page[0][0], page[-1][0] + 1))
            found += [row[0] for row in page if state_name(places.status(row[0])) != self._state]
        return found

    def _records(self, engine: Engine, rows: Sequence[Row]) -> dict[int, Record]:
        found: dict[int, Record] = {}
        for page in _pages(rows):
            lo, hi = page[0][0], page[-1][0] + 1
            found.update((record.pos, record) for record in engine.records(lo, hi, hi - lo))
        return found

    def _matches(self, row: Row, record: Record | None) -> bool:
        _, task, body, packed = row
        if self._below is not None and (record is None or share_of(record.id) >= self._below):
            return False
        meta = NO_META
        if packed is not None:
            try:
                meta = unpack_meta(packed)
            except ValueError:
                return True  # it cannot be read: what runs it says so
        if self._key is not None and meta.key != self._key:
            return False
        if self._headers:
            has = meta.headers or {}
            if any(has.get(name) != value for name, value in self._headers.items()):
                return False
        if self._where is None:
            return True
        if is_reference(body) and self._where.names & {"value", "args", "kwargs"}:
            if self._load is None:
                return True  # as for what cannot be read
            try:
                body = self._load(body)
            except RespoolError:
                return True
        return self._where(self._scope(task, body, meta, record))

    def _scope(self, task: str, body: bytes, meta: Meta, record: Record | None) -> dict[str, Any]:
        assert self._where is not None
        scope: dict[str, Any] = {"task": task, "headers": meta.headers or {}}
        if meta.key is not None:
            scope["key"] = meta.key
        if record is not None:
            scope["id"], scope["time"] = id_text(public_id(record.id)), record.time
        if self._where.names & {"value", "args", "kwargs"}:
            scope.update(_contents(body, meta, self._is_call, self._pickle_key))
            if (places := self._places.get(task)) and "args" in scope:
                args = scope["args"]
                by_place = {name: args[at] for name, at in places.items() if at < len(args)}
                scope["kwargs"] = by_place | scope["kwargs"]
        return scope


def _pages(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the rows in pages: each of one log, and no range much longer than what is on it."""
    start = 0
    while start < len(rows):
        first, end = rows[start][0], start
        while end < len(rows) and 0 <= rows[end][0] - first < 2 * (end - start) + 100:
            end += 1
        yield rows[start:end]
        start = end


def share_of(id: bytes | str) -> int:
    """Return where an id stands among all, from 0 to 2**32: the same for ever."""
    return crc32(id if isinstance(id, bytes) else id.encode()) * 0x9E3779B1 % (1 << 32)


def _contents(body: bytes, meta: Meta, is_call: bool, pickle_key: bytes | None) -> dict[str, Any]:
    """Return what an expression can name of a body; nothing where it cannot be read."""
    try:
        codec = codec_for(meta.content_type or ("msgpack" if is_call else "json"), pickle_key)
        value: Any = codec.decode(body)
    except RespoolError:
        return {}
    if not is_call:
        return {"value": value}
    if isinstance(value, list) and len(value) == 2:
        return {"args": value[0], "kwargs": value[1]}
    return {}


def choice_of(
    stream: Stream,
    group: Group,
    groups: Sequence[Group],
    pickle_key: bytes | None = None,
    load: Load | None = None,
) -> Choice | None:
    """Return a group's filters; None where it runs all that lies within its bounds.

    Parameters:
        load: fetches large payloads, for expressions that look into them.
    """
    kept = group.settings
    if all(kept.get(name) is None for name in FILTERS):
        return None
    of = next((g for g in groups if g.stream == stream.id and g.name == kept.get("of", "main")), None)
    return Choice(stream, kept, of, pickle_key, load)
