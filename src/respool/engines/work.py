"""A run's own database work: a transaction that the settlement of the run joins (P4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..delivery.model import Change, NewCall, View
from .things import Conflict, Reads


class Work(Protocol):
    """A transaction of the database that the log is in, open since `begin_work`.

    One thread uses it, and ends it by `settle` or `roll_back`. What its process leaves open when it dies is
    undone by the database.
    """

    @property
    def connection(self) -> Any:
        """The driver's own connection, for the user; it commits and closes for nobody but us."""

    @property
    def enlisted(self) -> Any:
        """What `append_enlisted` and `append_run_enlisted` take to append in this transaction."""

    @property
    def exclusive(self) -> bool:
        """Whether nobody else can write while it is open, other connections of this process included."""

    def append(self, rows: Sequence[NewCall]) -> list[Conflict]:
        """Append records of one log in this transaction, as `append_enlisted` does."""

    def settle(self, reads: Reads, decide: Callable[[View, Change], bool]) -> bool:
        """Lock, read, let `decide` fill the change, write it, and commit that with all the user did.

        Where `decide` returns False all of it is undone. Returns: what `decide` returned. Synced.

        Raises: what the driver raises where the user's work cannot be committed (a deferred constraint, an
            error before that was passed over), and ConfigError where the user has ended the transaction:
            nothing of the settlement was written. EngineUnavailable: nothing at all was. AppendUnknown: it
            may have been; who takes the group's lock afterwards, and reads, sees whether it was.
        """

    def roll_back(self) -> None:
        """Undo all of it. Raises nothing: where the connection is lost it is undone too."""
