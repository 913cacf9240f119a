"""A stream, and a subscription that does nothing. Apart from the tasks: their worker serves one group."""

from __future__ import annotations

from respool import App

app = App("bench")
events = app.stream("events")


@events.subscribe(group="nothing", start="earliest")
def nothing(event: str) -> None:
    pass
