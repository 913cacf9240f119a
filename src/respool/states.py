"""The states of calls, as users see them: what follows from where a record is in a group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .delivery.model import Lease
from .encoding.remote import error_summary
from .engines.base import Group, Status, Worker

READY = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
_WAITING = {"scheduled": "SCHEDULED", "retry": "RETRY", "dead": "FAILURE"}  # others: PENDING
_ENDED = {"success": "SUCCESS", "failure": "FAILURE", "revoked": "REVOKED"}
_HOW = {"done": "SUCCESS", "purged": "REVOKED", "expired": "REVOKED", "rewound": "PENDING"}


class Found(NamedTuple):
    """Where a call is, as of now: its state, and what there is to say about it."""

    state: str
    status: Status | None
    reason: str | None = None


def state_of(status: Status, pos: int, group: Group, workers: Callable[[], Iterable[Worker]]) -> Found:
    """Name the state of a record, from where it is.

    Parameters:
        workers: returns the workers that are registered; called where the record is leased only.
    """
    if status.place == "outside":
        return Found("UNKNOWN", status, f"outside the bounds of group {group.name}")
    if status.place == "pending":
        return Found("PENDING", status)
    if status.parked is not None:
        return Found(_WAITING.get(status.parked.reason, "PENDING"), status, status.parked.reason)
    if status.place == "leased":
        if status.lease is not None and status.lease.owner and _is_running(status.lease, pos, workers()):
            return Found("PROGRESS" if status.progress is not None else "STARTED", status)
        return Found("PENDING", status)
    if status.outcome is not None:
        reason = None
        if status.outcome.ending == "revoked" and status.outcome.value is not None:
            reason = error_summary(status.outcome.value)[1]
        return Found(_ENDED[status.outcome.ending], status, reason)
    if status.how in _HOW:
        return Found(_HOW[status.how], status, status.how)
    if status.how == "trimmed":
        return Found("UNKNOWN", status, f"lost to group {group.name}: trimmed before it was done")
    if status.how == "skipped":
        return Found("UNKNOWN", status, f"left out by the filter of group {group.name}")
    return Found("UNKNOWN", status, "its history is not kept any more")


def state_name(status: Status) -> str:
    """Name a record's state as far as its place tells: what is leased is PENDING here."""
    if status.parked is not None:
        return _WAITING.get(status.parked.reason, "PENDING")
    if status.outcome is not None:
        return _ENDED[status.outcome.ending]
    if status.place in ("pending", "leased"):
        return "PENDING"
    return _HOW.get(status.how or "", "UNKNOWN") if status.place == "done" else "UNKNOWN"


def _is_running(lease: Lease, pos: int, workers: Iterable[Worker]) -> bool:
    """Say whether a leased record is being run, as of its worker's last beat."""
    return any(
        lo <= pos < hi for worker in workers if worker.id == lease.owner for lo, _, hi in worker.running
    )


def error_of(status: Status) -> bytes | None:
    """Return the error of a call that failed, or failed last, as it is stored."""
    if status.outcome is not None and status.outcome.ending == "failure":
        return status.outcome.value
    return status.parked.error if status.parked is not None else None
