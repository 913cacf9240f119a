"""Large payloads that are gone from their store though something refers to them: for `check`."""

from __future__ import annotations

from collections.abc import Container

from ..blobs import Store
from ..engines import public_id
from ..engines.base import Engine
from ..record import id_text, log_of
from ..reference import Reference

PAGE = 1000  # payloads looked up together
SHOWN = 5


def lost_payloads(engine: Engine, store: Store) -> tuple[int, list[str]]:
    """Return how many payloads are gone, or are of another size, and whose they are: a few records' ids.

    One look at the store for each payload that the engine knows of. Raises BlobsUnavailable.
    """
    logs = {log for stream in engine.streams() for log in stream.logs}
    lost, ids, after = 0, list[str](), None
    while rows := engine.blob_rows(after, PAGE):
        for row in rows:
            if store.holds(Reference(row.digest, row.size, row.stamp).name, row.size):
                continue
            owners = _owners(engine, logs, row.digest, row.stamp)
            lost += bool(owners)
            ids += owners[: SHOWN - len(ids)]
        after = rows[-1][:2]
    return lost, ids


def _owners(engine: Engine, logs: Container[int], digest: bytes, stamp: int) -> list[str]:
    """Return the ids of records that refer to a payload, or whose outcomes do, as far as they are there."""
    places = {key.pos for key in engine.referred(digest) if key.stamp == stamp and log_of(key.pos) in logs}
    found = (record for pos in sorted(places) for record in engine.records(pos, pos + 1, 1))
    return list(dict.fromkeys(id_text(public_id(record.id)) for record in found))
