"""Running again, and ending: replays, dead letters given back, queues purged, and checks of it all.

None of these functions prints or asks; `respool.cli` does. Where one takes a `source`, that is an App, or
an engine where no code is needed.
"""

from ..dead import DeadFilter, DeadLetter, causes, count_dead, dead_letters, drop, redrive
from .checking import Report, check
from .create import ReplaySummary, create_replay, plan_replay
from .find import queue_of
from .purging import purge, purgeable

__all__ = [
    "DeadFilter",
    "DeadLetter",
    "ReplaySummary",
    "Report",
    "causes",
    "check",
    "count_dead",
    "create_replay",
    "dead_letters",
    "drop",
    "plan_replay",
    "purge",
    "purgeable",
    "queue_of",
    "redrive",
]
