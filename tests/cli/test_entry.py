"""The command as a whole: start-up, the app's name, errors, exit codes."""

import importlib
import os
import subprocess
import sys

import pytest
from tests.cli.support import in_terminal, python, run, write_shop

from respool.cli import COMMANDS
from respool.errors import EngineUnavailable

ALL = [name for section in COMMANDS.values() for name in section]


def test_help_lists_every_command_and_imports_none(folder):
    result = run("--help", cwd=folder)
    assert result.returncode == 0
    for section in COMMANDS.values():
        for name, short in section.items():
            assert name in result.stdout
            assert short in result.stdout


def test_help_imports_neither_rich_nor_an_engine(folder):
    script = (
        "import sys, respool.cli\n"
        "try: respool.cli.main(['--help'], prog_name='respool')\n"
        "except SystemExit: pass\n"
        "loaded = [m for m in sys.modules if m in ('rich', 'apsw', 'respool.replay', 'respool.worker')\n"
        "          or m.startswith('respool.cli.') and m != 'respool.cli.common']\n"
        "assert not loaded, loaded\n"
    )
    result = python("-c", script, cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("worker", "demo")])
def test_every_help_has_an_example(cli, name):
    text = cli(name, "--help")
    apps = "" if name == "transfer" else "-A shop "  # that one is about two URLs
    assert f"respool {apps}{name}" in text
    assert "--app" in text
    assert "--debug" in text


@pytest.mark.parametrize("name", ALL)
def test_no_help_is_wider_than_a_terminal(cli, name):
    module = importlib.import_module(f"respool.cli.{name}")
    for args in ([name], *([name, sub] for sub in getattr(module.command, "commands", ()))):
        text = cli(*args, "--help")
        assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["list", "show", "redrive"])
def test_commands_of_dead_have_help(cli, name):
    text = cli("dead", name, "--help")
    assert f"respool -A shop dead {name}" in text
    assert "--app" in text


def test_without_arguments_help_is_shown_and_it_is_a_usage_error(cli):
    assert "Commands" not in cli(code=2)
    assert "What waits, runs and failed" in cli(code=2)


def test_a_misspelt_command_is_suggested(cli):
    assert "no command 'wroker'; did you mean 'worker'?" in cli("wroker", code=2)
    assert "no command 'lst'; did you mean 'list'?" in cli("dead", "lst", code=2)
    assert "no command 'zzz'; there are: worker, demo" in cli("zzz", code=2)


def test_app_is_accepted_on_either_side(cli, app):
    app.tasks["add"].delay(1, 2)
    before, after = cli.rows("-A", "shop", "lag"), cli.rows("lag", "-A", "shop")
    assert [row["pending"] for row in before] == [row["pending"] for row in after] == [1, 0, 0]
    assert cli.rows("dead", "-A", "shop", "list") == cli.rows("dead", "list", "-A", "shop") == []


@pytest.mark.parametrize("spec", ["shop", "shop.py", "shop:app", "shop.py:app", "./shop.py", "shop:make"])
def test_forms_of_an_app(cli, folder, spec):
    with (folder / "shop.py").open("a") as file:
        file.write("\ndef make():\n    return app\n")
    assert [row["task"] for row in cli.rows("-A", spec, "tasks")] == ["add", "fetch", "mail", "audit"]


def test_a_factory_in_a_package(cli, folder):
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").touch()
    (folder / "pkg" / "mod.py").write_text(
        "from respool import App\n"
        "def factory():\n"
        "    app = App('other')\n"
        "    app.task(name='t')(lambda: None)\n"
        "    return app\n"
    )
    assert [row["task"] for row in cli.rows("-A", "pkg.mod:factory", "tasks")] == ["t"]


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_file_of_a_package_is_named_as_a_module(cli, folder, monkeypatch, is_marked):
    shop = folder / "trade" / "shop"
    shop.mkdir(parents=True)
    (shop / "app.py").write_text("from respool import App\napp = App('trade')\n")
    (shop / "worker.py").write_text("from .app import app\napp.task(name='t')(lambda: None)\n")
    (shop / "other.py").write_text("import worker\n")
    root, name = (folder, "trade.shop.worker") if is_marked else (folder / "trade", "shop.worker")
    for place in (shop, shop.parent) if is_marked else ():
        (place / "__init__.py").touch()
    told = f"worker.py has relative imports, so it is part of a package: name it as a module, -A {name}"
    monkeypatch.chdir(root)
    assert cli("-A", f"{shop.relative_to(root)}/worker.py:app", "lag", code=2) == f"Error: {told}\n"
    monkeypatch.chdir(shop)
    where = f", where {root} is the working directory"
    assert cli("-A", "worker", "lag", code=2) == f"Error: {told}{where}\n"
    assert "other could not be imported: ImportError: attempted relative import" in cli(
        "-A", "other", "lag", code=1
    ), "which only its author can mend"
    assert '"t"' in run("-A", name, "tasks", "--json", cwd=root).stdout


def test_app_from_the_environment_and_from_pyproject(folder):
    (folder / "pyproject.toml").write_text('[tool.respool]\napp = "shop"\n')
    assert '"add"' in run("tasks", "--json", cwd=folder).stdout
    write_shop(folder, "from respool import App\napp = App('b')\n@app.task\ndef other(): ...\n", "b")
    assert '"other"' in run("tasks", "--json", cwd=folder, RESPOOL_APP="b").stdout
    assert '"add"' in run("-A", "shop", "tasks", "--json", cwd=folder, RESPOOL_APP="b").stdout
    below = folder / "deep" / "er"
    below.mkdir(parents=True)
    assert '"add"' in run("tasks", "--json", cwd=below).stdout


def test_bad_settings_in_pyproject(cli, folder):
    (folder / "pyproject.toml").write_text('[tool.respool]\nap = "shop"\n')
    assert "[tool.respool] has no setting 'ap'; did you mean 'app'?" in cli("tasks", code=2)
    (folder / "pyproject.toml").write_text("[tool.respool]\napp = 3\n")
    assert "[tool.respool] app = 3 is not text" in cli("tasks", code=2)
    (folder / "pyproject.toml").write_text("[tool.")
    assert "pyproject.toml cannot be read" in cli("tasks", code=2)


def test_no_app_is_named(cli):
    text = cli("tasks", code=2)
    assert "Error: no app: name it with -A shop" in text
    assert "RESPOOL_APP" in text
    assert "no app and no log" in cli("lag", code=2)


def test_module_that_is_not_there(cli):
    text = cli("-A", "shpo", "lag", code=2)
    assert "there is no module 'shpo'" in text
    assert "did you mean 'shop'?" in text
    assert "Traceback" not in text
    assert "there is no file gone.py" in cli("-A", "gone.py", "lag", code=2)
    assert "neither a module's name nor a .py file" in cli("-A", "some/where", "lag", code=2)
    assert "before the colon" in cli("-A", ":app", "lag", code=2)


def test_module_that_fails_shows_its_own_traceback(cli, folder):
    write_shop(folder, "import nothing_like_it\n", "broken")
    text = cli("-A", "broken", "lag", code=1)
    assert "ModuleNotFoundError: No module named 'nothing_like_it'" in text
    assert 'broken.py", line 1' in text
    assert "there is no module" not in text
    assert "importlib" not in text
    write_shop(folder, "def f():\n    1 / 0\nf()\n", "zero")
    text = cli("-A", "zero", "lag", code=1)
    assert "ZeroDivisionError" in text
    assert 'zero.py", line 2' in text


def test_module_that_is_a_program(cli, folder):
    write_shop(folder, "import sys\nsys.exit('done')\n", "program")
    assert "called sys.exit('done') on import" in cli("-A", "program", "lag", code=1)


def test_a_setting_that_cannot_be_is_a_usage_error_also_where_the_app_is_made(cli, folder):
    write_shop(folder, "from respool import App\napp = App('odd', worker_tll=5)\n", "odd")
    text = cli("-A", "odd", "lag", code=2)
    assert "odd could not be imported: UnknownName: unknown setting 'worker_tll'; did you mean" in text
    assert 'odd.py", line 2' in text
    for pool in ("processes", "solo"):
        result = run("-A", "odd", "worker", "-P", pool, "--burst", cwd=folder)
        assert result.returncode == 2, result.stderr
        assert "unknown setting 'worker_tll'" in result.stderr


@pytest.mark.parametrize("app", [(), ("-A", "shop")])
def test_what_a_variable_says_wrongly_names_the_variable(folder, app):
    result = run(*app, "lag", cwd=folder, RESPOOL_URL="redis://somewhere")
    assert result.returncode == 2
    assert "RESPOOL_URL: no engine for redis" in result.stderr
    result = run("lag", cwd=folder, RESPOOL_APP="shpo")
    assert result.returncode == 2
    assert "RESPOOL_APP=shpo: there is no module 'shpo'" in result.stderr


def test_module_without_or_with_several_apps(cli, folder):
    write_shop(folder, "x = 1\n", "none")
    assert "module none has no App" in cli("-A", "none", "lag", code=2)
    write_shop(folder, "from respool import App\na = App('a')\nb = App('b')\nc = a\n", "two")
    text = cli("-A", "two", "lag", code=2)
    assert "several Apps" in text
    assert "two:b" in text
    assert cli.rows("-A", "two:b", "tasks") == []


def test_name_that_is_not_there_or_no_app(cli):
    assert "did you mean 'app'?" in cli("-A", "shop:ap", "tasks", code=2)
    assert "not an App" in cli("-A", "shop:__name__", "tasks", code=2)


def test_a_factory_that_fails(cli, folder):
    write_shop(folder, "def make():\n    1 / 0\n\ndef of(x): ...\n", "factory")
    text = cli("-A", "factory:make", "tasks", code=1)
    assert "factory:make() failed: ZeroDivisionError" in text
    assert 'factory.py", line 2' in text
    assert "missing 1 required positional argument: 'x'" in cli("-A", "factory:of", "tasks", code=1)


def test_debug_shows_where_an_error_comes_from(cli):
    assert "Traceback" not in cli("-A", "shpo", "lag", code=2)
    assert "Traceback" in cli("--debug", "-A", "shpo", "lag", code=2)
    assert "Traceback" in cli("lag", "-A", "shpo", "--debug", code=2)


def test_url_alone_needs_no_code(cli, app, folder):
    app.tasks["add"].delay(1, 2)
    (folder / "shop.py").rename(folder / "gone.txt")
    url = f"sqlite:///{folder}/respool.db"
    assert [row["pending"] for row in cli.rows("--url", url, "lag")] == [1, 0, 0]
    assert len(cli.rows("calls", "--url", url)) == 1
    assert [row["name"] for row in cli.rows("--url", url, "-A", "shop", "queues")] == ["default", "fast"]
    assert len(cli.rows("lag")) == 3, "the log of this folder is found without any option"


def test_a_url_that_cannot_be(cli):
    assert "there is no database at" in cli("--url", "sqlite:///nowhere.db", "lag", code=2)
    assert "no engine for http" in cli("--url", "http://x", "lag", code=2)
    assert "did you mean 'durability'?" in cli("--url", "sqlite:///x.db?durabilty=os", "lag", code=2)
    assert "in memory" in cli("--url", "sqlite:///:memory:", "lag", code=2)
    assert "no log yet at" in cli("-A", "shop", "lag", code=2)


def test_only_a_command_that_sends_is_told_that_nothing_was_sent(cli, app, monkeypatch):
    app.tasks["add"].delay(1, 2)
    app.close()

    def locked(*args, **kwargs):
        raise EngineUnavailable("respool.db was locked; nothing was sent")

    monkeypatch.setattr("respool.opened.open_engine", locked)
    assert cli("-A", "shop", "call", "add", "1", "2", code=1).endswith("was locked; nothing was sent\n")
    assert cli("-A", "shop", "lag", code=1).endswith("respool.db was locked\n")


def test_a_file_that_is_no_log(cli, folder):
    (folder / "x.db").write_text("not a database, but long enough to look like one " * 50)
    assert "Error: " in cli("--url", "sqlite:///x.db", "check", code=1)


def test_usage_errors(cli):
    assert "'soon' is no moment" in cli("-A", "shop", "calls", "--since", "soon", code=2)
    assert "no such option" in cli("-A", "shop", "lag", "--jsn", code=2).lower()


def test_two_apps_on_one_log(cli, app, folder):
    app.tasks["add"].delay(1, 2)
    write_shop(folder, "from respool import App\napp = App('blog')\n@app.task\ndef post(): ...\n", "blog")
    cli("-A", "blog", "call", "post")
    url = f"sqlite:///{folder}/respool.db"
    table = cli("--url", url, "lag")
    assert "shop/default" in table
    assert "blog/default" in table
    assert [row["name"] for row in cli.rows("-A", "blog", "lag")] == ["default"]
    table = cli("-A", "blog", "check")
    assert "shop/default" in table, "check is of all apps, and says which"
    assert "blog/default" in table
    assert "several apps have a queue default: blog, shop" in cli(
        "--url", url, "purge", "--queue", "default", "--yes", code=2
    )


WIDE_TABLES = ("lag", "calls", "queues", "groups list", "check", "streams", "tasks")


@pytest.fixture
def wide(app):
    name = "a_task_with_a_rather_long_name_" * 3
    app.queue("queue_of_a_long_name_" * 4)
    app.task(name=name)(lambda: None)
    app.send_task(name, (), queue="queue_of_a_long_name_" * 4)
    return name


@pytest.mark.parametrize("command", WIDE_TABLES)
@pytest.mark.usefixtures("wide")
def test_tables_fit_a_terminal(folder, app, command):
    code, text = (
        in_terminal("--url", app.url, *command.split(), cwd=folder)
        if command != "tasks"
        else (in_terminal("-A", "shop", "tasks", cwd=folder))
    )
    assert code == 0, text
    for line in text.splitlines():
        if "no worker serves" not in line and "sqlite:" not in line:  # sentences, which may wrap
            assert len(line) <= 80, line


@pytest.mark.parametrize("command", WIDE_TABLES)
@pytest.mark.usefixtures("wide")
def test_what_goes_into_a_pipe_is_neither_cut_nor_left_out(folder, app, command):
    """Not even where the shell exports the width of its terminal."""
    which = ("-A", "shop") if command == "tasks" else ("--url", app.url)
    result = run(*which, *command.split(), cwd=folder, COLUMNS="40")
    assert result.returncode == 0, result.stderr
    assert "…" not in result.stdout.replace("-A …", "")
    assert "left out" not in result.stdout
    if command != "tasks":
        assert command == "streams" or "queue_of_a_long_name_" * 4 in result.stdout


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (("help",), ("--help",)),
        (("help", "lag"), ("lag", "--help")),
        (("-A", "shop", "help", "lag"), ("lag", "--help")),
        (("help", "dead", "redrive"), ("dead", "redrive", "--help")),
        (("dead", "help"), ("dead", "--help")),
        (("dead", "help", "redrive"), ("dead", "redrive", "--help")),
    ],
)
def test_help_is_a_command_too(cli, asked, same):
    assert cli(*asked) == cli(*same)


def test_help_of_what_is_not_there(cli):
    assert "no command 'lga'; did you mean 'lag'?" in cli("help", "lga", code=2)


@pytest.mark.parametrize("group", ["dead", "groups"])
def test_the_commands_of_a_group_are_listed_in_full(cli, group):
    assert "..." not in cli(group, "--help").replace("[ARGS]...", "")


def test_a_misspelt_state_is_suggested(cli):
    text = cli("-A", "shop", "calls", "--state", "failed", code=2)
    assert "no state 'failed'; did you mean 'FAILURE'?" in text
    assert "known: FAILURE, PENDING" in cli("-A", "shop", "calls", "--state", "zzz", code=2)


def test_a_question_mark_ends_a_suggestion(cli):
    text = cli("-A", "shop", "call", "ad", code=2)
    assert "unknown task 'ad'; did you mean 'add'? (in app shop)" in text


def test_a_module_with_a_syntax_error_shows_its_own_lines_only(cli, folder):
    write_shop(folder, "from respool import App\napp = App('x'\ndef f(:\n", "typo")
    for text in (
        cli("-A", "typo", "lag", code=1),
        run("-A", "typo", "worker", "--burst", "-c", "1", cwd=folder).stderr,
    ):
        assert "SyntaxError" in text
        assert 'typo.py", line' in text
        assert "respool/" not in text
        assert "importlib" not in text


def test_an_error_at_import_shows_the_frames_of_its_author_only(cli, folder):
    code = "from shop import add\n\ndef send():\n    add.delay('one', 2)\n\nsend()\n"
    write_shop(folder, code, "sender")
    for text in (
        cli("-A", "sender", "lag", code=1),
        run("-A", "sender", "worker", "--burst", "-c", "1", cwd=folder).stderr,
    ):
        assert "BadArguments: add(): argument 'x' should be int, got 'one'" in text
        assert 'sender.py", line 6' in text
        assert 'sender.py", line 4, in send' in text
        assert "respool/" not in text
        assert "importlib" not in text


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["worker", "--loglevel", "INFO"], "no option --loglevel: logging is set up where the app's module"),
        (["worker", "--loglevel=INFO"], "no option --loglevel: logging is set up"),
        (["worker", "-l", "info"], "no option -l: logging is set up where"),
        (["worker", "-B"], "no option -B: there is no beat"),
        (["worker", "--autoscale", "10,3"], "no option --autoscale: there is none; -c says how many"),
        (["worker", "--concurency", "3"], "--concurency"),
        (["status"], "no command 'status': respool workers; see docs/celery.md"),
        (["beat"], "no command 'beat': there is no beat; let cron"),
        (["inspect", "active"], "no command 'inspect': respool workers"),
        (["control", "shutdown"], "no command 'control': respool groups pause"),
        (["events"], "no command 'events': respool tail"),
        (["multi", "start", "w1"], "no command 'multi': let systemd"),
        (["groups", "beat"], "no command 'beat'; did you mean 'create'?"),
        (
            ["worker", "-P", "solo", "-c", "4"],
            "-P solo runs one call at a time, in this process: leave out -c 4",
        ),
    ],
)
def test_what_only_celery_has_says_what_to_use(cli, app, args, told):
    said = cli("-A", "shop", *args, code=2)
    assert told in " ".join(said.split())


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("command", ["calls", "lag --json", "export --queue default", "--help"])
def test_output_that_cannot_be_written_is_one_line(folder, app, command, buffered):
    app.tasks["add"].delay(1, 2)
    told = in_shell(f"-A shop {command} > /dev/full", folder, PYTHONUNBUFFERED=buffered)
    assert told.returncode == 1
    assert told.stderr == "Error: standard output cannot be written: No space left on device\n"


def test_an_error_of_another_file_is_not_taken_for_one_of_the_output(folder):
    write_shop(folder, "from respool import App\napp = App('shop')\n")
    code = "import errno, respool.cli.lag as lag\n" + (
        "def fails(**given): raise OSError(errno.EIO, 'a disk is broken')\n"
        "lag.command.callback = fails\nfrom respool.cli import main\nmain()"
    )
    told = python("-c", code, "lag", cwd=folder)
    assert "OSError: [Errno 5] a disk is broken" in told.stderr
    assert "standard output" not in told.stderr


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_files_stop_nothing(folder, app, closed):
    handle = app.tasks["add"].delay(1, 2)
    for command in ("lag", "calls", "export --queue default", "worker --burst -c 1"):
        told = in_shell(f"-A shop {command} {closed}", folder)
        assert (told.returncode, "Error" in told.stderr, "Traceback" in told.stderr) == (0, False, False)
    assert handle.get(timeout=5) == 3


def in_shell(command, folder, **env):
    """Run `python -m respool` by a shell, which can close its files."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RESPOOL_")}
    return subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m respool {command}'],
        cwd=folder,
        env=clean | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
