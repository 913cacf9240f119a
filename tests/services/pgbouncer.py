"""PgBouncer in transaction mode before a PostgreSQL server."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tests.services.install import PREPARE, find
from tests.services.postgres import PostgresAddress
from tests.services.process import Server, ServiceError, answers, free_port


class PgBouncer(Server):
    """A pooler on a free port of 127.0.0.1: all databases of a server, by the same user and password.

    Parameters:
        server: The server to pool connections to.
        settings: More for the section [pgbouncer].
    """

    name: ClassVar[str] = "pgbouncer"
    quit: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, server: PostgresAddress, settings: Mapping[str, str | int] | None = None) -> None:
        program = find("pgbouncer")
        if program is None:
            raise ServiceError(f"PgBouncer is missing. Run: {PREPARE} --only pgbouncer")
        super().__init__()
        self._program, self._server, self._settings = program, server, dict(settings or {})
        self.address = PostgresAddress(free_port(), server.user, server.password)

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database, through the pooler."""
        return self.address.url(database)

    def stop(self) -> None:
        """End it, and the connections through it."""
        self._stop(self.quit)

    def prepare(self) -> None:
        """Write its configuration."""
        self.write("users", f'"{self._server.user}" "{self._server.password}"\n')
        settings: dict[str, str | int] = {
            "listen_addr": self.address.host,
            "listen_port": self.address.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(self._folder / "users"),
            "admin_users": self._server.user,
            "pool_mode": "transaction",
            "max_client_conn": 500,
            "default_pool_size": 20,
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        databases = f"[databases]\n* = host={self._server.host} port={self._server.port}\n"
        self.write("pgbouncer.ini", databases + "[pgbouncer]\n" + "\n".join(lines) + "\n")

    def command(self) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        return [self._program, self._folder / "pgbouncer.ini"]

    def ready(self) -> bool:
        """Return whether it accepts connections."""
        return answers(self.address.port)
