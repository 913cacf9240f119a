"""What a command looks at: an engine, with the app's code where that is needed."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import ConfigError, UnknownName, suggest, unsent
from .common import common
from .loading import find_spec, load_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..app import App
    from ..blobs import Blobs, Store
    from ..engines.base import Group, Status, Stream, Worker
    from ..engines.moving import Mark
    from ..location import Location
    from ..states import Found

TIMEOUT = 10.0


class Target:
    """An engine and what is on it; `only` names the app that listings keep to, None: they show all."""

    def __init__(self, engine: Any, app: App | None, only: str | None, location: Location) -> None:
        self.engine, self.app, self.only, self.location = engine, app, only, location

    @property
    def source(self) -> Any:
        """What `respool.replay` takes."""
        return self.engine if self.app is None else self.app

    @cached_property
    def streams(self) -> dict[int, Stream]:
        """The app's queues and all streams, by number."""
        return {s.id: s for s in self.engine.streams() if self.only in (None, s.app) or s.kind == "stream"}

    @cached_property
    def groups(self) -> list[Group]:
        """The app's groups, queue by queue."""
        found = [g for g in self.engine.groups() if g.stream in self.streams and self.only in (None, g.app)]
        reads = self.streams
        return sorted(
            found, key=lambda g: (reads[g.stream].kind, reads[g.stream].app, reads[g.stream].name, g.id)
        )

    @cached_property
    def workers(self) -> list[Worker]:
        """All workers registered."""
        return cast("list[Worker]", self.engine.workers())

    @cached_property
    def moved(self) -> Mark | None:
        """The mark of a log that was moved elsewhere, or is being moved; None for one that is in use."""
        mark: Mark | None = self.engine.mark()
        return mark if mark is not None and mark.is_source else None

    def brief(self, pos: int) -> Any:
        """Return what is said of a record in few words; None where it is gone."""
        found = self.engine.briefs(pos, pos + 1, None, None, None, 0)
        return found[0] if found else None

    def task_at(self, pos: int) -> str:
        """Return the task, or type, of a record; nothing where it is gone."""
        found = self.brief(pos)
        return found.task if found else ""

    def shown(self, stream: Stream) -> str:
        """Name a queue or stream; with its app where those of several apps are listed."""
        apps = {each.app for each in self.streams.values() if each.kind == "queue"}
        return f"{stream.app}/{stream.name}" if stream.app and len(apps) > 1 else stream.name

    def named(self, name: str, *kinds: str) -> list[Stream]:
        """Return the queues or streams of a name. Raises UnknownName, which suggests the near one."""
        here = [stream for stream in self.streams.values() if stream.kind in kinds]
        found = [stream for stream in here if stream.name == name]
        if not found and any(
            stream.name == name for stream in self.streams.values() if stream.kind == "stream"
        ):
            raise ConfigError(
                f"{name} is a stream of events, not a queue{suggest(name, [stream.name for stream in here])} "
                f"(its events: respool tail {name}, respool export {name})"
            )
        if not found:
            raise UnknownName(" or ".join(kinds), name, {stream.name for stream in here})
        return found

    def refuse_unknown_task(self, name: str, streams: Iterable[Stream]) -> None:
        """Raise UnknownName, which suggests the near one, where neither the code nor a record has a task.

        It reads the streams from end to end: for where nothing was found.
        """
        from ..dead import refuse_unknown_task

        refuse_unknown_task(self.engine, self.app.tasks if self.app else (), name, streams)

    def group(self, name: str, stream: Stream) -> Group | None:
        """Return the group of this name that reads a stream."""
        return next((g for g in self.groups if g.stream == stream.id and g.name == name), None)

    def one_group(self, name: str, queue: str | None) -> Group:
        """Return the one group of a name, of a queue or stream where that is given.

        Raises: UnknownName, which suggests the near one; ConfigError where there are several.
        """
        streams = {s.id for s in self.named(queue, "queue", "stream")} if queue else set(self.streams)
        here = [group for group in self.groups if group.stream in streams]
        found = [group for group in here if group.name == name]
        if not found:
            raise UnknownName("group", name, {group.name for group in here})
        if len(found) > 1:
            reads = ", ".join(self.shown(self.streams[group.stream]) for group in found)
            raise ConfigError(f"several groups are called {name}, of {reads}; say which with --queue")
        return found[0]

    def serving(self, group: Group) -> list[Worker]:
        """Return the workers that serve a group, those whose process is gone not among them."""
        from ..worker.host import is_gone

        return [
            worker
            for worker in self.workers
            if group.id in worker.info.get("groups", ()) and not is_gone(worker)
        ]

    def spaces(self) -> list[str]:
        """Return the namespaces in which ids are looked up."""
        apps = [self.only] if self.only else sorted({s.app for s in self.streams.values() if s.app})
        return apps + [f"stream:{s.name}" for s in self.streams.values() if s.kind == "stream"]

    def find(self, id: str) -> list[int]:
        """Return the positions of the records with an id, or with the one that begins so.

        Raises: UnknownCall; ConfigError where several begin so.
        """
        from ..errors import UnknownCall
        from .ids import LOOK

        found = self._at(self.whole_id(id))
        if not found:
            raise UnknownCall(
                f"no record {id} in {self.location.shown}: never appended, or past retention, and none of "
                f"the newest {LOOK:,} begins so"
            )
        return found

    def whole_id(self, id: str) -> str:
        """Return an id that may be given by its beginning; as it is, where there is no record with it.

        Raises: ConfigError where several begin so; UnknownCall for what is too short to be a beginning.
        """
        from ..errors import UnknownCall
        from .ids import LEAST, whole_id

        if self._at(id):
            return id
        if len(id) < LEAST:
            raise UnknownCall(
                f"no call {id}: never appended, or past retention, in {self.location.shown}. The beginning "
                f"of an id is enough, but {LEAST} characters of it or more"
            )
        return whole_id(self, id) or id

    def _at(self, id: str) -> list[int]:
        from ..record import parse_id

        parsed = parse_id(id)
        return sorted({at for space in self.spaces() if (at := self.engine.find(space, parsed)) is not None})

    def stream_at(self, pos: int) -> Stream:
        """Return the queue or stream that a position lies in."""
        from ..record import log_of

        streams: list[Stream] = self.engine.streams()
        return next(stream for stream in streams if log_of(pos) in stream.logs)

    def state(self, status: Status, pos: int, group: Group) -> Found:
        """Name the state of a record, as `AsyncResult.state` would."""
        from ..states import state_of

        return state_of(status, pos, group, lambda: self.workers)

    def loader(self, most: float) -> Callable[[bytes], Any]:
        """Return what fetches a payload from the blob store; None in place of one over `most` bytes."""
        from ..reference import unpack

        return lambda body: self.blobs.load(body) if unpack(body).size <= most else None

    @property
    def blobs_if_any(self) -> Blobs | None:
        """The store of large payloads, None where there is none."""
        from ..errors import BlobsUnavailable

        try:
            return self.blobs
        except BlobsUnavailable:
            return None

    @cached_property
    def store(self) -> Store | None:
        """Where large payloads are, None where nothing says where. Raises ConfigError."""
        if self.app is not None:
            return self.app.payloads.store
        from ..blobs import store_of
        from ..config import SETTINGS

        return store_of(self.location, None, SETTINGS["blob_timeout"].default, "full")

    @cached_property
    def blobs(self) -> Blobs:
        """What finds large payloads. Raises BlobsUnavailable, ConfigError."""
        if self.app is not None:
            return self.app.payloads.blobs
        from ..blobs import Blobs, unnamed
        from ..config import SETTINGS
        from ..errors import BlobsUnavailable

        if self.store is None:
            raise BlobsUnavailable(unnamed())
        return Blobs(
            self.engine, self.store, SETTINGS["max_blob_size"].default, SETTINGS["offload_over"].default
        )

    @property
    def pickle_key(self) -> bytes | None:
        """The key of pickled bodies; only the app's code has it."""
        return self.app.settings["pickle_key"] if self.app else None


def open_target(*, code: bool = False, creates: bool = False, writes: bool = False) -> Target:
    """Return what the command is about; on stderr, where that was moved.

    Parameters:
        code: the app's code is needed: an App must be named.
        creates: the command may be the first to use the log. Others do not make an empty one by mistake.
        writes: the command changes what is there: on a log that was moved it fails, and its error says so.
            One that does not write creates nothing that the app has declared, either.
    """
    target = _found_target(code, creates, writes)
    if not writes and (mark := target.moved) is not None:
        _say_moved(mark, target.engine.shown)
    return target


def _say_moved(mark: Mark, shown: str) -> None:
    import shlex

    from ..engines.moving import told

    text = unsent(told(mark, shown))
    if mark.phase == "moved":
        text += f". This is what it was then; to see it there: --url {shlex.quote(mark.other)}"
    click.echo(text, err=True)


def _found_target(code: bool, creates: bool, writes: bool) -> Target:
    given = common()
    if code:
        return _of_app(load_app(given.app, given.url), creates, writes)
    if given.url and (target := _named_in(given.url, given.app)) is not None:
        return target
    if find_spec(given.app) is None:
        return _of_default()
    return _of_app(load_app(given.app, given.url), creates, writes)


def open_stored() -> Target:
    """Return the same, as it is stored: whatever the app's code declares, it is not opened by that."""
    given = common()
    if given.url and (target := _named_in(given.url, given.app)) is not None:
        return target
    if find_spec(given.app) is None:
        return _of_default()
    app = load_app(given.app, given.url)
    target = _of_url(app.url)
    target.only = app.name
    return target


def _named_in(url: str, app: str | None) -> Target | None:
    """Return what a URL alone is about, or an app's name as it is stored there: no code is needed."""
    target = _of_url(url)
    if app is not None and app not in {stream.app for stream in target.streams.values()}:
        target.engine.close()
        return None
    if app is not None:
        target.only = app
        del target.streams
    return target


def _of_app(app: App, creates: bool, writes: bool) -> Target:
    from ..location import NothingThere, parse_url, refuse_memory

    location = parse_url(app.url)
    refuse_memory(location, f"app {app.name}")
    _at_the_end(lambda: _left(app))
    if not creates:
        try:
            _look(app, writes)
        except NothingThere:
            raise ConfigError(_none_of(app, "send a call first, or give the right --url")) from None
    return Target(app.engine, app, app.name, location)


def _look(app: App, writes: bool) -> None:
    """Open an app's log, which has something of the app's; create what is new only where it is written to."""
    from ..engines.moving import INCOMING

    app.looks = True
    there = {stream.app for stream in app.engine.streams() if not stream.app.startswith(INCOMING)} - {""}
    if app.name not in there:
        whose = f"what is there is of app {', '.join(sorted(there))}" if there else "nothing is there"
        raise ConfigError(_none_of(app, f"{whose}. Send a call first, or give the right --url"))
    if writes:
        app.looks = False
        app.opened.make_declared()
    for differs in app.opened.differs:
        if not writes:
            click.echo(differs, err=True)


def _left(app: App) -> None:
    app.close()
    app.looks = False


def _none_of(app: App, more: str) -> str:
    return f"app {app.name} has no log yet at {app.location.shown}: {more}"


def _of_url(url: str) -> Target:
    from ..location import NothingThere, parse_url, refuse_memory

    location = parse_url(url)
    refuse_memory(location, "--url")
    try:
        return _opened(location)
    except NothingThere:
        if location.path is not None:
            raise ConfigError(f"there is no database at {location.path}") from None
        raise ConfigError(
            f"there is no log at {location.shown}: an app makes one when it first uses it"
        ) from None


def _opened(location: Location) -> Target:
    from ..config import SETTINGS
    from ..engines import open_engine

    durability = location.options.get("durability", "full")
    SETTINGS["durability"].check(durability, "durability")
    engine = open_engine(location, durability, TIMEOUT, make=False)
    _at_the_end(engine.close)
    return Target(engine, None, None, location)


def _of_default() -> Target:
    from ..location import NothingThere, locate, refuse_memory

    _, location = locate(None, None)
    refuse_memory(location, "RESPOOL_URL")
    try:
        return _opened(location)
    except NothingThere:
        raise ConfigError(
            "no app and no log: name an app with -A shop, RESPOOL_APP or [tool.respool] in pyproject.toml, "
            f"or a log with --url (there is none at {location.shown})"
        ) from None


def _at_the_end(close: Any) -> None:
    click.get_current_context().call_on_close(close)
