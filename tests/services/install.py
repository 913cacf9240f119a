"""What the services need on this machine: installed where it may be, else an error that names the command.

Two sources: Debian's packages (installed by apt, as root only) and Maven's artifacts (kept in a folder of the
caches, so fetched once). `prepare` gets what is missing; `require` only looks, which takes milliseconds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.services.postgres import find_programs
from tests.services.process import ServiceError, reachable

PREPARE = "python -m tests.services --prepare"
_POLICY = Path("/usr/sbin/policy-rc.d")


def cache_folder() -> Path:
    """Return where fetched programs are kept: the user's caches; for root, where its servers' user can read.

    Root's own folders are mostly closed to others.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "respool-tests"
    return folder if reachable(folder) else Path("/var/cache/respool-tests")


@contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """Make a folder of the cache whole or not at all: yield where to make it, None where it is there already.

    It is made beside its place and renamed, so that a run that breaks off leaves nothing that looks finished;
    runs at the same time wait for the one that makes it.
    """
    if target.exists():
        yield None
        return
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            Path(beside).chmod(0o755)
            making = Path(beside, "made")
            making.mkdir()
            yield making
            _open_to_all(making)
            making.rename(target)


def _open_to_all(folder: Path) -> None:
    """Let every user read what is in a folder, whatever this one's umask is."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))


def maven(folder: Path, *arguments: str) -> None:
    """Run Maven in a folder."""
    program = find("mvn")
    if program is None:
        raise ServiceError(f"Maven is missing. {advice(['maven'])}")
    _run([program, "--batch-mode", "--quiet", *arguments], "Maven", folder)


def find(program: str) -> str | None:
    """Return a program's path; an ordinary user's PATH often lacks the folders of servers."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")


def java() -> str | None:
    """Return the Java to run: JAVA_HOME's, else PATH's."""
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=f"{home}/bin") if home else None) or find("java")


def advice(packages: Collection[str]) -> str:
    """Return the command that installs packages, as a sentence."""
    if shutil.which("apt-get") is None:
        return f"Install what Debian calls {', '.join(packages)}."
    names = " ".join(packages)
    return f"As root: apt-get update && apt-get install -y --no-install-recommends {names}"


@dataclass(frozen=True)
class Need:
    """One thing a service needs."""

    what: str
    present: Callable[[], bool]
    package: str = ""  # Debian's that has it
    fetch: Callable[[], object] | None = None  # else what gets it


def needs(service: str) -> list[Need]:
    """Return what a service needs, in the order to get it."""
    from tests.services import kafka
    from tests.services.versions import OTHERS

    has_java = Need("Java", lambda: java() is not None, "openjdk-17-jre-headless")
    if service == "postgres":
        return [Need("PostgreSQL", lambda: find_programs() is not None, "postgresql")]
    if service == "pgbouncer":
        return [*needs("postgres"), Need("PgBouncer", lambda: find("pgbouncer") is not None, "pgbouncer")]
    fetched = {
        "kafka": Need("Kafka", kafka.present, fetch=kafka.fetch),
        **{
            name: Need(f"PostgreSQL {version.number}", version.present, fetch=version.fetch)
            for name, version in OTHERS.items()
        },
    }[service]
    # Maven is needed only to fetch.
    has_maven = Need("Maven", lambda: fetched.present() or find("mvn") is not None, "maven")
    return [*([has_java] if service == "kafka" else []), has_maven, fetched]


def missing(services: Collection[str]) -> list[Need]:
    """Return what services need and this machine lacks."""
    found = {need.what: need for service in services for need in needs(service) if not need.present()}
    return list(found.values())


def require(service: str) -> None:
    """Check that all is there.

    Raises:
        ServiceError: It is not; with the command that gets it.
    """
    lacking = missing([service])
    if lacking:
        raise ServiceError(f"{' and '.join(need.what for need in lacking)} is missing. Run: {PREPARE}")


def prepare(services: Collection[str], tell: Callable[[str], object] = print) -> None:
    """Get what is missing.

    Raises:
        ServiceError: It can't be got; with the command that installs it, or what went wrong.
    """
    lacking = missing(services)
    packages = [need.package for need in lacking if need.package]
    if packages:
        _install(packages, lacking, tell)
    for need in lacking:
        if need.fetch is not None:
            tell(f"fetching {need.what}")
            need.fetch()
    left = missing(services)
    if left:
        raise ServiceError(
            f"{' and '.join(need.what for need in left)} is still missing, though all was installed."
        )
    if "kafka" in services:
        from tests.services import kafka

        kafka.make_head_start()


def _install(packages: Collection[str], lacking: Collection[Need], tell: Callable[[str], object]) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        names = " and ".join(need.what for need in lacking if need.package)
        raise ServiceError(f"{names} must be installed. {advice(packages)}")
    tell(f"installing {' '.join(packages)}")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    with _no_services():
        _run([*apt, "update"], "apt-get update")
        _run([*apt, "install", "-y", "--no-install-recommends", *packages], "apt-get install")


@contextmanager
def _no_services() -> Iterator[None]:
    """Keep packages from starting servers of their own when installed, as these do.

    By Debian's means for it: a program that is asked, and forbids. One that is there already stays.
    """
    try:
        with _POLICY.open("x") as policy:
            policy.write("#!/bin/sh\nexit 101\n")
    except FileExistsError:
        yield
        return
    try:
        _POLICY.chmod(0o755)
        yield
    finally:
        _POLICY.unlink()


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    """Run a command that installs something; its output is shown only if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=900,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-15:])
        raise ServiceError(f"{what} failed with code {done.returncode} ({' '.join(command)}):\n{end}")
