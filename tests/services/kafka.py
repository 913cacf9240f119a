"""Kafka without ZooKeeper or containers: one broker, or a cluster of them, each its own controller too."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import socket
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from tests.services.install import PREPARE, cache_folder, java, made_once, maven
from tests.services.process import Server, ServiceError, free_port, unprivileged

VERSION = "4.1.1"
_ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.apache.logging.log4j", "log4j-core", "2.25.2"),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.2"),
)
JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")  # a quick start; nothing in /tmp
"""How Java is run."""
_CLASSES = "classes.jsa"
_CHECKPOINT = "data/bootstrap.checkpoint"
_LOGGING = """
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


def libraries() -> Path:
    """Return the folder of its jars."""
    return cache_folder() / f"kafka-{VERSION}"


def present() -> bool:
    """Return whether it has been fetched."""
    return libraries().exists()


def fetch() -> None:
    """Fetch its jars where that was not done."""
    with made_once(libraries()) as target:
        if target is None:
            return
        dependencies = "".join(
            f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version></dependency>"
            for group, artifact, version in _ARTIFACTS
        )
        pom = target.parent / "pom.xml"  # beside it, so not kept
        pom.write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>tests</groupId>"
            "<artifactId>services</artifactId>"
            f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
        )
        maven(
            target.parent,
            "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={target}",
        )


def head_start() -> Path:
    """Return the folder of what makes a broker start in less time: for this Java, and this Kafka.

    Its classes as Java has them in memory, and what formatting writes. Without it a start is the same, but
    slower: 1 s of the processor's time becomes 2.5.
    """
    program = java()
    assert program is not None
    modules = Path(program).resolve().parents[1] / "lib" / "modules"
    about = f"{modules} {modules.stat().st_mtime_ns if modules.exists() else 0} {JVM}"
    return (
        cache_folder() / f"kafka-{VERSION}-start-{hashlib.blake2b(about.encode(), digest_size=6).hexdigest()}"
    )


def make_head_start() -> None:
    """Make it where that was not done: by a broker that starts and stops."""
    with made_once(head_start()) as target:
        if target is not None:
            server = KafkaServer()
            server._keeps_classes = True
            with server:
                server.stop()
                for name in (_CLASSES, _CHECKPOINT):
                    if (made := server.folder / name).exists():  # a Java without its own archive makes none
                        shutil.copyfile(made, target / Path(name).name)


class Listener(NamedTuple):
    """One more way into a broker."""

    name: str
    port: int
    told: int  # the port that its clients are told: a proxy's, say
    protocol: str = "PLAINTEXT"  # or SSL, SASL_PLAINTEXT, SASL_SSL


class KafkaServer(Server):
    """A broker that is its own controller, on free ports of 127.0.0.1. Topics are not created by accident.

    Parameters:
        settings: More for server.properties.
        listeners: More ways in, beside the plain one.
        parent: Where its folder is to be; else where temporary files are.
    """

    name: ClassVar[str] = "kafka"
    quit: ClassVar[signal.Signals] = signal.SIGKILL  # its folder goes with it: nothing is worth a flush

    def __init__(
        self,
        settings: Mapping[str, str | int] | None = None,
        listeners: Sequence[Listener] = (),
        parent: Path | None = None,
    ) -> None:
        program = java()
        if program is None or not present():
            raise ServiceError(f"Kafka or Java is missing. Run: {PREPARE} --only kafka")
        super().__init__(parent)
        self._java, self._settings, self._listeners = program, dict(settings or {}), tuple(listeners)
        self.node = 1
        self.port, self.controller_port = free_port(), free_port()
        self._cluster = _random_id()
        self._nodes: list[KafkaServer] = [self]
        self._keeps_classes = False

    @property
    def address(self) -> str:
        """What clients call bootstrap.servers."""
        return f"127.0.0.1:{self.port}"

    def url(self) -> str:
        """Return its URL."""
        return f"kafka://{self.address}"

    def prepare(self) -> None:
        """Write its configuration and format its folder, once."""
        if (self._folder / "data").exists():
            return
        self.write("log4j2.properties", _LOGGING)
        copies = min(3, len(self._nodes))
        voters = ",".join(f"{node.node}@127.0.0.1:{node.controller_port}" for node in self._nodes)
        plain = f"PLAINTEXT://{self.address}"
        more = [f"{each.name}://127.0.0.1:{each.port}" for each in self._listeners]
        told = [f"{each.name}://127.0.0.1:{each.told}" for each in self._listeners]
        protocols = [f"{each.name}:{each.protocol}" for each in self._listeners]
        settings: dict[str, str | int] = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "listeners": ",".join([f"{plain},CONTROLLER://127.0.0.1:{self.controller_port}", *more]),
            "advertised.listeners": ",".join([plain, *told]),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": ",".join(
                ["PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", *protocols]
            ),
            "controller.quorum.voters": voters,
            "log.dirs": str(self._folder / "data"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": max(1, copies - 1),
            "share.coordinator.state.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
            "broker.session.timeout.ms": 3000,  # a killed one comes back only after it
            "broker.heartbeat.interval.ms": 500,
            "log.cleaner.dedupe.buffer.size": 2097152,
            **self._settings,
        }
        properties = self.write(
            "server.properties", "".join(f"{name}={value}\n" for name, value in settings.items())
        )
        self._format(properties)

    def _format(self, properties: Path) -> None:
        """Write what its folder must have: by Kafka's tool, or what that wrote once, with these names."""
        checkpoint = head_start() / Path(_CHECKPOINT).name
        if not checkpoint.exists():
            tool = [*self._run_java(64, 128), "kafka.tools.StorageTool", "format"]
            self.run([*tool, "-t", self._cluster, "-c", properties])
            return
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if (user := unprivileged()) is not None:
            os.chown(data, user.pw_uid, user.pw_gid)
        names = {
            "version": 1,
            "cluster.id": self._cluster,
            "node.id": self.node,
            "directory.id": _random_id(),
        }
        self.write("data/meta.properties", "".join(f"{name}={value}\n" for name, value in names.items()))
        self.write(_CHECKPOINT, "").write_bytes(checkpoint.read_bytes())

    def command(self) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        classes = head_start() / _CLASSES
        if self._keeps_classes:
            shared = [f"-XX:ArchiveClassesAtExit={self._folder / _CLASSES}"]
        elif classes.exists():
            shared = [
                f"-XX:SharedArchiveFile={classes}",
                "-Xshare:auto",
                "-Xlog:cds=off",
                "-Xlog:cds+dynamic=off",
            ]
        else:
            shared = []
        java = self._run_java(192, 384)
        return [java[0], *shared, *java[1:], "kafka.Kafka", self._folder / "server.properties"]

    def ready(self) -> bool:
        """Return whether it knows of itself as a broker at work, as clients are told."""
        return self.port in brokers(self.port)

    def _run_java(self, least: int, most: int) -> list[str]:
        return [
            self._java,
            f"-Xms{least}m",
            f"-Xmx{most}m",
            *JVM,
            f"-Djava.io.tmpdir={self._folder}",
            f"-Dlog4j2.configurationFile={self._folder / 'log4j2.properties'}",
            "-cp",
            f"{libraries()}/*",
        ]


class KafkaCluster:
    """Brokers that are one cluster; a context manager, like each of them."""

    def __init__(self, servers: Sequence[KafkaServer]) -> None:
        self.servers = list(servers)

    @property
    def address(self) -> str:
        """What clients call bootstrap.servers."""
        return ",".join(server.address for server in self.servers)

    def url(self) -> str:
        """Return its URL."""
        return f"kafka://{self.address}"


@contextmanager
def cluster(count: int = 3, settings: Mapping[str, str | int] | None = None) -> Iterator[KafkaCluster]:
    """Run a cluster: the controllers decide by majority, so of three brokers one may be away."""
    with ExitStack() as stack:
        servers: list[KafkaServer] = []
        for node in range(1, count + 1):
            server = KafkaServer(settings)
            stack.callback(server.close)
            servers.append(server)
            server.node, server._cluster, server._nodes = node, servers[0]._cluster, servers
        for server in servers:
            server.prepare()
        for server in servers:  # none is ready before a majority is there
            server._spawn(server.command())
        known = {server.port for server in servers}
        for server in servers:
            server.wait_for(partial(_complete, server, known), "the cluster is not complete", 90.0)
        yield KafkaCluster(servers)


def _complete(server: KafkaServer, known: set[int]) -> bool:
    return brokers(server.port) == known


def brokers(port: int) -> set[int]:
    """Ask a broker which brokers are at work; return their ports, none where it does not answer yet.

    A Metadata request, version 1, for no topics: the protocol itself, so no client is needed.
    """
    request = struct.pack(">hhih", 3, 1, 1, -1) + struct.pack(">i", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _read(connection, 4))
            answer = _read(connection, size)
    except OSError:
        return set()
    (count,) = struct.unpack_from(">i", answer, 4)
    place, found = 8, set()
    for _ in range(count):
        place += 4
        (length,) = struct.unpack_from(">h", answer, place)
        place += 2 + length
        (broker,) = struct.unpack_from(">i", answer, place)
        place += 4
        (length,) = struct.unpack_from(">h", answer, place)
        place += 2 + max(0, length)
        found.add(broker)
    return found


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the broker closed the connection")
        data += more
    return data


def _random_id() -> str:
    """Return 16 bytes as Kafka writes them; a dash at the beginning would be taken for an option."""
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
