"""`respool workers`: who works, and on what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import json_option, suggested

if TYPE_CHECKING:
    from ..engines.base import Worker
    from .target import Target

BEAT = 1.0  # where no app says otherwise
MISSED = 3  # beats after which a worker is called silent: one alone may only be late


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the workers, and what each of them runs since when.

    As of their last beat, a second ago at most where they live. A worker is silent where its beats have
    stopped, and gone where its process is known not to exist: what it ran then is in brackets, and another
    one takes it over.

    \b
    no      its number in this log, by which the history of a call names it
    worker  its name: host and pid, unless --name was given
    state   alive, stopping (Ctrl-C or SIGTERM: it ends its runs and takes no
            more), silent, gone
    pid     of its first process, the one to send a signal to
    since   when it was started
    done    calls and events that its processes have run, failed ones included
    serves  queues and streams, with the group in brackets where it is not main
    runs    the tasks that are being run, and for how long

    \b
    respool -A shop workers
    """
    from .output import Column, Table, age, iso, number, zone
    from .target import open_target

    target = open_target()
    table = Table(
        Column("no", right=True),
        Column("worker", least=10),
        Column("state", least=8, drop=1),
        Column("pid", right=True, drop=2),
        Column(f"since ({zone()})", drop=4),
        Column("done", right=True, drop=3),
        Column("serves", least=10),
        Column("runs", least=16),
    )
    for worker in target.workers:
        if target.only in (None, worker.app):
            data = _data(target, worker)
            runs = "; ".join(f"{_named(run)} {age(run['seconds'])}" for run in data["running"]) or "–"
            if data["running"] and data["silent"] is not None:
                runs = "(" + "; ".join(map(_named, data["running"])) + ")"
            table.add(
                (
                    str(worker.id),
                    worker.name,
                    data["state"],
                    str(worker.pid),
                    _when(worker.started),
                    number(sum(child.get("done", 0) for child in data["children"])),
                    ", ".join(data["serves"]),
                    runs,
                ),
                {**data, "started": iso(worker.started), "beaten": iso(worker.beaten)},
            )
    start = "" if target.moved is not None else f" Start one: {suggested('worker')}"
    table.show(as_json, f"No workers.{start}")


def _when(seconds: float) -> str:
    from .output import when

    return when(seconds)


def _data(target: Target, worker: Worker) -> dict[str, Any]:
    from ..clock import now as wall_clock
    from .output import iso

    groups = {group.id: group for group in target.groups}
    state, silent = _state(target, worker)
    served = [groups[id] for id in worker.info.get("groups", ()) if id in groups]
    return {
        "worker": worker.name,
        "id": worker.id,
        "app": worker.app,
        "host": worker.host,
        "pid": worker.pid,
        "state": state,
        "silent": silent,
        "pool": worker.info.get("pool"),
        "version": worker.info.get("version"),
        "serves": [
            target.streams[group.stream].name + ("" if group.kind == "main" else f" ({group.name})")
            for group in served
        ],
        "children": worker.info.get("children", []),
        "running": [
            {
                **_call(target, pos),
                "calls": end - pos,
                "since": iso(since),
                "seconds": max(wall_clock() - since, 0.0),
            }
            for pos, since, end in worker.running
        ],
    }


def _named(run: dict[str, Any]) -> str:
    return str(run["task"]) if run["calls"] == 1 else f"{run['task']} × {run['calls']}"


def _state(target: Target, worker: Worker) -> tuple[str, float | None]:
    """Return a worker's state, and for how many seconds it has been silent where it is."""
    from ..clock import now as wall_clock
    from ..worker.host import is_gone
    from .output import age

    silent = max(wall_clock() - worker.beaten, 0.0)
    if is_gone(worker):
        return f"gone, silent {age(silent)}", silent
    if silent > MISSED * (target.app.settings["beat"] if target.app else BEAT):
        return f"silent {age(silent)}", silent
    return "stopping" if worker.draining else "alive", None


def _call(target: Target, pos: int) -> dict[str, str | None]:
    from ..engines import public_id
    from ..record import id_text

    found = target.brief(pos)
    return {"id": id_text(public_id(found.id)) if found else None, "task": found.task if found else ""}
