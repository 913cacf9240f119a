"""--since and --until: what is understood, and that it is said."""

from datetime import UTC, datetime

import click
import pytest
from click.testing import CliRunner

from respool.cli import main, moments
from respool.cli.moments import Spoken, window

TEN = datetime(2026, 3, 10, 10, tzinfo=UTC)


@pytest.fixture
def at_ten(folder, monkeypatch):
    monkeypatch.setattr(moments, "present", lambda: TEN.astimezone())


def shown(found):
    return [None if at is None else f"{datetime.fromtimestamp(at, UTC):%d %H:%M}" for at in found]


@pytest.mark.parametrize(
    ("since", "until", "meant"),
    [
        ("09:00", None, ["10 09:00", None]),
        ("23:00", None, ["09 23:00", None]),
        (None, "23:00", [None, "09 23:00"]),
        ("23:00", "23:30", ["09 23:00", "09 23:30"]),
        ("23:00", "01:00", ["09 23:00", "10 01:00"]),
        ("09:00", "16:00", ["10 09:00", "10 16:00"]),  # still going on
        ("2026-03-08", "16:00", ["08 00:00", "09 16:00"]),
    ],
)
def test_a_time_of_day_is_the_last(at_ten, since, until, meant):
    given = [None if text is None else Spoken.read(text) for text in (since, until)]
    assert shown(window(*given)) == meant
    if since and until:
        assert shown(window(None, None, tuple(given))) == meant


@pytest.mark.parametrize(("since", "until"), [("09:00", "08:00"), ("1h", "2h"), ("2026-03-08", "2026-03-08")])
def test_a_window_without_time_in_it_is_an_error(at_ten, since, until):
    with pytest.raises(click.UsageError, match="the first moment must be before the second"):
        window(Spoken.read(since), Spoken.read(until))


def test_a_moment_that_may_be_misread_is_told_on_stderr(at_ten, app):
    id = app.tasks["add"].delay(1, 2).id
    found = CliRunner().invoke(main, ["-A", "shop", "calls", "--since", "23:00"], prog_name="respool")
    assert id in found.stdout
    assert found.stderr == (
        "--since 23:00: still to come today, so yesterday's is taken, 2026-03-09 23:00:00 UTC\n"
    )
    found = CliRunner().invoke(main, ["-A", "shop", "calls", "--since", "2999-01-31"], prog_name="respool")
    assert found.stderr == (
        "--since 2999-01-31: 2999-01-31 00:00:00 UTC is still to come, so there is nothing from then on yet\n"
    )
    assert "No calls match these options from 2999-01-31 00:00:00 UTC." in found.stdout
    found = CliRunner().invoke(main, ["-A", "shop", "calls", "--since", "09:00"], prog_name="respool")
    assert found.stderr == ""


@pytest.mark.parametrize(
    ("since", "until", "told"),
    [
        ("14:00", "13:00", "today's is taken, 2026-03-10 13:00:00 UTC, which is still to come"),
        ("09:00", "16:00", "today's is taken, 2026-03-10 16:00:00 UTC, which is still to come"),
        ("23:00", "23:30", "so yesterday's is taken, 2026-03-09 23:30:00 UTC"),
        ("23:00", "01:00", None),
        ("09:00", "2999-01-31", None),
    ],
)
def test_the_end_of_a_window_is_told_as_its_beginning_is(at_ten, capsys, since, until, told):
    for option, given in (
        ("--until", (Spoken.read(since), Spoken.read(until))),
        ("--between", (None, None, (Spoken.read(since), Spoken.read(until)))),
    ):
        window(*given)
        lines = [line for line in capsys.readouterr().err.splitlines() if f" {until}: " in line]
        assert len(lines) == (told is not None)
        if told is not None:
            assert lines[0].startswith(f"{option} {until}: ")
            assert lines[0].endswith(told)


@pytest.mark.parametrize(
    "args",
    [
        ["calls", "--between", "23:00", "23:30"],
        ["export", "--queue", "default", "--since", "23:00"],
        ["dead", "list", "--since", "23:00"],
        ["compare", "main", "main", "--queue", "default", "--since", "23:00"],
        ["replay", "--queue", "default", "--group", "v2", "--task", "add", "--since", "23:00", "--dry-run"],
        ["groups", "create", "v3", "--queue", "default", "--start", "23:00"],
        ["seek", "main", "--queue", "default", "--to", "23:00", "--dry-run"],
    ],
)
def test_every_command_that_takes_a_moment_tells_it(at_ten, app, args):
    app.tasks["add"].delay(1, 2)
    found = CliRunner().invoke(main, ["-A", "shop", *args], prog_name="respool")
    nothing_to_compare = args[0] == "compare"
    assert found.exit_code == nothing_to_compare, found.output
    assert "23:00: still to come today, so yesterday's is taken, 2026-03-09 23:00:00 UTC" in found.stderr


def test_a_replay_says_up_to_when_it_was_understood_to_go(cli, app):
    app.tasks["add"].delay(1, 2)
    given = ("-A", "shop", "replay", "--queue", "default", "--group", "v2", "--all-tasks")
    assert "from the beginning to the end as of now, 2" in cli(*given)
    app.tasks["add"].delay(3, 4)
    again = cli(*given)
    assert "is there already and runs 1 call of queue default, from the beginning to the end as of 2" in again
    assert ", when it was made." in again
