"""What queues and streams hold, for `respool queues` and `respool streams`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..delivery.model import MIDDLE
from ..errors import OF_ONE_STREAM
from ..pressure import terms_of
from ..retention import shown_retention
from .output import UNREAD, Column, Table, iso, number, say_unread, when, zone

if TYPE_CHECKING:
    from ..engines.base import Group, Stream
    from ..engines.inspect import Brief
    from .target import Target


def show_holdings(target: Target, kind: str, as_json: bool, empty: str) -> None:
    """Print a row for each queue or stream."""
    lanes = any(stream.lanes for stream in target.streams.values() if stream.kind == kind)
    bounds = {
        group.stream: terms.most
        for group in target.groups
        if kind == "queue" and group.kind == "main" and group.stream in target.streams
        if (terms := terms_of(group)) is not None
    }
    table = Table(
        Column(kind, least=10),
        Column("records", right=True),
        Column("parts", right=True, drop=2),
        *((Column("priorities", drop=1),) if lanes else ()),
        *((Column("key", least=6, drop=1),) if kind == "stream" else ()),
        *((Column("max_pending", right=True, drop=1),) if bounds else ()),
        Column(f"oldest ({zone()})", drop=3),
        Column("newest", drop=4),
        Column("kept", drop=5),
        Column("groups", least=12),
    )
    for stream in sorted(target.streams.values(), key=lambda s: (s.app, s.name)):
        if stream.kind == kind:
            data = _data(target, stream)
            key = (str(data["key"] or "–"),) if kind == "stream" else ()
            times = (when(data["oldest"]), when(data["newest"]))
            cells = (
                number(data["records"]) if data["error"] is None else UNREAD,
                str(data["partitions"]),
                *((", ".join(map(str, data["priorities"])),) if lanes else ()),
                *key,
                *((number(bounds[stream.id]) if stream.id in bounds else "–",) if bounds else ()),
                *times,
                shown_retention(stream.settings.get("retention")),
                ", ".join(_reader(target, stream, group) for group in _readers(target, stream)),
            )
            data |= {"max_pending": bounds.get(stream.id)} if kind == "queue" else {}
            row = {**data, "oldest": iso(data["oldest"]), "newest": iso(data["newest"])}
            table.add((target.shown(stream), *cells), row)
    table.show(as_json, empty)
    say_unread([(f"{kind} {data['name']}", data["error"]) for data in table.data], as_json)


def _data(target: Target, stream: Stream) -> dict[str, Any]:
    readers = _readers(target, stream)
    error, records, ends = None, None, []
    try:
        held = [(lo, hi) for _, lo, hi in target.engine.bounds(stream) if hi > lo]
        ends = [record.time for lo, hi in held for at in (lo, hi - 1) for record in _at(target, at)]
        records = sum(hi - lo for lo, hi in held)
    except OF_ONE_STREAM as unread:
        error = str(unread)
    return {
        "name": stream.name,
        "app": stream.app,
        "records": records,
        "partitions": stream.partitions,
        "priorities": sorted({MIDDLE, *stream.lanes}, reverse=True),
        **({} if stream.kind == "queue" else {"key": stream.settings.get("key")}),
        "settings": stream.settings,
        "oldest": min(ends, default=None),
        "newest": max(ends, default=None),
        "created": iso(stream.created),
        "groups": [group.name for group in readers],
        **({} if stream.kind == "queue" else {"readers": [_named(group) for group in readers]}),
        "error": error,
    }


def _readers(target: Target, stream: Stream) -> list[Group]:
    """Return all that read it: a stream is shared, and apps besides the one that was named may do so."""
    return [group for group in target.engine.groups() if group.stream == stream.id]


def _named(group: Group) -> dict[str, str]:
    return {"app": group.app, "group": group.name}


def _reader(target: Target, stream: Stream, group: Group) -> str:
    """Name a group; with its app where that is not the one that was named, or the queue's own."""
    return group.name if group.app in (target.only, stream.app) else f"{group.app}/{group.name}"


def _at(target: Target, pos: int) -> list[Brief]:
    found: list[Brief] = target.engine.briefs(pos, pos + 1, None, None, None, 0)
    return found
