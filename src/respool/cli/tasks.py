"""`respool tasks`: what the code registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import common, json_option

if TYPE_CHECKING:
    from ..app import App
    from ..task import Task


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the tasks and subscriptions of the app's code, with the options that are not the defaults.

    \b
    respool -A shop tasks
    """
    from .loading import load_app
    from .output import Column, Table

    app = load_app(common().app, common().url)
    table = Table(Column("task", least=12), Column("calls from", least=10), Column("options", least=16))
    for name, task in sorted(app.tasks.items()):
        if name == task.name:
            _add(table, app, task, f"queue {task.options['queue']}", {"queue": task.options["queue"]})
    for group, each in sorted(app.subscriptions.items()):
        reads = {"stream": each.stream.name, "group": group}
        _add(table, app, each.task, f"stream {each.stream.name}, group {group}", reads)
    table.show(as_json, f"App {app.name} registers no tasks. A task is a function under @app.task")


def _add(table: Any, app: App, task: Task[Any, Any], reads: str, data: dict[str, Any]) -> None:
    options = {name: _shown(value) for name, value in _unusual(app, task).items()}
    text = " ".join(f"{name}={value}" for name, value in options.items())
    table.add(
        (task.name, reads, text or "–"),
        {"task": task.name, **data, "options": options, "module": task.fn.__module__},
    )


def _unusual(app: App, task: Task[Any, Any]) -> dict[str, Any]:
    from ..options import OPTIONS

    usual = {name: option.default for name, option in OPTIONS.items()}
    usual["max_deliveries"] = app.settings["max_deliveries"]
    told = {"name", "queue"}  # in columns of their own
    return {
        name: task.options[name] for name in OPTIONS if name not in told and task.options[name] != usual[name]
    }


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return ",".join(each.__name__ if isinstance(each, type) else str(each) for each in value)
    return value
