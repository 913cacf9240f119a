"""Groups that are to run no faster than so many records a second, over all workers: a bucket of tokens.

It is kept among the group's settings, so that each claim sees what the others took; only groups that have a
rate read or write it. What a filter leaves out is given back.
"""

from __future__ import annotations

import math
from typing import Any

from .model import Change, View


def allowed(view: View, change: Change, now: float) -> tuple[int, float] | None:
    """Return how many records may be granted now, and the tokens there are; None: as many as are wanted."""
    rate = view.settings.get("rate")
    if not rate:
        return None
    tokens, at = _bucket(view, change)
    burst = max(rate, 1.0)  # a second's worth
    tokens = burst if tokens is None else min(tokens + max(now - at, 0.0) * rate, burst)
    return math.floor(tokens + 1e-9), tokens


def spent(change: Change, tokens: float, now: float) -> None:
    """Write down what is left."""
    change.settings["pace"] = [round(tokens, 6), now]


def give_back(view: View, change: Change, skipped: int) -> None:
    """Put back the tokens of records that were left out."""
    if not view.settings.get("rate"):
        return
    tokens, at = _bucket(view, change)
    if tokens is not None:
        change.settings["pace"] = [tokens + skipped, at]


def _bucket(view: View, change: Change) -> tuple[float | None, float]:
    stored: Any = change.settings.get("pace") or view.settings.get("pace")
    return (None, 0.0) if stored is None else (stored[0], stored[1])
