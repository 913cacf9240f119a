"""How a run ended, as a verdict: pure but for the random part of a backoff, which is passed in."""

from __future__ import annotations

from ..delivery.model import Verdict
from ..delivery.retry import RetryPolicy, delay, may_retry
from ..delivery.spans import Span
from ..encoding.remote import encode_error
from ..errors import MaxRetriesExceeded, Retry, Revoked, WorkerLost
from ..record import Row
from .services import Runner

NOTE_LENGTH = 500


def policy_of(runner: Runner, error: BaseException) -> RetryPolicy:
    """Return a task's retry options, with the bound that `self.retry()` gave for this time."""
    if isinstance(error, Retry) and error.max_retries is not None:
        return runner.retry._replace(max_retries=error.max_retries)
    return runner.retry


def failed(
    runner: Runner, row: Row, span: Span, error: BaseException, began: float, now: float, random: float
) -> Verdict:
    """Return what becomes of a call whose run raised: a retry, or its end."""
    cause = error
    countdown = None
    policy = policy_of(runner, error)
    if isinstance(error, Retry):
        cause = error.cause or error
        countdown = error.countdown
        again = True
    else:
        again = isinstance(error, runner.options["autoretry_for"])
    if again and may_retry(policy, span.retries):
        due = now + delay(policy, span.retries, countdown, random)
        encoded = encode_error(cause)
        note = _note("retry", cause)
        return Verdict(
            row[0],
            reason="retry",
            due=due,
            task=row[1],
            error=encoded,
            retried=True,
            note=note,
            started=began,
            ended=now,
        )
    if isinstance(cause, Retry):
        cause = MaxRetriesExceeded(
            f"retried {span.retries} time{'' if span.retries == 1 else 's'}, which is max_retries"
        )
    encoded = encode_error(cause)
    verdict = Verdict(
        row[0], ending="failure", value=encoded, ttl=runner.ttl, note=_note("failed", cause),
        task=row[1], started=began, ended=now,
    )  # fmt: skip
    if not isinstance(cause, runner.options["throws"]):
        verdict.reason, verdict.error = "dead", encoded
    return verdict


def put_off(
    runner: Runner,
    row: Row,
    span: Span,
    error: BaseException,
    began: float,
    now: float,
    random: float,
    *,
    counted: bool,
) -> Verdict:
    """Return what becomes of a call whose batch raised, and that was not run apart from others.

    It is run later, whatever its task retries. `counted`: as one of its retries, for nothing of the batch
    could be run; with none left it fails.
    """
    if counted and not may_retry(runner.retry, span.retries):
        return failed(runner, row, span, error, began, now, random)
    due = now + delay(runner.retry, span.retries, None, random)
    return Verdict(
        row[0], reason="retry", due=due, task=row[1], error=encode_error(error), retried=counted,
        note=_note("retry", error), started=began, ended=now,
    )  # fmt: skip


def unreadable(row: Row, error: BaseException, now: float) -> Verdict:
    """Return the verdict on a record that cannot be decoded: a dead letter with the reason."""
    encoded = encode_error(error)
    return Verdict(
        row[0], ending="failure", value=encoded, reason="dead", task=row[1], error=encoded,
        note=_note("failed", error), started=now, ended=now,
    )  # fmt: skip


def unknown(row: Row, now: float) -> Verdict:
    """Return the verdict on a call of a task that this worker does not know (P11)."""
    note = f"unknown: no task {row[1]!r} here"
    return Verdict(row[0], reason="unknown", task=row[1], note=note, started=now, ended=now)


def scheduled(row: Row, due: float, now: float) -> Verdict:
    """Return the verdict on a call that is due later (P9)."""
    return Verdict(row[0], reason="scheduled", due=due, task=row[1], note="scheduled", started=now, ended=now)


def out_of_reach(row: Row, error: BaseException, due: float, now: float) -> Verdict:
    """Return the verdict on a call whose arguments cannot be had at present; that counts as no retry."""
    note = _note("waits", error)
    return Verdict(row[0], reason="retry", due=due, task=row[1], note=note, started=now, ended=now)


def limited(row: Row, until: float, now: float) -> Verdict:
    """Return the verdict on a call whose task is stopped."""
    note = "limited: its task is stopped"
    return Verdict(row[0], reason="limited", due=until, task=row[1], note=note, started=now, ended=now)


def expired(row: Row, expires: float, now: float) -> Verdict:
    """Return the verdict on a call that nobody started in time."""
    error = encode_error(Revoked(f"expired {now - expires:.1f} s before a worker got to it"))
    return Verdict(row[0], ending="revoked", value=error, note="expired", started=now, ended=now)


def replaced(row: Row, now: float) -> Verdict:
    """Return the verdict on a call that a later one has replaced before it began."""
    error = encode_error(Revoked("a later call like it has replaced it before it began"))
    return Verdict(row[0], ending="revoked", value=error, note="replaced", started=now, ended=now)


def blocked(row: Row, now: float) -> Verdict:
    """Return the verdict on a record that comes after one of its key that is to run again (P8)."""
    return Verdict(row[0], reason="blocked", task=row[1], started=now, ended=now)


def skipped(pos: int) -> Verdict:
    """Return the verdict on a record that the group's filter leaves out."""
    return Verdict(pos, skipped=True)


def is_no_work(verdict: Verdict) -> bool:
    """Say whether a record was left out, or put by without a run."""
    return verdict.skipped or verdict.reason in ("scheduled", "unknown", "blocked", "limited")


def ran_too_often(row: Row, span: Span, now: float) -> Verdict:
    """Return the verdict on a call that may have run, and may not run again (H7)."""
    encoded = encode_error(
        WorkerLost(
            f"it may have run: its worker was lost; after {span.deliveries} such run(s) it is not run again"
        )
    )
    return Verdict(
        row[0], ending="failure", value=encoded, reason="dead", task=row[1], error=encoded,
        note="lost: may have run", started=now, ended=now,
    )  # fmt: skip


def _note(how: str, error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may do anything
        text = "(its message cannot be shown)"
    kind = type(error).__name__
    note = (f"{how}: {kind}: {text}" if text else f"{how}: {kind}")[:NOTE_LENGTH]
    return note.encode("utf-8", "backslashreplace").decode()  # the text may be no text
