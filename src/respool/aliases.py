"""Under which names the calls of a task are recorded: it may have been renamed since."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def with_aliases(source: Any, tasks: Iterable[str]) -> list[str]:
    """Return tasks' names with their former ones, which calls of theirs may be recorded under.

    Parameters:
        source: an App, which knows them; of an engine, which knows no code, the names come back as they are.
    """
    names = set(tasks)
    declared: Any = getattr(source, "tasks", {})
    for name in tuple(names):
        task = declared.get(name)
        if task is not None and task.name == name:
            names.update(task.options["aliases"])
    return sorted(names)
