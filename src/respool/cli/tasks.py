"""`respool tasks`: what the code registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..clock import now as wall_clock
from .common import common, json_option

if TYPE_CHECKING:
    from ..app import App
    from ..replay.storms import Stopped
    from ..task import Task


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the tasks and subscriptions of the app's code, with the options that are not the defaults.

    Also which of them a breaker has stopped, since when and for what.

    \b
    respool -A shop tasks
    respool -A shop tasks release fetch
    """
    if context.invoked_subcommand is None:
        _list(as_json)


@command.command()
@click.argument("name")
def release(name: str) -> None:
    """Let the calls of a task run again that a breaker has stopped."""
    from ..replay.storms import release as let_run
    from .target import open_target

    app = open_target(code=True, writes=True).app
    assert app is not None
    groups = let_run(app, name)
    click.echo(f"{name} runs again" + (f", in {groups} groups" if groups > 1 else ""))


def _list(as_json: bool) -> None:
    from .loading import load_app
    from .output import Column, Table

    app = load_app(common().app, common().url)
    stopped = _stopped(app)
    columns = [Column("task", least=12), Column("calls from", least=10), Column("options", least=16)]
    table = Table(*columns, *([Column("stopped", least=16)] if stopped else []))
    for name, task in sorted(app.tasks.items()):
        if name == task.name:
            reads = {"queue": task.options["queue"]}
            _add(table, app, task, f"queue {task.options['queue']}", reads, stopped)
    for group, each in sorted(app.subscriptions.items()):
        reads = {"stream": each.stream.name, "group": group}
        _add(table, app, each.task, f"stream {each.stream.name}, group {group}", reads, stopped)
    table.show(as_json, _none(app.name))


def _none(app: str) -> str:
    return (
        f"App {app} registers no tasks. A task is a function under @app.task; what -A names has to import "
        "the modules that have them"
    )


def _stopped(app: App) -> dict[str, Stopped]:
    """Return the tasks that are stopped, where there is a log to look into."""
    from ..location import NothingThere
    from ..replay.storms import stopped_tasks

    if app.location.in_memory:
        return {}
    app.looks = True
    try:
        return {each.task: each for each in stopped_tasks(app)}
    except NothingThere:
        return {}
    finally:
        app.close()
        app.looks = False


def _add(
    table: Any,
    app: App,
    task: Task[Any, Any],
    reads: str,
    data: dict[str, Any],
    stopped: dict[str, Stopped],
) -> None:
    unusual = _unusual(app, task)
    options = {name: _plain(value) for name, value in unusual.items()}
    text = " ".join(f"{name}={_shown(name, value)}" for name, value in unusual.items())
    from .output import iso

    data |= {"task": task.name, "options": options, "module": task.fn.__module__, "stopped": None}
    why = []
    if stopped:
        why = ["–"]
    if (found := stopped.get(task.name)) is not None:
        gauge = found.gauge
        data["stopped"] = {"why": gauge.why, "since": iso(gauge.since), "until": iso(gauge.until)}
        left = max(gauge.until - wall_clock(), 0.0)
        why = [
            f"{'a call is tried' if gauge.state == 'half-open' else f'for {left:.0f} s more'}: {gauge.why}"
        ]
    table.add((task.name, reads, text or "–", *why), data)


def _unusual(app: App, task: Task[Any, Any]) -> dict[str, Any]:
    from ..options import OPTIONS

    usual = {name: option.default for name, option in OPTIONS.items()}
    usual["max_deliveries"] = app.settings["max_deliveries"]
    told = {"name", "queue"}  # in columns of their own
    return {
        name: task.options[name] for name in OPTIONS if name not in told and task.options[name] != usual[name]
    }


def _shown(name: str, value: Any) -> Any:
    """Write a value as it may be declared."""
    from ..retention import shown_age
    from ..why import rate_shown

    if isinstance(value, float):
        return rate_shown(value) if name == "rate_limit" else shown_age(value)
    return _plain(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON may have it: a policy in words, a class or function by its name."""
    from ..delivery.storms import BudgetPolicy
    from ..options import Breaker

    if isinstance(value, Breaker):
        return str(value)
    if isinstance(value, BudgetPolicy):
        return f"{100 * value.share:g}%"
    if isinstance(value, tuple):
        return ",".join(str(_plain(each)) for each in value)
    if callable(value):
        return getattr(value, "__name__", "a function")
    return value
