"""A store with something of everything, and all that is on a store told without numbers of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from respool.delivery.admin import purge
from respool.delivery.claim import Request, claim
from respool.delivery.model import Change, Lease, NewCall, Parked, Settlement, Verdict, View
from respool.delivery.settle import give_back, settle
from respool.engines.base import Engine, Group, Reads, Registration, Stream
from respool.engines.moving import INCOMING, STATE_TABLES
from respool.record import Meta, first_pos, log_of, new_head
from respool.reference import Reference

NOW = 1_700_000_000.0
ALL = 1_000_000
_numbers = itertools.count(1)


def group_of(engine: Engine, stream: Stream, name: str = "main") -> Group:
    return next(g for g in engine.groups() if g.stream == stream.id and g.name == name)


def stream_of(engine: Engine, name: str, app: str = "shop") -> Stream:
    return next(s for s in engine.streams() if s.name == name and s.app in (app, ""))


def take(engine: Engine, group: Group, want: int, owner: int, now: float = NOW) -> Lease:
    request = Request(want, owner, 0, owner << 40 | next(_numbers), now)
    lease = engine.transact(
        Reads(group.id, positions=True, due=want, returned=100, now=now),
        lambda view, change: claim(view, change, request),
    )
    assert lease is not None
    return lease


def end(engine: Engine, group: Group, lease: Lease, *verdicts: Verdict, **more: Any) -> None:
    done = more.pop("done", [(span.lo, span.hi) for span in lease.spans])
    said = Settlement(lease.id, lease.owner or 0, done, list(verdicts), started=NOW, ended=NOW + 1, **more)
    assert engine.transact(Reads(group.id, (lease.id,)), lambda v, c: settle(v, c, said))


def change(engine: Engine, group: Group, fill: Callable[[View, Change], Any], **reads: Any) -> Any:
    return engine.transact(Reads(group.id, **reads), fill)


def furnish(engine: Engine, seed: int = 0) -> None:
    """Fill an empty store: every kind of record, group and state that there is."""
    worker = engine.register(Registration("shop", "w", "here", "boot", 1, NOW, {"groups": []}))
    jobs = engine.create_stream("queue", "shop", "default", 1, {"retention": 60, "seed": seed})
    other = engine.create_stream("queue", "blog", "default", 1, {"retention": None})
    events = engine.create_stream("stream", "", "visits", 4, {"retention": None, "key": "user"})
    log, main = jobs.logs[0], group_of(engine, jobs)

    _old_and_trimmed(engine, jobs, main, worker)
    lane = engine.add_lane(jobs, 9).lanes[9][0]
    engine.append_run(lane, "urgent", [b"u"] * 9, Meta(priority=9).packed(), new_head(NOW), NOW)
    jobs = stream_of(engine, "default", "shop")
    engine.append_run(log, "add", [b"%d" % n for n in range(40)], None, new_head(NOW), NOW)
    engine.append_rows(
        [NewCall(log, "mail", b"x", Meta(key="k", due=NOW + 9).packed(), "shop\0order-1", NOW)]
    )
    engine.append_row(NewCall(log, "mail", b"y" * 3000, None, new_head(NOW + 1), NOW + 1))
    engine.append_row(NewCall(other.logs[0], "post", b"z", None, "blog\0order-1", NOW - 50))
    engine.append_run(log, "add", [b""] * 20, Meta(headers={"a": "b"}).packed(), new_head(NOW - 7), NOW - 7)
    for n, each in enumerate(events.logs):
        rows = [
            NewCall(each, "", b"%d" % k, Meta(key=str(k)).packed(), new_head(NOW + k), NOW + k)
            for k in range(n)
        ]
        engine.append_rows(rows)
    large = Reference(b"\x07" * 32, 99_000, engine.touch_blob(b"\x07" * 32, 99_000, NOW)).packed()
    engine.append_row(NewCall(log, "add", large, Meta(key="large").packed(), new_head(NOW + 2), NOW + 2))
    engine.create_group(
        events, "shop", "audit", "subscription", {}, [(each, first_pos(each), None) for each in events.logs]
    )
    first, last = engine.bounds(jobs)[0][1:]
    bounds: list[tuple[int, int, int | None]] = [(log, first + 2, last - 4)]
    engine.create_group(jobs, "shop", "v2", "replay", {"tasks": ["add"], "outbox": "drop"}, bounds)

    _run_some(engine, main, worker)
    v2 = group_of(engine, jobs, "v2")
    lease = take(engine, v2, 5, worker)
    end(engine, v2, lease, results=[(lease.spans[0].lo, b"again"), (lease.spans[0].lo + 1, large)])
    audit = group_of(engine, events, "audit")
    end(engine, audit, take(engine, audit, 2, worker))
    blog = group_of(engine, other)
    change(engine, blog, lambda view, change: purge(view, change, [], b"purged", NOW), positions=True)
    engine.drop_worker(worker)


def _old_and_trimmed(engine: Engine, jobs: Stream, main: Group, worker: int) -> None:
    """Leave a floor, with what is parked below it, dead and waiting (H15)."""
    old = NOW - 5000
    engine.append_run(jobs.logs[0], "old", [b"o%d" % n for n in range(30)], None, new_head(old), old)
    lease = take(engine, main, 30, worker)
    lo = lease.spans[0].lo
    dead = [Verdict(lo + n, "failure", b"err", "dead", task="old", error=b"err") for n in (3, 4, 11)]
    waits = Verdict(
        lo + 20, reason="retry", due=NOW + 99, task="old", error=b"e", retried=True, body=b"edited"
    )
    end(engine, main, lease, *dead, waits)
    while engine.trim(jobs, NOW - 100, 5000):
        pass


def _run_some(engine: Engine, main: Group, worker: int) -> None:
    """Leave what is done, with and without result; dead, retried, scheduled, unknown, revoked; given back."""
    lease = take(engine, main, 20, worker)
    lo = lease.spans[0].lo
    verdicts = [
        Verdict(lo, "success", b"v", ttl=5.0, progressed=True, note="n", started=NOW, ended=NOW),
        Verdict(lo + 1, "failure", b"e", "dead", task="add", error=b"e" * 500, note="failed: x"),
        Verdict(lo + 2, reason="retry", due=NOW + 50, task="add", error=b"e", retried=True),
        Verdict(lo + 3, reason="unknown", task="gone", note="unknown"),
        Verdict(lo + 4, "revoked", b"expired"),
        Verdict(lo + 5, skipped=True),
        Verdict(lo + 6, "success", b"kept", ttl=1e6),
        Verdict(lo + 7, reason="scheduled", due=NOW + 70, task="add", body=b"other body"),
    ]
    end(engine, main, lease, *verdicts, results=[(lo + n, b"r%d" % n) for n in range(8, 15)])
    engine.expire_outcomes(NOW + 100, 100)
    lease = take(engine, main, 10, worker)
    lo = lease.spans[0].lo
    engine.set_progress(main.id, lo + 4, b"half", (lease.id, worker))

    def give(view: View, change: Change) -> None:
        give_back(view, change, lease.id, worker, [(lo + 4, lo + 7)], worker << 40 | next(_numbers))

    change(engine, main, give, leases=(lease.id,))
    rest = next(each for each in engine.leases(main) if each.owner == worker)
    end(engine, main, rest)
    back = next(each for each in engine.leases(main) if each.owner is None)
    back.bodies = {lo + 5: b"edited too"}
    back.spans = [back.spans[0]._replace(retries=1, deliveries=2, alone=True)]
    change(engine, main, lambda view, change: change.leases.append(back))
    change(engine, main, lambda view, change: change.count("skipped", 7))
    change(
        engine,
        main,
        lambda view, change: change.parked.append(Parked(lo + 9, "dead", None, "add", 1, 2, 3, at=NOW)),
    )


def told(engine: Engine) -> dict[str, Any]:
    """Return all that is on a store, by names and ids: nothing that another engine may number otherwise."""
    return {
        f"{stream.kind} {stream.app.removeprefix(INCOMING)}/{stream.name}": _stream(engine, stream)
        for stream in engine.streams()
    }


def _stream(engine: Engine, stream: Stream) -> dict[str, Any]:
    records = {
        r.pos: (stream.logs.index(log_of(r.pos)), r.id, r.time, r.task, r.body, r.meta)
        for log in stream.logs
        for r in engine.records(first_pos(log), first_pos(log + 1), ALL)
    }
    places = sorted(records)

    def edge(pos: int) -> Any:
        """Name a position: the record there, or the next one of its log."""
        log = stream.logs.index(log_of(pos)) if log_of(pos) in stream.logs else -1
        following = next((p for p in places if p >= pos and log_of(p) == log_of(pos)), None)
        return log, None if following is None else records[following][1]

    for pos, known in records.items():
        space = stream.app.removeprefix(INCOMING) or f"stream:{stream.name}"
        id = known[1].partition("\0")[2] if isinstance(known[1], str) else known[1]
        assert engine.find(space, id) == pos, "each record is found by its id"
    return {
        "settings": stream.settings,
        "created": stream.created,
        "records": list(records.values()),
        "large": [
            (reference.digest, reference.stamp, edge(reference.pos), reference.group == 0)
            for reference in engine.referred(b"\x07" * 32)
            if reference.pos in records
        ],
        "floors": [edge(place.floor) for place in engine.log_places(stream)],
        "groups": {
            f"{g.app}/{g.name}": _group(engine, stream, g, edge, records)
            for g in engine.groups()
            if g.stream == stream.id
        },
    }


def _group(
    engine: Engine, stream: Stream, group: Group, edge: Any, records: dict[int, Any]
) -> dict[str, Any]:
    leases = engine.leases_to_move(group)
    bounds = engine.group_bounds(group)
    counts = engine.counts(group)
    return {
        "is": (group.kind, group.settings, group.generation, group.created),
        "bounds": [(edge(b.start), edge(b.cursor), None if b.stop is None else edge(b.stop)) for b in bounds],
        "returned": sorted((edge(s.lo), edge(s.hi), s[2:]) for lease in leases for s in lease.spans),
        "bodies": sorted((edge(pos), body) for lease in leases for pos, body in lease.bodies.items()),
        "state": {name: _rows(engine, group, name, edge) for name in STATE_TABLES},
        "status": [_status(engine, group, pos, edge) for pos in records],
        "counts": (counts.leased, counts.parked, counts.next_due),
        "counters": engine.counters(group.id),
    }


def _rows(engine: Engine, group: Group, name: str, edge: Any) -> list[dict[str, Any]]:
    table = STATE_TABLES[name]
    found = []
    for row in engine.state_rows(table, group.id, None, ALL, 1 << 40):
        told = dict(zip(table.columns, row, strict=True))
        for column in (*table.positions, *table.ends):
            told[column] = edge(told[column])
        found.append(told)
    return found


def _status(engine: Engine, group: Group, pos: int, edge: Any) -> Any:
    found = engine.status(group, pos)
    parked = found.parked and found.parked._replace(pos=0)
    outcome = found.outcome and found.outcome._replace(pos=0)
    journal = [entry._replace(lo=0, hi=0) for entry in engine.journal(group.id, pos)]
    return found.place, parked, outcome, found.progress, found.how, journal


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where two things that `told` told differ, for an assertion's message."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in differing(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            t for n, pair in enumerate(zip(one, other, strict=True)) for t in differing(*pair, f"{path}[{n}]")
        ]
    return [] if one == other else [f"{path}: {one!r} is not {other!r}"]
