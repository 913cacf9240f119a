"""Short loops of kills over ordered, batched and limited work; `make soak` runs long ones."""

from __future__ import annotations

import os

import pytest
from tests.crash.loops import LOOPS
from tests.worker.support import Place

KILLS = int(os.environ.get("RESPOOL_LOOP_KILLS", "5"))


@pytest.mark.parametrize("place", ["sqlite", "postgres", "kafka"], indirect=True)
@pytest.mark.parametrize("kind", LOOPS)
def test_kills(place: Place, kind: str) -> None:
    loop = LOOPS[kind](place, 5)
    loop.go(lambda: loop.kills >= KILLS)
    assert loop.kills >= KILLS
