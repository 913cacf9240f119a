"""All about one record, for `respool show` and `respool dead show`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from ..reading import Input, Load, one_line, read_input, read_result, summary
from .output import age, iso, moment, note, when

if TYPE_CHECKING:
    from ..engines.base import Group, Record, Status, Stream
    from ..states import Found
    from .target import Target

_TOLD = {"dead": "dead letter", "unknown": "no worker knows the task"}


FETCHED = 16 << 20  # bytes of a payload in the blob store that are fetched to be shown, …
PRINTED = 1 << 20  # … and to be printed as JSON, unless all are asked for


def record_data(
    target: Target, pos: int, only: Collection[str] | None = None, most: float = FETCHED
) -> dict[str, Any]:
    """Return all that is known of a record, in the groups named, or in all.

    Parameters:
        most: bytes of a payload in the blob store that are fetched.
    """
    from ..engines import public_id
    from ..record import id_text, offset_of

    stream, (record,) = target.stream_at(pos), target.engine.records(pos, pos + 1, 1)
    meta = record.meta
    size, load = meta.offloaded or len(record.body), target.loader(most)
    given = read_input(stream.kind, record.body, size, meta, target.pickle_key, load)
    groups = [g for g in target.groups if g.stream == stream.id and (only is None or g.name in only)]
    return {
        "id": id_text(public_id(record.id)),
        stream.kind: stream.name,
        "app": stream.app,
        "partition": stream.place(pos >> 40)[0],
        "priority": stream.place(pos >> 40)[1],
        "offset": offset_of(pos),
        "time": iso(record.time),
        "task": record.task,
        "input": given.data(),
        "size": size,
        **_attributes(meta),
        "groups": [_in_group(target, stream, group, record, load) for group in groups],
    }


def _lane(data: dict[str, Any]) -> str:
    from ..delivery.model import MIDDLE

    return "" if data["priority"] == MIDDLE else f" of priority {data['priority']}"


def _attributes(meta: Any) -> dict[str, Any]:
    from ..record import id_text

    def text(id: Any) -> str | None:
        return None if id is None else id_text(id)

    return {
        "key": meta.key,
        "headers": meta.headers or {},
        "due": iso(meta.due),
        "expires": iso(meta.expires),
        "content_type": meta.content_type,
        "parent": text(meta.parent),
        "root": text(meta.root),
        "parent_group": meta.parent_group,
    }


def _in_group(target: Target, stream: Stream, group: Group, record: Record, load: Load) -> dict[str, Any]:
    status = target.engine.status(group, record.pos)
    found = target.state(status, record.pos, group)
    outcome, parked = status.outcome, status.parked
    error = parked.error if parked else None
    result, unreadable = None, None
    if outcome is not None and outcome.ending == "success":
        result, unreadable = read_result(outcome.value, load)
    elif outcome is not None and outcome.value is not None:
        error = outcome.value
    changed = None
    if parked is not None and parked.body is not None:
        changed = read_input(
            stream.kind, parked.body, len(parked.body), record.meta, target.pickle_key, load
        ).data()
    return {
        "group": group.name,
        "app": group.app,
        "state": found.state,
        "reason": found.reason,
        "due": iso(parked.due) if parked else None,
        "now": _now(target, stream, group, record.pos, status, found),
        "result": result,
        "result_error": unreadable,
        "error": _error(error),
        "progress": read_result(status.progress)[0],
        "input_now": changed,
        "attempts": [_attempt(entry) for entry in target.engine.journal(group.id, record.pos)],
    }


def _now(target: Target, stream: Stream, group: Group, pos: int, status: Status, found: Found) -> str | None:
    """Say what an unfinished call waits for, or who runs it; None where its state says all."""
    from ..why import explain_waiting

    if found.state not in ("PENDING", "SCHEDULED", "RETRY", "STARTED", "PROGRESS"):
        return None
    parked = status.parked
    later = parked is not None and parked.due is not None and not _is_over(parked.due)
    if later and target.serving(group):
        return None
    return explain_waiting(target.engine, stream, group, pos, target.app)


def _error(body: bytes | None) -> dict[str, str] | None:
    if body is None:
        return None
    from ..dead.find import read_error
    from ..encoding.remote import decode_error
    from ..errors import RespoolError

    kind, message = summary(body)
    try:
        trace = getattr(decode_error(body), "remote_traceback", "") or ""
    except RespoolError:
        trace = ""
    worker = read_error(body).worker
    return {"type": kind, "message": message, "line": one_line(body), "traceback": trace, "worker": worker}


def _attempt(entry: Any) -> dict[str, Any]:
    return {
        "started": iso(entry.started),
        "ended": iso(entry.ended),
        "seconds": round(max(entry.ended - entry.started, 0.0), 6),
        "worker": entry.owner,
        "child": entry.child,
        "how": entry.how,
        "retries": entry.retries,
        "records": entry.hi - entry.lo,
        "note": entry.note,
    }


def print_record(data: dict[str, Any]) -> None:
    """Print it for people."""
    kind = "queue" if "queue" in data else "stream"
    where = f"{kind} {data[kind]}" + (f" of app {data['app']}" if data["app"] else "")
    click.secho(f"{data['id']}", bold=True)
    click.echo(
        f"  {where}, partition {data['partition']}{_lane(data)}, offset {data['offset']:,}; "
        f"sent {_moment(data['time'])}"
    )
    for name in ("key", "due", "expires", "parent", "root", "content_type"):
        if data[name] is not None:
            shown = _moment(data[name]) if name in ("due", "expires") else data[name]
            click.echo(f"  {name.replace('_', ' ')} {shown}")
    for name, value in data["headers"].items():
        click.echo(f"  header {name}: {value}")
    click.echo(f"  {_input(data['input'], data['task'])}")
    for group in data["groups"]:
        _print_group(group, data["task"])
    if not data["groups"]:
        note("  no group reads it")


def _input(given: dict[str, Any], task: str) -> str:
    read = Input(given.get("args"), given.get("kwargs"), given.get("value"), given.get("error"))
    if read.args is None and read.error is None:
        return f"{task or 'event'}: {read.text(task, 2000)}"
    return read.text(task, 2000) if read.error is None else f"{task}: {read.error}"


def _print_group(group: dict[str, Any], task: str) -> None:
    color = {"SUCCESS": "green", "FAILURE": "red", "REVOKED": "yellow", "RETRY": "yellow"}.get(group["state"])
    said = group["reason"] in ("done", group["state"].lower())  # by the state itself
    reason = f" ({_TOLD.get(group['reason'], group['reason'])})" if group["reason"] and not said else ""
    over = group["due"] is not None and _is_over(_seconds(group["due"]))
    due = f", due {'since ' if over else ''}{_moment(group['due'])}" if group["due"] else ""
    click.echo(f"\n  in group {group['group']}: ", nl=False)
    click.secho(f"{group['state']}", fg=color, nl=False)
    click.echo(f"{reason}{due}")
    if group["now"]:
        click.echo(f"    now: {group['now']}")
    if group["input_now"]:
        click.echo(f"    input as changed: {_input(group['input_now'], task)}")
    if group["state"] == "SUCCESS":
        click.echo(f"    returned {group['result_error'] or repr(group['result'])}")
    if group["progress"] is not None:
        click.echo(f"    progress {group['progress']!r}")
    for attempt in group["attempts"]:
        click.echo(f"    {_attempt_line(attempt)}")
    if group["error"]:
        text = group["error"]["traceback"].rstrip() or group["error"]["line"]
        if group["error"]["worker"]:
            click.echo(f"    raised in worker {group['error']['worker']}")
        click.echo("\n".join(f"    {line}" for line in text.splitlines()))


def _attempt_line(attempt: dict[str, Any]) -> str:
    """Write when, who and how long, then how it ended. What people and delays do takes no time."""
    who = [] if attempt["worker"] is None else [f"worker {attempt['worker']}", f"child {attempt['child']}"]
    if attempt["started"] != attempt["ended"]:
        together = f" for {attempt['records']:,} records together" if attempt["records"] > 1 else ""
        who.append(f"{_took(attempt['seconds'])}{together}")
    told = attempt["note"] if attempt["note"] and attempt["note"] != attempt["how"] else attempt["how"]
    did = f"{', '.join(who)}: " if who else ""
    return f"{when(_seconds(attempt['ended']))}  {did}{' '.join(told.split())}"


def _took(seconds: float) -> str:
    if seconds >= 1:
        return age(seconds)
    return "<1 ms" if seconds < 0.001 else f"{seconds * 1000:.0f} ms"


def _is_over(due: float) -> bool:
    from ..clock import now

    return due <= now()


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def _moment(text: str) -> str:
    return moment(_seconds(text))
