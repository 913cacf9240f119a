"""An app's log while it is open in this process: its engine, its producer, and what is stored there."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .config import SETTINGS
from .declared import Subscription, check_task, compare
from .engines import open_engine
from .engines.base import Engine, Group, Stream, StreamKind
from .errors import OF_ONE_STREAM, ConfigError, DatabaseGone, EngineError, LogMoved, UnknownName
from .location import NothingThere
from .pressure import UNSAID, Gate, store_terms, terms_of
from .producer import Producer
from .record import log_of
from .retention import DEFAULT_AGE

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger("respool")


class Opened:
    """What an app has while its engine is open: dropped as a whole when that is closed, or after a fork."""

    def __init__(self, app: App, engine: Engine) -> None:
        self._app = app
        self.engine = engine
        self.producer = Producer(engine, app.settings["max_record_size"], app.settings["append_timeout"])
        self.streams: dict[tuple[str, str], Stream] = {}  # the declared ones as stored, by kind and name
        self.gates: dict[str, Gate] = {}  # of queues with a max_pending
        self.differs: list[str] = []  # where it is only looked at: what is stored otherwise than declared
        self._mains: dict[int, Group] = {}  # by the log of their queue

    def create_stream(
        self,
        kind: StreamKind,
        app: str,
        name: str,
        partitions: int,
        declared: dict[str, Any],
    ) -> Stream:
        """Create a queue or stream where it is new. Raises DeclarationConflict, ConfigError."""
        if self._app.looks:
            raise ConfigError(
                f"{kind} {name} is declared, and not made yet: who first sends or works makes it"
            )
        can = self.engine.capabilities
        if not can.foreign and (declared.get("foreign") or declared.get("cloudevents")):
            option = "foreign" if declared.get("foreign") else "cloudevents"
            raise ConfigError(
                f"{kind} {name}: {option}=True is for Kafka; {can.name} shares its log with nobody"
            )
        settings = {"retention": DEFAULT_AGE, **declared}
        stream = self.engine.create_stream(kind, app, name, partitions, settings)
        _compare_stream(stream, declared)
        if declared.get("foreign"):
            self._app.stream_handles[name].partitions = stream.partitions
        self.streams[kind, name] = stream
        return stream

    def make_declared(self) -> None:
        """Create what the app has declared where that is new. Raises DeclarationConflict, ConfigError."""
        app = self._app
        for queue in app.queues.values():
            self.create_stream("queue", app.name, queue.name, queue.partitions, queue.settings)
        for handle in app.stream_handles.values():
            self.create_stream("stream", "", handle.name, handle.partitions, handle.settings)
        groups = self.engine.groups()
        self.create_subscriptions(groups)
        self.open_gates(groups)

    def find_declared(self) -> None:
        """Find what is there of what the app has declared, and note what was declared otherwise."""
        app, there = self._app, {(s.kind, s.app, s.name): s for s in self.engine.streams()}
        declared: dict[tuple[StreamKind, str, str], dict[str, Any]]
        declared = {("queue", app.name, name): queue.settings for name, queue in app.queues.items()}
        declared |= {("stream", "", name): handle.settings for name, handle in app.stream_handles.items()}
        for key, settings in declared.items():
            if (stream := there.get(key)) is not None:
                self.streams[stream.kind, stream.name] = stream
                self._note(_compare_stream, stream, settings)
        groups = self.engine.groups()
        for subscription in app.subscriptions.values():
            self._note(self._find_subscription, subscription, groups)

    def _note(self, compares: Callable[..., object], *given: Any) -> None:
        try:
            compares(*given)
        except ConfigError as error:
            self.differs.append(str(error))

    def open_gates(self, groups: Sequence[Group]) -> None:
        """Store how full queues may become where that is declared, and keep to what is stored."""
        mains = {group.stream: group for group in groups if group.kind == "main"}
        for queue in self._app.queues.values():
            group = mains[self.streams["queue", queue.name].id]
            terms = terms_of(group)
            if queue.terms is not UNSAID and queue.terms != terms:
                terms = queue.terms
                try:
                    store_terms(self.engine, group, terms)
                except (ConfigError, EngineError, LogMoved) as error:
                    log.warning(
                        "queue %s: its max_pending could not be stored, so only this process keeps to it, "
                        "until a worker of the app starts: %s",
                        *(queue.name, error),
                    )
            if terms is not None:
                self.gates[queue.name] = Gate(queue.name, terms, self._app.settings["append_timeout"])

    def create_subscriptions(self, groups: list[Group]) -> None:
        """Create the groups of the app's subscriptions where they are new.

        Parameters:
            groups: all there are so far.
        """
        engine, app = self.engine, self._app
        for subscription in app.subscriptions.values():
            name, ordered = subscription.group, subscription.ordered
            stream = self.streams["stream", subscription.stream.name]
            if self._find_subscription(subscription, groups):
                continue
            latest = subscription.start == "latest"
            try:
                held = engine.bounds(stream)
            except OF_ONE_STREAM as error:
                log.error("subscription %s is not made: %s", name, error)
                continue
            bounds = [(each, end if latest else first, None) for each, first, end in held]
            settings = {"ordered": True} if ordered else {}
            engine.create_group(stream, app.name, name, "subscription", settings, bounds)

    def _find_subscription(self, subscription: Subscription, groups: Sequence[Group]) -> bool:
        """Say whether it is there. Raises DeclarationConflict; ConfigError for a name that is taken."""
        name, app = subscription.group, self._app.name
        stream = self.streams.get(("stream", subscription.stream.name))
        for group in groups:
            if stream is not None and (group.stream, group.app, group.name) == (stream.id, app, name):
                kept = group.settings.get("ordered", False)
                compare("subscription", name, {"ordered": kept}, {"ordered": subscription.ordered})
                return True
        self._refuse_name_of_replay(name, groups)
        return False

    def _refuse_name_of_replay(self, name: str, groups: Sequence[Group]) -> None:
        """A worker started with --group and this name would serve both."""
        app = self._app.name
        taken = [g for g in groups if (g.app, g.name, g.kind) == (app, name, "replay")]
        if taken:
            queue = next(stream.name for stream in self.engine.streams() if stream.id == taken[0].stream)
            raise ConfigError(
                f"subscription {name} of app {app}: a replay of queue {queue} has that name; give the "
                f"subscription another group=, or drop the replay: respool --url … groups drop "
                f"{shlex.quote(name)} --queue {shlex.quote(queue)}"
            )

    def group_at(self, pos: int, name: str) -> Group:
        """Return the group of this name that reads the stream of a position. Raises UnknownName."""
        if name == "main" and (main := self._mains.get(log_of(pos))) is not None:
            return main  # it lives as long as its queue; other groups come and go
        stream = self.stream_at(pos)
        here = [group for group in self.engine.groups() if group.stream == stream.id]
        for group in here:
            if group.name == name and group.app in (self._app.name, stream.app):
                if name == "main":
                    self._mains[log_of(pos)] = group
                return group
        raise UnknownName("group", name, [g.name for g in here], f"on {stream.kind} {stream.name}")

    def stream_at(self, pos: int) -> Stream:
        """Return the stream that a position lies in."""
        log = log_of(pos)
        for stream in self.streams.values():
            if log in stream.logs:
                return stream
        for stream in self.engine.streams():
            if log in stream.logs:
                return stream
        raise UnknownName("log", str(log), ())


def _compare_stream(stream: Stream, declared: dict[str, Any]) -> None:
    usual = {"ordered": False, "partitions": 1} if stream.kind == "queue" else {}
    compare(stream.kind, stream.name, {**usual, **stream.settings}, declared, alters=True)


def open_log(app: App) -> Opened:
    """Open an app's engine, and create what the app has declared where that is new, unless it only looks.

    Raises: DatabaseGone where the file was deleted in use, and is not there again.
    """
    durability = app.durability
    SETTINGS["durability"].check(durability, "durability")
    make = not app.looks and not app.lost
    try:
        engine = open_engine(app.location, durability, app.settings["append_timeout"], make=make)
    except NothingThere:
        if not app.lost:
            raise
        raise DatabaseGone(
            f"{app.location.path} was deleted while in use, and no new one is made: put it back, or restart"
        ) from None
    try:
        opened = Opened(app, engine)
        for task in app.tasks.values():
            check_task(task, app.queues.get(task.queue))
        if app.looks:
            opened.find_declared()
        else:
            opened.make_declared()
    except BaseException:
        engine.close()
        raise
    return opened
