"""Which records of a lease would be run as they are: what would not takes nothing that others wait for."""

from __future__ import annotations

from ..delivery.model import Lease
from ..delivery.spans import Finder
from ..record import Meta, Row
from .calling import Caller
from .services import Runner, Service


class Looks:
    """Looks at records before they are run."""

    def __init__(self, caller: Caller, service: Service, lease: Lease, skip: frozenset[int]) -> None:
        self._caller, self._service, self._lease, self._skip = caller, service, lease, skip
        self._spans = Finder(lease.spans)
        self._plain = not skip and not any(any(span[2:]) for span in lease.spans)

    def would_run(self, runner: Runner, row: Row) -> bool:
        """Say whether a record would be run: else it is left out, has ended, or is due later."""
        if self._plain and row[3] is None:
            return True  # it has nothing but a body
        span = self._spans.find(row[0]) or self._lease.spans[0]
        seen = self._caller.look(self._service, self._lease, runner, row, span, self._skip)
        return isinstance(seen, Meta)
