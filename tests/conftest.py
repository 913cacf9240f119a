"""Hypothesis profiles: `dev` by default, `ci` where CI is set, `soak` where SOAK is.

Another: `pytest --hypothesis-profile=soak`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]  # a machine's steps are slow beside a function's

settings.register_profile(
    "dev", max_examples=75, stateful_step_count=80, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile(
    "soak", settings.get_profile("dev"), max_examples=20_000, stateful_step_count=150, print_blob=True
)
settings.load_profile("soak" if os.environ.get("SOAK") else "ci" if os.environ.get("CI") else "dev")
