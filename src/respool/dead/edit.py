"""Changing the arguments of a dead letter: checked against its task, the original kept."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..delivery.model import Parked
from ..delivery.spans import joined
from ..encoding.codec import codec_for
from ..encoding.refusals import brief
from ..engines.base import Engine, Stream
from ..errors import BadArguments, BlobsUnavailable, ConfigError, CorruptBody
from ..record import NO_META, Meta, read_meta
from ..reference import is_reference

if TYPE_CHECKING:
    from ..blobs import Blobs

NOTE_LENGTH = 2000
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(-?\d+)\]")

Arguments = dict[str, Any]
"""`{"args": [...], "kwargs": {...}}` of a call, `{"value": ...}` of an event."""
Change = Callable[[str, Arguments], Arguments]
"""Gets a task's name and a copy of the arguments; returns the new ones."""


class Edit:
    """A change of arguments, made ready for a log: what it makes must fit the task, where that is known."""

    def __init__(
        self,
        change: Change,
        tasks: Mapping[str, Any] | None = None,
        pickle_key: bytes | None = None,
        blobs: Blobs | None = None,
    ) -> None:
        self._change, self._tasks, self._pickle_key = change, tasks or {}, pickle_key
        self._blobs = blobs  # where large arguments are

    def bodies(self, engine: Engine, stream: Stream, page: list[Parked]) -> dict[int, tuple[bytes, str]]:
        """Return the new body of each that changes, by position, and what its history will say.

        Raises: BadArguments, NotEncodable, ConfigError for a change that cannot be made; CorruptBody;
            BlobLost, BlobsUnavailable where there are large arguments, and they cannot be had.
        """
        rows = engine.rows(joined(parked.span()._replace(retries=0, deliveries=0, redrives=0, alone=False)
                                  for parked in page))  # fmt: skip
        records = {row[0]: (row[2], row[3]) for row in rows}
        found = {}
        for parked in page:
            if parked.pos not in records:
                continue
            body, packed = records[parked.pos]
            meta = NO_META if packed is None else read_meta(packed)
            if meta.damaged is not None:
                raise CorruptBody(
                    f"{parked.task}: the attributes of this dead letter cannot be read: {meta.damaged}"
                )
            edited = self._edited(stream, parked, body if parked.body is None else parked.body, meta)
            if edited is not None:
                found[parked.pos] = edited
        return found

    def _edited(self, stream: Stream, parked: Parked, body: bytes, meta: Meta) -> tuple[bytes, str] | None:
        is_call = stream.kind == "queue"
        if is_reference(body):
            if self._blobs is None:
                raise BlobsUnavailable(
                    f"the arguments of {parked.task} are in a blob store, and none is named"
                )
            body = self._blobs.load(body)  # type: ignore[assignment]
        codec = codec_for(meta.content_type or ("msgpack" if is_call else "json"), self._pickle_key)
        before, again = codec.decode(body), codec.decode(body)
        old, new = _taken_apart(before, is_call), _taken_apart(again, is_call)
        new = self._change(parked.task, new)
        if not any(_changes("", old, new)):
            return None
        value = self._put_together(parked.task, new, is_call)
        changed = codec.encode(value, "the edited arguments")
        if changed == body:
            return None
        return changed if self._blobs is None else self._blobs.fitted(changed), _note(old, new)

    def _put_together(self, task: str, new: Arguments, is_call: bool) -> Any:
        wanted = {"args", "kwargs"} if is_call else {"value"}
        if not isinstance(new, dict) or set(new) != wanted:
            raise BadArguments(f"the edited arguments must be an object with {' and '.join(sorted(wanted))}")
        if not is_call:
            return new["value"]
        args, kwargs = new["args"], new["kwargs"]
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise BadArguments("the edited arguments must have a list as args and an object as kwargs")
        known = self._tasks.get(task)
        if known is not None:
            args, kwargs = known.parameters.convert(args, kwargs)  # as they are declared
            args, kwargs = known.parameters.check(tuple(args), kwargs)
        return (tuple(args), kwargs)


def _taken_apart(value: Any, is_call: bool) -> Arguments:
    if not is_call:
        return {"value": value}
    if not (isinstance(value, list) and len(value) == 2):
        raise BadArguments(f"the body of this dead letter is no call: {brief(value)}")
    return {"args": list(value[0]), "kwargs": dict(value[1])}


def changed_with(
    changes: Mapping[str, Any],
    tasks: Mapping[str, Any] | None = None,
    pickle_key: bytes | None = None,
    blobs: Blobs | None = None,
) -> Edit:
    """Return an edit that sets values by their paths.

    Parameters:
        changes: path to value. A path is `args[0]`, `kwargs.url`, `value.user.id` of an event, or begins with
            a parameter's name where the task is known.
        tasks: those of the app, by name: what is changed must fit them.
        blobs: where large arguments are.

    >>> redrive(app, edit=changed_with({"kwargs.url": "https://…"}, app.tasks))  # doctest: +SKIP
    """
    paths = [(_steps(path), path, value) for path, value in changes.items()]

    def change(task: str, arguments: Arguments) -> Arguments:
        known = (tasks or {}).get(task)
        for steps, path, value in paths:
            _set(arguments, _rooted(steps, path, arguments, known), path, value)
        return arguments

    return Edit(change, tasks, pickle_key, blobs)


def changed_by(
    function: Change,
    tasks: Mapping[str, Any] | None = None,
    pickle_key: bytes | None = None,
    blobs: Blobs | None = None,
) -> Edit:
    """Return an edit that a function makes of a task's name and the arguments."""
    return Edit(function, tasks, pickle_key, blobs)


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    at = 0
    for match in _STEP.finditer(path):
        if match.start() != at:
            break
        at = match.end()
        steps.append(match[1] if match[2] is None else int(match[2]))
    if at != len(path) or not steps or path.startswith("."):
        raise ConfigError(f"{path!r} is no path; one looks like args[0], kwargs.url or value.user.id")
    return steps


def _rooted(steps: list[str | int], path: str, arguments: Arguments, task: Any) -> list[str | int]:
    """Return the steps from `args`, `kwargs` or `value` on."""
    first = steps[0]
    if first in arguments:
        if len(steps) == 1 and first != "value":
            raise ConfigError(f"{path!r}: say which of {first}, as in args[0] or kwargs.url")
        return steps
    if "value" in arguments:
        raise ConfigError(f"{path!r}: the path into an event begins with value")
    if first in arguments["kwargs"]:
        return ["kwargs", *steps]
    names = [] if task is None else _parameters(task)
    if first in names:
        place = names.index(str(first))
        return ["args", place, *steps[1:]] if place < len(arguments["args"]) else ["kwargs", *steps]
    known = ", ".join(names) or "they are known where -A names the app"
    raise ConfigError(f"{path!r} begins with neither args, kwargs nor a parameter's name ({known})")


def _parameters(task: Any) -> list[str]:
    names = list(inspect.signature(task.fn).parameters)
    return names[1:] if task.options["bind"] else names


def _set(arguments: Arguments, steps: list[str | int], path: str, value: Any) -> None:
    held: Any = arguments
    for step in steps[:-1]:
        held = _within(held, step, path)
    last = steps[-1]
    if isinstance(held, dict):
        held[last] = value
        return
    _within(held, last, path)  # it must be there
    held[int(last)] = value


def _within(held: Any, step: str | int, path: str) -> Any:
    try:
        if isinstance(held, dict):
            return held[step]
        if isinstance(held, list):
            return held[int(step)]
    except (KeyError, IndexError, ValueError):
        pass
    raise BadArguments(f"{path!r}: there is no {step!r} in {brief(held)}")


def _note(old: Arguments, new: Arguments) -> str:
    """Say what was changed, from what to what: the history keeps it, whatever is edited later."""
    changes = list(_changes("", old, new))
    return ("redriven: edited " + "; ".join(changes))[:NOTE_LENGTH]


def _changes(path: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line
            for name in names
            for line in _changes(
                f"{path}.{name}" if path else str(name), old.get(name, _NONE), new.get(name, _NONE)
            )
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for n, (a, b) in pairs for line in _changes(f"{path}[{n}]", a, b)]
    if type(old) is type(new) and old == new:
        return []
    return [f"{path} = {brief(new, 200)} (was {brief(old, 200)})"]


class _Nothing:
    def __repr__(self) -> str:
        return "not there"


_NONE = _Nothing()
