"""Pickling apps, tasks and handles: by where a process that imports the same modules finds them."""

from __future__ import annotations

import pickle
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import App


def place_of(app: App) -> tuple[str, str]:
    """Return the module that has an app, and its name there; the program itself only where no other has it.

    Raises: PicklingError where none has it.
    """
    found = [
        (name, each)
        for name, module in list(sys.modules.items())
        for each, value in list(getattr(module, "__dict__", {}).items())
        if value is app
    ]
    if not found:
        raise pickle.PicklingError(
            f"app {app.name} is in no module, where another process would find it. Send the call's id "
            "instead, and take app.AsyncResult(id) there; of a task, its name, for app.send_task(name, args)"
        )
    return min(found, key=lambda place: place[0] in ("__main__", "__mp_main__"))


def app_at(module: str, name: str) -> Any:
    """Return what is at a place."""
    return getattr(import_module(module), name)


def is_global(task: Any) -> bool:
    """Say whether a task is what its module has under the function's name, as a function would be."""
    found: Any = sys.modules.get(task.__module__)
    for part in getattr(task, "__qualname__", "").split("."):  # a callable object has none
        found = getattr(found, part, None)
    return found is task


def task_of(app: App, name: str) -> Any:
    """Return the task of a name."""
    return app.tasks[name]
