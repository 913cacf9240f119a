"""What `App.dead_letters` returns: a choice of dead letters, to look through, give back, or drop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError
from ..misspelt import suggests
from ..units import rate as per_second
from . import acting
from .causes import Cause, causes
from .edit import Arguments, Edit, changed_by, changed_with
from .find import DeadFilter, DeadLetter, asked, count_dead, dead_letters, dead_pages, refuse_unknown_task

if TYPE_CHECKING:
    from ..app import App


T = TypeVar("T")


class DeadLetters:
    """The dead letters of an app that match; what matches is looked up anew each time.

    Where none does, and neither the code nor a record has the task that was named, that is UnknownName.
    """

    def __init__(self, app: App, chosen: DeadFilter) -> None:
        self._app, self.chosen = app, chosen

    def __repr__(self) -> str:
        filters = ", ".join(f"{n}={v!r}" for n, v in self.chosen._asdict().items() if v not in (None, ()))
        return f"<DeadLetters of {self._app.name}{filters and ': ' + filters}>"

    def __iter__(self) -> Iterator[DeadLetter]:
        """Yield them, by group and place in the log, page by page."""
        engine, app, chosen = asked(self._app, None, self.chosen)
        found = 0
        for stream, group, page in dead_pages(engine, app, chosen):
            found += len(page)
            for parked in page:
                yield DeadLetter(stream, group, parked, engine)
        self._known(found)

    def oldest(self, limit: int = 100) -> list[DeadLetter]:
        """Return those that died first, at most `limit`."""
        return self._known(dead_letters(self._app, self.chosen, limit))

    def count(self) -> int:
        """Return how many there are."""
        return self._known(sum(count_dead(self._app, self.chosen).values()))

    def by_task(self) -> dict[str, int]:
        """Return how many there are of each task."""
        return self._known(count_dead(self._app, self.chosen))

    def by_error(self) -> list[Cause]:
        """Return what they died of, the most frequent first; those with like tracebacks are one cause."""
        return self._known(causes(self._app, self.chosen))

    @suggests("redrive option")
    def redrive(
        self,
        *,
        rate: Any = None,
        set: Mapping[str, Any] | None = None,
        edit: Callable[[str, Arguments], Arguments] | None = None,
    ) -> int:
        """Give them back to the groups that failed them, due at once; return how many.

        Parameters:
            rate: how many a second: a number, or text like "50/s", "600/m".
            set: values by path, to change arguments: `{"kwargs.url": "https://…"}`.
            edit: a function that gets a task's name and `{"args": [...], "kwargs": {...}}` of a call
                (`{"value": …}` of an event), and returns the new ones.

        Raises: BadArguments where what was edited does not fit its task; nothing was given back.
        """
        if set is not None and edit is not None:
            raise ConfigError("redrive: give set= or edit=, not both")
        if set is not None and not isinstance(set, Mapping):
            raise ConfigError(f"redrive: set={set!r:.80} is no dict of values by path")
        if edit is not None and not callable(edit):
            raise ConfigError(f"redrive: edit={edit!r:.80} is not a function")
        key = self._app.settings["pickle_key"]
        blobs = None if self._app.payloads.store is None else self._app.payloads.blobs
        change: Edit | None = None
        if set is not None:
            change = changed_with(set, self._app.tasks, key, blobs)
        elif edit is not None:
            change = changed_by(edit, self._app.tasks, key, blobs)
        return self._known(
            acting.redrive(
                self._app, self.chosen, rate=None if rate is None else per_second(rate), edit=change
            )
        )

    def drop(self) -> int:
        """End them for good; return how many. Their state stays FAILURE, and their records stay."""
        return self._known(acting.drop(self._app, self.chosen))

    def _known(self, found: T) -> T:
        """Return what was found; where that is nothing, raise UnknownName for a task that nothing knows."""
        task = self.chosen.task
        if not found and task is not None:
            streams = [each for each in self._app.engine.streams() if each.app in ("", self._app.name)]
            refuse_unknown_task(self._app.engine, self._app.tasks, task, streams)
        return found
