"""Groups that are to run no faster than so many records a second, over all workers: a bucket of tokens.

It is kept among the group's settings, so that each claim sees what the others took; only groups that have a
rate read or write it. What a filter leaves out is given back.
"""

from __future__ import annotations

import math
from typing import Any

from .limits import refilled
from .model import Bucket, Change, View


def allowed(view: View, change: Change, now: float) -> tuple[int, Bucket] | None:
    """Return how many records may be granted now, and the bucket; None: as many as are wanted."""
    rate = view.settings.get("rate")
    if not rate:
        return None
    burst = max(rate, 1.0)  # a second's worth
    tokens, at = _stored(view, change) or (burst, now)
    bucket = refilled(Bucket(0, "", "", rate, burst, None, min(tokens, burst), at), now)
    if bucket.at < at:  # our clock was set back: time goes on from here, though nothing may be granted now
        spent(change, bucket, 0)
    return math.floor(bucket.tokens + 1e-9), bucket


def spent(change: Change, bucket: Bucket, granted: int) -> None:
    """Write down what is left."""
    change.settings["pace"] = [round(bucket.tokens - granted, 6), bucket.at]


def give_back(view: View, change: Change, skipped: int) -> None:
    """Put back the tokens of records that were left out."""
    if not view.settings.get("rate"):
        return
    stored = _stored(view, change)
    if stored is not None:
        change.settings["pace"] = [stored[0] + skipped, stored[1]]


def _stored(view: View, change: Change) -> tuple[float, float] | None:
    """Return the tokens that there were, and when."""
    stored: Any = change.settings.get("pace") or view.settings.get("pace")
    return None if stored is None else (stored[0], stored[1])
