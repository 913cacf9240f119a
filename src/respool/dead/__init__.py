"""Dead letters: calls that failed for good. Finding them, why they died, giving them back.

None of these functions prints or asks. Where one takes a `source`, that is an App, or an engine where no code
is needed.
"""

from .acting import drop, drop_old, notes_of_edits, redrive
from .causes import Cause, causes
from .edit import Edit, changed_by, changed_with
from .find import DeadFilter, DeadLetter, called, count_dead, dead_letters, refuse_unknown_task
from .handle import DeadLetters

__all__ = [
    "Cause",
    "DeadFilter",
    "DeadLetter",
    "DeadLetters",
    "Edit",
    "called",
    "causes",
    "changed_by",
    "changed_with",
    "count_dead",
    "dead_letters",
    "drop",
    "drop_old",
    "notes_of_edits",
    "redrive",
    "refuse_unknown_task",
]
