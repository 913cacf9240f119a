"""What the acceptance tests share: an app on each engine, and the commands as people type them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.worker.support import Place, eventually, fresh_url

from respool.cli import main
from respool.testing import work

ENGINES = ("sqlite", "postgres", "kafka")


class Stage(Place):
    """A folder with an app; runs of its calls in this process; commands."""

    def __init__(self, folder: Path, url: str | None) -> None:
        super().__init__(folder, url)
        self.between = datetime.now(UTC)

    def moment(self) -> None:
        """Note a moment: what was sent before is older, what is sent after it younger."""
        self.between = datetime.now(UTC)
        eventually(lambda: datetime.now(UTC) > self.between + timedelta(milliseconds=5))

    def cli(self, *args: str, code: int = 0) -> str:
        """Run a command with the app in this process; return what it printed, on both channels."""
        env = {"RESPOOL_APP": None, "RESPOOL_URL": None}
        done = CliRunner(env=env).invoke(main, ["-A", str(self.path), *args], prog_name="respool")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, f"exit code {done.exit_code}:\n{done.output}"
        return done.output

    def rows(self, *args: str) -> list[Any]:
        """Return what a command prints with --json, one object a line."""
        return [json.loads(line) for line in self.cli(*args, "--json").splitlines()]

    def data(self, *args: str, code: int = 0) -> Any:
        """Return what a command prints with --json, as one document."""
        env = {"RESPOOL_APP": None, "RESPOOL_URL": None}
        given = ["-A", str(self.path), *args, "--json"]
        done = CliRunner(env=env).invoke(main, given, prog_name="respool")
        assert done.exit_code == code, f"exit code {done.exit_code}:\n{done.output}"
        return json.loads(done.stdout)

    def work(self, group: str | None = None) -> None:
        """Run what there is in this process, until nothing is due."""
        work(self.app, group=group)


@pytest.fixture(params=ENGINES)
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    made = Stage(tmp_path, fresh_url(request, request.param))
    yield made
    made.close()
