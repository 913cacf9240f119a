"""PostgreSQL: a server of one's own, and a standby that follows it.

Needs no client to start one. What asks a server something (making a database, a standby) uses psycopg.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import hmac
import os
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, LiteralString

from tests.services.process import Server, ServiceError, free_port, unprivileged

Mode = Literal["smart", "fast", "immediate"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_PROGRAMS = ("initdb", "postgres")


def find_programs(folder: Path | None = None) -> Path | None:
    """Return the folder with initdb and postgres: the one given, else PATH's, else Debian's newest."""
    if folder is not None:
        return folder if _has_programs(folder) else None
    places = [Path(place) for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place]
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    places += sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
    for place in places:
        if _has_programs(place):
            return (place / "postgres").resolve().parent  # a link's libraries are where it leads
    return None


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / program, os.X_OK) for program in _PROGRAMS)


@dataclass(frozen=True)
class PostgresAddress:
    """Where a server is and who may come in; all that another process needs of it."""

    port: int
    user: str
    password: str
    host: str = "127.0.0.1"

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{database}"

    def execute(
        self, query: LiteralString, values: Sequence[object] = (), *, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement in a connection of its own, committed; return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description is not None else []

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database; return its URL.

        By copying files: where fsync is off that is two to four times as fast as writing all to the log.
        """
        import psycopg
        from psycopg.sql import SQL, Identifier

        with psycopg.connect(self.url(), autocommit=True, connect_timeout=10) as connection:
            how = " STRATEGY file_copy" if connection.info.server_version >= 150000 else ""  # all there was
            statement = SQL("CREATE DATABASE {} TEMPLATE {}" + how)
            connection.execute(statement.format(Identifier(name), Identifier(template)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending its connections."""
        self._compose("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _compose(self, query: LiteralString, *names: str) -> None:
        import psycopg
        from psycopg.sql import SQL, Identifier

        with psycopg.connect(self.url(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(SQL(query).format(*(Identifier(name) for name in names)))

    def to_json(self) -> dict[str, object]:
        """Return it as another process can be told it: `PostgresAddress(**told)`."""
        return asdict(self)


class PostgresServer(Server):
    """A PostgreSQL server (14 or newer) on a free port of 127.0.0.1, with a password and no Unix socket.

    Parameters:
        programs: The folder with initdb and postgres; else they are looked for.
        fsync: False makes it faster and unsafe against a crash of the machine, not against `kill`.
        settings: More for postgresql.conf.
        parent: Where its folder is to be; else where temporary files are.
    """

    name: ClassVar[str] = "postgres"
    quit: ClassVar[signal.Signals] = signal.SIGQUIT

    def __init__(
        self,
        programs: Path | None = None,
        *,
        fsync: bool = True,
        settings: Mapping[str, str | int | bool] | None = None,
        parent: Path | None = None,
    ) -> None:
        found = find_programs(programs)
        if found is None:
            where = "on PATH or in /usr/lib/postgresql" if programs is None else f"in {programs}"
            raise ServiceError(f"No initdb and postgres {where}: python -m tests.services --prepare")
        super().__init__(parent)
        self.programs = found
        self.address = PostgresAddress(free_port(), "respool", secrets.token_hex(16))
        self._fsync, self._settings = fsync, dict(settings or {})
        self._standbys = 0

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._folder / "data"

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return self.address.url(database)

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database; return its URL."""
        return self.address.create_database(name, template)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending its connections."""
        self.address.drop_database(name)

    def stop(self, mode: Mode = "fast") -> None:
        """Shut it down: `smart` waits for clients, `fast` ends them, `immediate` leaves all to recovery."""
        self._stop(_SIGNALS[mode])

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start it, at the same address."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """End it at once and remove its folder. May be called again."""
        if self._process is not None:
            self._end(self.quit)
        self._forget_memory()
        super().close()

    def standby(self, *, synchronous: bool = True) -> PostgresServer:
        """Return a standby of this server, started and following it.

        A synchronous one holds every commit until it is there: while it is away commits wait. Use it as a
        context manager, or close it yourself.
        """
        self._standbys += 1
        name = f"standby{self._standbys}"
        standby = _Standby(self, name)
        try:
            standby.start()
            if synchronous:
                self._await_standby(name)
        except BaseException:
            standby.close()
            raise
        return standby

    def promote(self) -> None:
        """Make a standby a primary; return when it takes writes.

        The old primary should be stopped or killed first.
        """
        if self.address.execute("SELECT pg_promote(true, 60)") != [(True,)]:
            raise ServiceError(f"The standby was not promoted. Its log ends:\n{self.tail()}")

    def use_tls(self, host: str) -> Path:
        """Have it speak TLS, from now on, with a certificate for a host; return that of who has signed it."""
        subject = ("-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
        made = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        key, signed = self.write("data/server.key", ""), self.write("data/server.crt", "")
        self.run(["openssl", "req", *made, *subject, "-keyout", key, "-out", signed])
        key.chmod(0o600)
        self.configure({"ssl": True})
        self.restart()
        return signed

    def prepare(self) -> None:
        """Make the data directory, once."""
        if self.data.exists():
            return
        password = self.write("password", _hashed(self.address.password))
        self.run(
            [
                self.programs / "initdb",
                f"--pgdata={self.data}",
                f"--username={self.address.user}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
                "--no-instructions",
            ]
        )
        password.unlink()
        self.configure({})

    def configure(self, more: Mapping[str, str | int | bool]) -> None:
        """Add settings to postgresql.conf: they hold from the next start on."""
        self._settings.update(more)
        settings: dict[str, str | int | bool] = {
            "listen_addresses": self.address.host,
            "port": self.address.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "64MB",
            "fsync": self._fsync,
            "full_page_writes": self._fsync,
            "synchronous_commit": True,
            "dynamic_shared_memory_type": "mmap",  # in its folder: nothing stays in /dev/shm after a kill
            "log_line_prefix": "%m [%p] %d ",
            "timezone": "UTC",
            **self._settings,
        }
        lines = [f"{name} = {_quoted(value)}\n" for name, value in settings.items()]
        conf = self.data / "postgresql.conf"
        original = self.data / "postgresql.conf.made"
        if not original.exists():
            shutil.copy2(conf, original)
        conf.write_text(original.read_text() + "".join(lines))

    def command(self) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        return [self.programs / "postgres", "-D", self.data]

    def ready(self) -> bool:
        """Return whether it accepts connections, as its pid file says (pg_ctl -w looks there too)."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _await_standby(self, name: str) -> None:
        """Make commits wait for a standby; return when they do."""
        self.address._compose("ALTER SYSTEM SET synchronous_standby_names = {}", name)
        self.address.execute("SELECT pg_reload_conf()")
        query: LiteralString = (
            "SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND sync_state = 'sync'"
        )
        self.wait_for(lambda: bool(self.address.execute(query, [name])), f"{name} is not synchronous")

    def _forget_memory(self) -> None:
        """Remove the small segment of shared memory that a killed server leaves behind.

        A start on the same folder would take it over; there will be none.
        """
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return
        if len(lines) > 6 and len(fields := lines[6].split()) == 2:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.shmctl(int(fields[1]), 0, None) != 0 and ctypes.get_errno() not in (
                22,
                43,
            ):  # EINVAL, EIDRM: gone
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), f"shared memory {fields[1]}")


class _Standby(PostgresServer):
    """A copy of a running server that follows it."""

    name: ClassVar[str] = "standby"

    def __init__(self, primary: PostgresServer, name: str) -> None:
        super().__init__(primary.programs, fsync=primary._fsync, settings=primary._settings)
        self.address = PostgresAddress(self.address.port, primary.address.user, primary.address.password)
        self._primary, self._name = primary, name

    def prepare(self) -> None:
        """Copy the primary's data directory while it runs, once.

        By its functions, not pg_basebackup: that must be of the server's version or newer, and the newest
        comes without. A replication slot keeps the log that the copy needs.
        """
        if self.data.exists():
            return
        import psycopg

        address = self._primary.address
        with psycopg.connect(address.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", [self._name])
            connection.execute("SELECT pg_backup_start('standby', true)")
            self._copy(self._primary.data)
            label = connection.execute("SELECT labelfile FROM pg_backup_stop(false)").fetchone()
        assert label is not None
        self.write("data/backup_label", label[0])
        self.write("data/standby.signal", "")
        self.write("data/postgresql.auto.conf", "")
        upstream = f"host={address.host} port={address.port} user={address.user} password={address.password}"
        self.configure(
            {
                "primary_conninfo": f"{upstream} application_name={self._name}",
                "primary_slot_name": self._name,
            }
        )

    def _copy(self, source: Path) -> None:
        """Copy a data directory that is in use, without what a copy must not have."""
        owner = unprivileged()

        def own(path: Path) -> None:
            if owner is not None:
                os.chown(path, owner.pw_uid, owner.pw_gid)

        for folder, folders, files in os.walk(source):
            inside = Path(folder).relative_to(source)
            target = self.data / inside
            target.mkdir(mode=0o700)
            own(target)
            if str(inside) in ("pg_replslot", "pg_dynshmem", "pg_notify", "pg_stat_tmp", "pg_subtrans"):
                folders.clear()
                continue
            for file in files:
                if file in ("postmaster.pid", "postmaster.opts") or inside.parts[:1] == ("pg_wal",):
                    continue
                try:
                    shutil.copyfile(Path(folder, file), target / file)
                except FileNotFoundError:  # dropped since it was listed: the log, replayed, says so too
                    (target / file).unlink(missing_ok=True)
                    continue
                (target / file).chmod(0o600)
                own(target / file)


def _hashed(password: str) -> str:
    """Return a password as the server keeps it, but hashed once: no more is needed where chance made it.

    The usual 4,096 rounds are most of what it costs a client to connect: 2 ms of its processor.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    client = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    kept = [
        base64.b64encode(x).decode() for x in (salt, client, hmac.digest(salted, b"Server Key", "sha256"))
    ]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*kept)


def _quoted(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("'", "''") + "'"
