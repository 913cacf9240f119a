"""Running again, and ending: replays, dead letters given back, queues purged, and checks of it all.

None of these functions prints or asks; `respool.cli` does. Where one takes a `source`, that is an App, or
an engine where no code is needed.
"""

from ..dead import DeadFilter, DeadLetter, causes, count_dead, dead_letters, drop, redrive
from .beside import create_group, group_of
from .checking import Report, check
from .comparing import Comparison, Difference, Tolerance, compare
from .create import ReplaySummary, create_replay, plan_replay
from .find import queue_of
from .following import HowFar, follow, how_far
from .holding import pause, resume
from .moving import SeekPlan, plan_seek, resume_seek, seek
from .purging import purge, purgeable
from .selection import Selection

__all__ = [
    "Comparison",
    "DeadFilter",
    "DeadLetter",
    "Difference",
    "HowFar",
    "ReplaySummary",
    "Report",
    "SeekPlan",
    "Selection",
    "Tolerance",
    "causes",
    "check",
    "compare",
    "count_dead",
    "create_group",
    "create_replay",
    "dead_letters",
    "drop",
    "follow",
    "group_of",
    "how_far",
    "pause",
    "plan_replay",
    "plan_seek",
    "purge",
    "purgeable",
    "queue_of",
    "redrive",
    "resume",
    "resume_seek",
    "seek",
]
