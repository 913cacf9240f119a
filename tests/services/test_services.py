"""The services themselves: each starts, answers, stops, and leaves neither a process nor a folder."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
from tests.services import install, kafka
from tests.services.guard import family, started
from tests.services.kafka import KafkaServer, brokers
from tests.services.keeper import joined
from tests.services.pgbouncer import PgBouncer
from tests.services.postgres import PostgresServer
from tests.services.process import ServiceError, answers, free_port
from tests.services.versions import NEWEST

ROOT = Path(__file__).resolve().parents[2]


def until(holds, timeout=20.0):
    """Wait until something holds that has no way to tell."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def gone(server_pids, folder, port):
    return not any(started(pid) for pid in server_pids) and not folder.exists() and not answers(port)


def hello(port):
    """Ask whether TLS is spoken, the first thing a PostgreSQL client may say; return the answer: S or N."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(struct.pack(">ii", 8, 80877103))
        return connection.recv(1)


@pytest.fixture(params=["debian", "newest"])
def programs(request):
    return None if request.param == "debian" else NEWEST.programs()


def test_postgres_starts_answers_and_leaves_nothing(programs):
    with PostgresServer(programs) as server:
        assert hello(server.address.port) == b"N"
        pids, folder = family(server.pid), server.folder
        assert len(pids) > 1
        assert all(os.stat(f"/proc/{pid}").st_uid != 0 for pid in pids)
        url = server.create_database("shop")
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
            assert connection.execute("SHOW unix_socket_directories").fetchone() == ("",)
    assert gone(pids, folder, server.address.port)


def test_postgres_wants_its_password():
    with PostgresServer(fsync=False) as server:
        url = server.url().replace(server.address.password, "guess")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url)


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_postgres_keeps_its_data_and_address_over_a_restart(mode):
    with PostgresServer() as server:
        server.address.execute("CREATE TABLE kept (x int)")
        server.address.execute("INSERT INTO kept VALUES (7)")
        if mode == "kill":
            server.kill()
            assert not answers(server.address.port)
            server.start()
        else:
            server.restart(mode)
        assert server.address.execute("SELECT x FROM kept") == [(7,)]


def test_paused_postgres_is_silent_and_goes_on():
    with PostgresServer(fsync=False) as server, psycopg.connect(server.url(), autocommit=True) as connection:
        server.pause()
        connection.pgconn.send_query(b"SELECT 1")
        with socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.settimeout(0.3)
            with pytest.raises(TimeoutError):
                wire.recv(1, socket.MSG_PEEK)
            server.resume()
            wire.settimeout(10)
            assert wire.recv(1, socket.MSG_PEEK)
        while connection.pgconn.get_result() is not None:
            continue


def test_paused_and_killed_servers_leave_nothing():
    with PostgresServer(fsync=False) as paused, PostgresServer(fsync=False) as killed:
        paused.pause()
        pids = family(paused.pid) + family(killed.pid)
        segment = (killed.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        killed.kill()
    assert gone(pids, paused.folder, paused.address.port)
    assert gone(pids, killed.folder, killed.address.port)
    segments = [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]
    assert segment not in segments


def test_standby_has_every_commit_and_takes_over(programs):
    with PostgresServer(programs, fsync=False) as primary:
        primary.address.execute("CREATE TABLE kept (x int)")
        with primary.standby() as standby:
            primary.address.execute("INSERT INTO kept VALUES (1)")
            primary.kill()
            standby.promote()
            standby.address.execute("INSERT INTO kept VALUES (2)")
            assert standby.address.execute("SELECT x FROM kept ORDER BY x") == [(1,), (2,)]


def test_pgbouncer_pools_every_database():
    with PostgresServer(fsync=False) as server, PgBouncer(server.address) as pooler:
        server.create_database("shop")
        assert hello(pooler.address.port) == b"N"
        pids = family(pooler.pid)
        assert os.stat(f"/proc/{pooler.pid}").st_uid != 0
        with psycopg.connect(pooler.url("shop"), autocommit=True, prepare_threshold=None) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("shop",)
        assert pooler.address.execute("SHOW VERSION", database="pgbouncer")[0][0].startswith("PgBouncer")
    assert gone(pids, pooler.folder, pooler.address.port)


def test_kafka_starts_answers_and_leaves_nothing():
    with KafkaServer() as server:
        assert brokers(server.port) == {server.port}
        pids = family(server.pid)
        assert os.stat(f"/proc/{server.pid}").st_uid != 0
        server.pause()
        assert brokers(server.port) == set()
        server.resume()
        until(lambda: brokers(server.port) == {server.port})
        server.restart()
        pids += family(server.pid)
        assert brokers(server.port) == {server.port}
    assert gone(pids, server.folder, server.port)


def test_kafka_starts_without_a_head_start_and_with_a_broken_one(monkeypatch):
    with tempfile.TemporaryDirectory() as broken:
        os.chmod(broken, 0o755)
        Path(broken, "classes.jsa").write_bytes(bytes(range(256)) * 100)
        monkeypatch.setattr(kafka, "head_start", lambda: Path(broken))
        with KafkaServer() as server:
            assert brokers(server.port) == {server.port}
            formatted = (server.folder / "data/meta.properties").read_text()
    monkeypatch.undo()
    kafka.make_head_start()
    assert {path.name for path in kafka.head_start().iterdir()} == {"classes.jsa", "bootstrap.checkpoint"}
    with KafkaServer() as server:
        assert brokers(server.port) == {server.port}
        names = [line.split("=")[0] for line in formatted.splitlines() if not line.startswith("#")]
        written = (server.folder / "data/meta.properties").read_text()
        assert sorted(names) == sorted(line.split("=")[0] for line in written.splitlines() if line[0] != "#")


def test_kafka_cluster_goes_on_without_one():
    with kafka.cluster() as cluster:
        ports = {server.port for server in cluster.servers}
        assert [brokers(port) for port in ports] == [ports] * 3
        away = cluster.servers[0]
        away.kill()
        left = ports - {away.port}
        until(lambda: all(brokers(port) == left for port in left), 60)
    assert not any(answers(port) or server.folder.exists() for server in cluster.servers for port in ports)


def test_server_dies_with_its_owner():
    code = (
        "import os, signal\n"
        "from tests.services.guard import family\n"
        "from tests.services.postgres import PostgresServer\n"
        "server = PostgresServer(fsync=False); server.start()\n"
        "print(server.folder, server.address.port, *family(server.pid), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60
    )
    folder, port, *pids = done.stdout.split()
    assert done.returncode == -signal.SIGKILL
    assert len(pids) > 1
    until(lambda: gone(map(int, pids), Path(folder), int(port)))


def test_failed_start_shows_the_log_and_leaves_nothing():
    server = PostgresServer(settings={"shared_buffers": "much"})
    with pytest.raises(ServiceError, match='invalid value for parameter "shared_buffers": "much"'):
        server.__enter__()
    assert not server.folder.exists()


RUN = """
import os, pytest
from pathlib import Path

@pytest.mark.parametrize("number", range(6))
def test_it(number, database, postgres):
    import psycopg
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone() == (0,)
        connection.execute("CREATE TABLE t (x int)")
        folder = connection.execute("SHOW data_directory").fetchone()[0]
    with Path(__file__).with_name("seen").open("a") as seen:
        seen.write(f"{postgres.port} {folder}\\n")
    if number == {crash}:
        os._exit(3)
"""


@pytest.mark.parametrize(("workers", "crash"), [(0, -1), (2, -1), (2, 0)])
def test_a_run_has_one_server_gone_with_the_run(tmp_path, workers, crash):
    Path(tmp_path, "test_run.py").write_text(RUN.replace("{crash}", str(crash)))
    options = f"-q -n {workers} -p tests.services.fixtures -p no:cacheprovider -W error".split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--basetemp", str(tmp_path / "base"), "test_run.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert ("6 passed" if crash < 0 else "1 failed, 5 passed") in done.stdout, done.stdout
    seen = {tuple(line.split()) for line in Path(tmp_path, "seen").read_text().splitlines()}
    assert len(seen) == 1, "one server for all"
    ((port, folder),) = seen
    assert not answers(int(port)), "it has stopped before the run ended"
    assert not Path(folder).parent.exists()


def test_shared_server_goes_with_the_controller(tmp_path):
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as controller,
        joined(tmp_path, "postgres", controller.pid) as told,
    ):
        assert answers(told["port"])
        controller.kill()
        until(lambda: not answers(told["port"]))


def test_shared_server_is_started_anew_after_the_last_has_left(tmp_path):
    with joined(tmp_path, "postgres", os.getpid()) as first:
        with joined(tmp_path, "postgres", os.getpid()) as again:
            assert first == again
        assert answers(first["port"]), "one has left, one is there"
    assert not answers(first["port"])
    with joined(tmp_path, "postgres", os.getpid()) as second:
        assert answers(second["port"])


def test_keeper_tells_why_it_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    shared = joined(tmp_path, "kafka", os.getpid())
    with pytest.raises(ServiceError, match=r"kafka did not start: Java is missing. Run: .* --prepare"):
        shared.__enter__()


def test_databases_are_fresh_and_pooled(database, pooled_database, topic_prefix):
    assert database != pooled_database
    with psycopg.connect(pooled_database, prepare_threshold=None) as connection:
        connection.execute("CREATE TABLE t (x int)")
    assert topic_prefix.endswith("-")


def test_missing_programs_name_the_command(monkeypatch):
    monkeypatch.setattr(install, "find", lambda program: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServiceError, match=r"apt-get install -y --no-install-recommends pgbouncer$"):
        install.prepare(["pgbouncer"])
    with pytest.raises(ServiceError, match=r"PgBouncer is missing. Run: python -m tests.services --prepare"):
        install.require("pgbouncer")


def test_unfinished_download_is_not_taken_for_a_finished_one(tmp_path):
    target = tmp_path / "made"

    def break_off():
        with install.made_once(target) as place:
            (place / "half").touch()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        break_off()
    assert not target.exists()
    with install.made_once(target) as place:
        (place / "whole").touch()
    with install.made_once(target) as place:
        assert place is None
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made.lock"}


def test_command_prints_the_urls_and_stops_on_interrupt():
    command = [sys.executable, "-m", "tests.services", "--only", "postgres,pgbouncer"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert [line.split()[0] for line in lines] == ["postgres", "pgbouncer", "Ctrl-C"]
    for line in lines[:2]:
        assert not answers(int(line.rpartition("/")[0].rpartition(":")[2]))


def test_preparing_is_quick_where_all_is_there():
    command = [sys.executable, "-m", "tests.services", "--prepare"]
    before = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert time.monotonic() - before < 5  # 0.2 s on a quiet machine


def test_ports_are_free_and_not_given_twice():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert not any(answers(port) for port in ports)


def test_temporary_folder_closed_to_the_servers_user(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if os.geteuid() != 0:
        with PostgresServer() as server:
            assert server.folder.parent == tmp_path
        return
    with pytest.raises(ServiceError, match="set TMPDIR to a folder open to all"):
        PostgresServer()
    assert list(tmp_path.iterdir()) == []
