"""Least rights: an owner who migrates, workers who are its members, producers who only send; and versions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict
from tests.engines.test_postgres import leap, tables

from respool import App, ConfigError, IdConflict
from respool.cli import main
from respool.engines import grant, migrate
from respool.engines.postgres.migrate import SCHEMA_VERSION
from respool.engines.postgres.partitions import SIZE
from respool.errors import EngineUnavailable, RespoolError, SchemaTooNew
from respool.location import parse_url
from respool.replay import redrive
from respool.testing import work


@dataclass
class Roles:
    """Roles of this test's own on the shared server, and the URL that each comes with."""

    admin: psycopg.Connection[Any]
    url: str
    suffix: str

    def name(self, kind: str) -> str:
        return f"{kind}_{self.suffix}"

    def of(self, kind: str) -> str:
        """Return the URL of a role."""
        told = conninfo_to_dict(self.url)
        at = f"{told['host']}:{told['port']}/{told['dbname']}"
        return f"postgresql://{self.name(kind)}:secret@{at}?schema=s{self.suffix}"

    def execute(self, statement: str, bound: Any = ()) -> list[Any]:
        cursor = self.admin.execute(statement.encode(), bound)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def roles(session_database: str) -> Iterator[Roles]:
    with psycopg.connect(session_database, autocommit=True) as admin:
        made = Roles(admin, session_database, uuid.uuid4().hex[:8])  # type: ignore[arg-type]
        owner, worker = made.name("owner"), made.name("worker")
        for kind in ("owner", "worker", "producer", "stranger"):
            made.execute(f"CREATE ROLE {made.name(kind)} LOGIN PASSWORD 'secret'")
        made.execute(f"GRANT {owner} TO {worker}")
        database = str(conninfo_to_dict(session_database)["dbname"])
        made.execute(f"GRANT CREATE ON DATABASE {database} TO {owner}")
        yield made
        for kind in ("owner", "worker", "producer", "stranger"):
            made.execute(f"DROP OWNED BY {made.name(kind)} CASCADE")
            made.execute(f"DROP ROLE {made.name(kind)}")


def shop(url: str, *queues: str) -> App:
    app = App("shop", url=url)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(bind=True)
    def fails(self: Any) -> None:
        add.delay(1, 1)
        raise KeyError("no")

    app.stream("seen", key="user")
    for queue in queues:
        app.queue(queue)
    return app


@pytest.fixture
def migrated(roles: Roles) -> Roles:
    location = parse_url(roles.of("owner"))
    assert migrate(location)
    shop(roles.of("worker")).engine.close()  # whoever works makes queues and streams
    grant(location, roles.name("producer"))
    return roles


def test_producer_sends_and_asks_and_changes_nothing(migrated: Roles) -> None:
    sender, worker = shop(migrated.of("producer")), shop(migrated.of("worker"))
    add = sender.tasks["add"]
    sent = [add.delay(1, 2), add.apply_async((2, 2), task_id="four", countdown=0.01)]
    many, failed = add.apply_many([((n, n), {}) for n in range(10)]), sender.tasks["fails"].delay()
    assert add.apply_async((2, 2), task_id="four").id == "four"
    with pytest.raises(IdConflict):
        add.apply_async((9, 9), task_id="four")
    seen = sender.stream_handles["seen"]
    seen.publish({"user": 1})
    assert seen.publish_many({"user": n} for n in range(50)) == 50
    assert sent[0].state == "PENDING"
    with psycopg.connect(migrated.of("producer").partition("?")[0]) as db:
        in_it = add.apply_async((5, 5), connection=db)
    work(worker)
    assert [r.get(timeout=5) for r in (*sent, in_it, *many)] == [3, 4, 10, *range(0, 20, 2)]
    assert failed.state == "FAILURE"
    assert [attempt.how for attempt in sent[0].history()] == ["done"]
    assert len(list(seen.read())) == 51
    with pytest.raises(ConfigError, match=r"permission denied .* respool migrate --producer ROLE"):
        redrive(sender)
    granted = migrated.execute(
        "SELECT c.relname, p.privilege FROM pg_class c, "
        "unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p (privilege) "
        "WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p') "
        "AND has_table_privilege(%s, c.oid, p.privilege) ORDER BY 1, 2",
        (f"s{migrated.suffix}", migrated.name("producer")),
    )
    assert granted == [
        ("blob", "INSERT"), ("blob", "UPDATE"), ("blob_ref", "INSERT"),
        ("ids", "INSERT"), ("record", "INSERT"),
    ]  # fmt: skip
    assert migrated.execute(
        "SELECT has_schema_privilege(%s, %s, 'CREATE')", (migrated.name("producer"), f"s{migrated.suffix}")
    ) == [(False,)]
    sender.close()
    worker.close()


def test_what_workers_make_is_the_owners_and_producers_may_use_it(migrated: Roles) -> None:
    """Partitions and queues that come later need no grants of their own."""
    worker: Any = shop(migrated.of("worker"), "later")
    sender = shop(migrated.of("producer"), "later")
    log = worker.stream_of("queue", "default").logs[0]
    leap(worker.engine, log, SIZE // 2 + 1)
    sender.tasks["add"].delay(1, 1)  # thinks ahead, and may not
    assert f"record_{log}_1" not in tables(worker.engine, log)
    worker.engine.tidy()
    assert f"record_{log}_1" in tables(worker.engine, log)
    leap(worker.engine, log, SIZE)
    into_the_new = sender.tasks["add"].delay(2, 2)
    elsewhere = sender.tasks["add"].apply_async((3, 3), queue="later")
    work(worker)
    assert (into_the_new.get(timeout=5), elsewhere.get(timeout=5)) == (4, 6)
    owners = migrated.execute(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = %s::regnamespace "
        "AND relkind IN ('r', 'p', 'S')",
        (f"s{migrated.suffix}",),
    )
    assert owners == [(migrated.name("owner"),)]
    sender.close()
    worker.close()


def test_a_producer_who_may_make_no_partition_is_told_and_a_worker_makes_it(migrated: Roles) -> None:
    """Within transactions of its own alone."""
    worker, producer = shop(migrated.of("worker")), shop(migrated.of("producer"))
    owned: Any = worker.engine
    leap(owned, worker.stream_of("queue", "default").logs[0], SIZE)
    with psycopg.connect(migrated.of("producer").partition("?")[0]) as db:
        with pytest.raises(EngineUnavailable, match=r"no partition .*a worker does: start one"):
            producer.tasks["add"].apply_async((1, 2), connection=db)
        db.rollback()
        owned.tidy()
        sent = producer.tasks["add"].apply_async((1, 2), connection=db)
        db.commit()
    work(worker)
    assert sent.get(timeout=5) == 3
    producer.close()
    worker.close()


def test_errors_of_roles_without_rights(roles: Roles) -> None:
    def failure(url: str, *queues: str) -> str:
        app = shop(url, *queues)
        with pytest.raises(ConfigError) as caught:
            app.tasks["add"].delay(1, 2)
        assert "secret" not in str(caught.value)
        return str(caught.value)

    assert re.search(r"has no schema .* may not create it: .*respool migrate", failure(roles.of("stranger")))
    migrate(parse_url(roles.of("owner")))
    assert "may not use the schema" in failure(roles.of("stranger"))
    with pytest.raises(ConfigError, match="CREATE ROLE"):
        grant(parse_url(roles.of("owner")), "nobody_at_all")
    grant(parse_url(roles.of("owner")), roles.name("producer"))
    assert "permission denied" in failure(roles.of("producer")), "a queue that nobody has made yet"
    with pytest.raises(ConfigError, match="has no roles"):
        grant(parse_url("sqlite:///x.db"), "web")


def test_migrate_from_the_command_line(roles: Roles) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["migrate", *arguments])
        assert done.exit_code == code, done.output
        assert "secret" not in done.output
        return done.output

    owner = roles.of("owner")
    printed = run("--print", "--url", owner)
    assert f'CREATE SCHEMA IF NOT EXISTS "s{roles.suffix}";' in printed
    assert roles.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (f"s{roles.suffix}",)) == []
    roles.execute(f"SET ROLE {roles.name('owner')}")
    roles.execute(printed)  # those who run their own migrations
    roles.execute(run("--print", "--producer", roles.name("producer"), "--url", owner))
    roles.execute("RESET ROLE")
    assert "the schema is there, and current" in run("--url", owner)
    assert "may send" in run("--producer", roles.name("producer"), "--url", owner)
    worker = shop(roles.of("worker"))
    assert worker.engine.usable()
    sender = shop(roles.of("producer"))
    sent = sender.tasks["add"].delay(1, 2)
    work(worker)
    assert sent.get(timeout=5) == 3
    sender.close()
    worker.close()


def test_migrate_makes_the_indexes_that_an_older_schema_lacks(migrated: Roles) -> None:
    schema = f"s{migrated.suffix}"
    asked = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %s ORDER BY 1"
    before = migrated.execute(asked, (schema,))
    migrated.execute(f"DROP INDEX {schema}.lease_admitted, {schema}.parked_key")
    with psycopg.connect(migrated.of("owner").partition("?")[0]) as other:  # an enqueue that stays open (G6)
        other.execute(f"LOCK TABLE {schema}.record IN ROW EXCLUSIVE MODE")
        assert not migrate(parse_url(migrated.of("owner")))
    assert migrated.execute(asked, (schema,)) == before


@pytest.mark.parametrize(
    ("version", "error", "said"),
    [
        (SCHEMA_VERSION + 1, SchemaTooNew, "newer Respool .* pip install -U respool"),
        (SCHEMA_VERSION - 1, ConfigError, "older Respool .* respool migrate"),
    ],
)
def test_another_version_is_refused(
    migrated: Roles, version: int, error: type[RespoolError], said: str
) -> None:
    migrated.execute(f"UPDATE s{migrated.suffix}.version SET version = {version}")
    for kind in ("worker", "producer"):
        with pytest.raises(error, match=said):
            shop(migrated.of(kind)).tasks["add"].delay(1, 2)
    with pytest.raises(error, match=said):
        migrate(parse_url(migrated.of("owner")))


def test_producer_sends_large_payloads(migrated: Roles, tmp_path: Path) -> None:
    apps = [
        App("shop", url=migrated.of(kind), blobs=(tmp_path / "blobs").as_uri())
        for kind in ("producer", "worker")
    ]
    tasks = [app.task(name="large")(len) for app in apps]
    sent = [tasks[0].delay("x" * 100_000) for _ in range(2)]
    again = [tasks[0].apply_async(("y" * 100_000,), task_id="one") for _ in range(2)]
    work(apps[1])
    assert [r.get(timeout=5) for r in (*sent, *again)] == [100_000] * 4
    for app in apps:
        app.close()
