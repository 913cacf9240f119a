"""Moving all that is on one URL to another: nothing is lost, and nothing is run twice.

    plan      what would be moved, and what is in the way
    draining  claims on the source are stopped; what runs there ends, or is taken over from the dead
    copying   page after page, each with how far it is: what was killed goes on
    verify    `check` on both sides, and the same figures
    move      the whole of it: `transfer`, `undo`

At any moment at most one side can be written to. The source is closed before the first page is read, and
stays closed; the target's streams get their names, and so come to be used, when the source says that it was
moved.
"""

from .copying import Stores
from .move import Summary, transfer, undo
from .plan import Plan, plan

__all__ = ["Plan", "Stores", "Summary", "plan", "transfer", "undo"]
