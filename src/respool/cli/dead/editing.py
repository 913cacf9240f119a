"""Other arguments for dead letters that are given back: by --set, or in $EDITOR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ...dead import Edit
    from ..target import Target


def edited(target: Target, total: int, changes: tuple[str, ...], edit: bool) -> Edit | None:
    """Return the change asked for. Raises UsageError where it cannot be."""
    from ...dead import changed_by, changed_with

    if edit and changes:
        raise click.UsageError("--edit or --set, not both")
    tasks = target.app.tasks if target.app else None
    if changes:
        return changed_with(dict(map(_change, changes)), tasks, target.pickle_key, target.blobs_if_any)
    if not edit:
        return None
    if total != 1:
        raise click.UsageError(
            f"--edit changes one dead letter, and {total:,} match; name it with --id, or use --set"
        )
    made: dict[str, Any] = {}

    def once(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if not made:  # the editor is opened once, whatever is tried with it
            made["now"] = _in_editor(task, arguments)
        return dict(made["now"])

    return changed_by(once, tasks, target.pickle_key, target.blobs_if_any)


def _change(text: str) -> tuple[str, Any]:
    import json

    from ...tagged import from_tagged

    path, found, value = text.partition("=")
    if not found:
        raise click.UsageError(
            f"--set {text!r}: it looks like PATH=VALUE, as in kwargs.url=https://example.org"
        )
    try:
        return path.strip(), from_tagged(json.loads(value))
    except ValueError:
        return path.strip(), value


def _in_editor(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Have the arguments changed in $EDITOR, as JSON. Raises Failure where nothing was changed."""
    import json

    from ...tagged import from_tagged, to_tagged
    from ..common import Failure

    before = json.dumps(to_tagged(arguments), ensure_ascii=False, indent=2) + "\n"
    after = click.edit(before, extension=".json")
    if after is None or after == before:
        raise Failure("nothing was changed in the editor; nothing was given back")
    try:
        changed = from_tagged(json.loads(after))
    except ValueError as error:
        raise Failure(f"what the editor left is no JSON: {error}; nothing was given back") from error
    if not isinstance(changed, dict):
        raise Failure(f"what the editor left are no arguments of {task}; nothing was given back")
    return changed
