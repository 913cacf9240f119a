"""Calls of which there is to be one at a time: `unique=` of a task, decided where they are sent (H16).

A lock names the record that took it. Whether it holds is read from where that record is in `main`: what has
ended there (done, a dead letter, cut off) holds nothing, and nobody has to free it, so no crash leaves one
behind and no replay frees one.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .callkeys import CallKey
from .clock import now as wall_clock
from .delivery.seek import came_past
from .delivery.spans import Span, find
from .engines import public_id
from .engines.turns import GRACE, limited
from .errors import DuplicateCall, EngineUnavailable, Refused
from .record import id_text
from .result import AsyncResult
from .states import state_name

if TYPE_CHECKING:
    from .app import App
    from .delivery.model import NewCall
    from .engines.base import Engine, Group, Status, UniqueLock

TRIES = 100  # each time somebody else has taken the key meanwhile
OnDuplicate = Literal["existing", "raise", "replace"]


class Unique:
    """What makes two calls of a task the same, and what becomes of the second."""

    def __init__(
        self,
        task: str,
        fn: Callable[..., Any],
        bound: bool,
        options: Mapping[str, Any],
        encode: Callable[[Any, str], bytes],
        plain: Callable[[str, Any], Any],
    ) -> None:
        self.task = task
        self.while_pending = options["unique_until"] == "started"
        self.window: float | None = options["unique_for"]
        self.on_duplicate: OnDuplicate = options["on_duplicate"]
        self.debounce: float | None = options["debounce"]
        by = options["unique"]
        self._by_arguments, self._encode = by is True, encode
        self._key = None if by in (True, "function") else CallKey(f"task {task}: unique", by, fn, bound)
        self._plain = plain
        parameters = list(inspect.signature(fn).parameters.values())[bound:]
        self._signature = None if options["batch"] else inspect.Signature(parameters)

    def key(
        self, app: str, args: Sequence[Any], kwargs: Mapping[str, Any], checked: tuple[Any, dict[str, Any]]
    ) -> str:
        """Return what the call takes. Raises BadArguments where a key function does not give one.

        Parameters:
            checked: the arguments as the plain data that is sent.
        """
        rest = ""
        if self._by_arguments:
            rest = self._of_arguments(*checked)
        elif self._key is not None:
            rest = self._key.of(args, kwargs)
        return f"{app}/{self.task}/{rest}"

    def _of_arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Return what equal arguments have in common, by whichever way they are given."""
        given: Mapping[Any, Any] = {**dict(enumerate(args)), **kwargs}
        if self._signature is not None:  # what a batch takes has no names
            given = self._signature.bind(*args, **kwargs).arguments
        digest = hashlib.blake2b(digest_size=16)
        for name, value in given.items():
            encoded = self._encode(self._in_order(value), "args")
            if encoded != self._defaults.get(name):  # as if it had been left out
                for part in (str(name).encode(), encoded):
                    digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

    def _in_order(self, value: Any) -> Any:
        """Return plain data with the keys of its dicts in order: they are equal whatever that was."""
        if isinstance(value, dict):
            keys = sorted(value, key=lambda key: self._encode(key, "args"))
            return {key: self._in_order(value[key]) for key in keys}
        if isinstance(value, list | tuple):
            return [self._in_order(item) for item in value]
        return value

    @cached_property
    def _defaults(self) -> dict[str, bytes]:
        """The defaults, encoded; without those that cannot be, for nobody can send them."""
        found: dict[str, bytes] = {}
        for name, parameter in ({} if self._signature is None else self._signature.parameters).items():
            if parameter.default is not parameter.empty:
                with suppress(Refused):
                    found[name] = self._encode(self._in_order(self._plain(name, parameter.default)), "args")
        return found


def send(
    app: App,
    rule: Unique,
    key: str,
    row: NewCall,
    fence: tuple[int, int] | None,
    connection: Any,
    enter: Callable[[], None] | None = None,
) -> AsyncResult[Any]:
    """Append a call unless there is one like it; return the handle of that which is there then.

    Parameters:
        enter: waits until there is room for one more, or raises; called only where there is none like it.

    Raises: DuplicateCall, and as `delay()`.
    """
    engine, now = app.engine, wall_clock()
    until = None if rule.window is None else now + rule.window
    looks = app.settings["append_timeout"] + GRACE
    for _ in range(TRIES):
        with limited(time.monotonic() + looks):  # not as long as a reader that has all the time
            lock = engine.lock_of(key, connection)
            held = lock is not None and lock.id != row.id and _keeps(app, engine, lock, rule, now)
        if lock is not None and lock.id == row.id:  # sent before, by this run or with this id
            return AsyncResult(app, public_id(row.id), pos=lock.pos if lock.placed else None)
        if lock is not None and held:
            existing: AsyncResult[Any] = AsyncResult(app, public_id(lock.id))
            if rule.on_duplicate == "raise":
                raise DuplicateCall(
                    f"{rule.task}: call {id_text(public_id(lock.id))} is the same, and not ended; nothing "
                    "was sent. Its handle is this error's `existing`",
                    existing,
                )
            return existing
        if enter is not None:
            enter()
            enter = None
        pos = engine.append_unique(row, key, None if lock is None else lock.id, until, fence, connection)
        if pos is not None:
            return AsyncResult(app, public_id(row.id), pos=None if connection is not None else pos)
    raise EngineUnavailable(
        f"{rule.task}: others took the same key {TRIES} times in between; nothing was sent"
    )


def _keeps(app: App, engine: Engine, lock: UniqueLock, rule: Unique, now: float) -> bool:
    return rule.on_duplicate != "replace" and holds(app, engine, lock, rule, now)


def holds(app: App, engine: Engine, lock: UniqueLock, rule: Unique, now: float) -> bool:
    """Say whether the record that a lock names keeps others out: never where it will not run."""
    if lock.until is not None and now >= lock.until:
        return False
    if not lock.placed:
        return lock.expires is None or now < lock.expires
    group = app.opened.group_at(lock.pos, "main")
    status = engine.status(group, lock.pos)
    keeps = _is_in_time(status, rule) if lock.until is None else state_name(status) != "REVOKED"
    return keeps and not _is_too_late(engine, group, lock.pos, status, now)


def _is_in_time(status: Status, rule: Unique) -> bool:
    """Say whether a record is not ended yet, or not begun."""
    if status.place in ("done", "outside"):
        return False
    if status.place == "parked":
        assert status.parked is not None
        begun = status.parked.reason == "retry"
        return status.parked.reason != "dead" and not (begun and rule.while_pending)
    return status.place == "pending" or not rule.while_pending


def _is_too_late(engine: Engine, group: Group, pos: int, status: Status, now: float) -> bool:
    """Say whether a record waits for a worker only to be told that it has expired.

    One that a worker took in time may run: that is known once the worker has settled it or given it back.
    """
    if status.place not in ("pending", "parked", "leased"):
        return False
    span, lease = Span(pos, pos + 1), status.lease
    if status.parked is not None:
        span = status.parked.span()
    elif lease is not None:
        span = find(lease.spans, pos) or span
    if span.begun or (status.parked is not None and status.parked.reason == "dead"):
        return False
    expires = next((record.meta.expires for record in engine.records(pos, pos + 1, 1)), None)
    if expires is None or now < expires or (lease is not None and lease.owner and lease.since < expires):
        return False
    rewinds = next((each.settings.get("rewinds", ()) for each in engine.groups() if each.id == group.id), ())
    return not came_past(rewinds, pos) and not engine.began(group.id, [(pos, pos + 1)])
