"""Where an app's log is when nobody says so, and what a URL of a file may say."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest

import respool
from respool import App, ConfigError, UnknownName
from respool.location import Location, find_url, parse_url, without_password

SHOP = "from respool import App\napp = App('shop'{url})\nprint(app.location.shown)\n"


def _shown(module: Path, cwd: Path, url: str = "", **env: str) -> str:
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(SHOP.format(url=f", url={url!r}" if url else ""))
    source = str(Path(respool.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {str(module.parent)!r}); import {module.stem}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PYTHONPATH": source, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_beside_the_nearest_pyproject_above_the_module(tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    module = project / "src" / "shop" / "shop.py"
    assert _shown(module, elsewhere) == f"sqlite:///{elsewhere / 'respool.db'}", "there is none"
    (tmp_path / "pyproject.toml").touch()
    assert _shown(module, elsewhere) == f"sqlite:///{tmp_path / 'respool.db'}"
    (project / "pyproject.toml").touch()
    for cwd in (elsewhere, project, module.parent):
        assert _shown(module, cwd) == f"sqlite:///{project / 'respool.db'}", "wherever it is imported from"


def test_what_is_said_comes_first(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    module = tmp_path / "shop.py"
    env = {"RESPOOL_URL": f"sqlite:///{tmp_path / 'env.db'}"}
    assert _shown(module, tmp_path, **env) == f"sqlite:///{tmp_path / 'env.db'}"
    assert _shown(module, tmp_path, "sqlite:///given.db", **env) == f"sqlite:///{tmp_path / 'given.db'}"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://shop.db", "three slashes for a relative path"),
        ("sqlite:///shop.db?cache_sise=1", "did you mean 'cache_size'"),
        ("sqlite:///shop.db?mmap_size=1000000", "mmap_size cannot be '1000000'"),
        ("sqlite:///shop.db?page_size=1000", "page_size cannot be '1000'"),
        ("sqlite:///shop.db?cache_size=1;DROP", "cache_size cannot be"),
        ("mysql://shop", "no engine for mysql"),
        ("shop.db", "no engine for 'shop.db'"),
    ],
)
def test_urls_that_cannot_be(url: str, told: str) -> None:
    with pytest.raises((ConfigError, UnknownName), match=told):
        parse_url(url)


def test_durability_and_pragmas_of_a_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}?durability=os&cache_size=-2000&page_size=4096"
    with App("shop", url=url, durability="full") as app:
        assert app.durability == "os", "the URL comes first"
        writer = app.engine._writer.db  # type: ignore[attr-defined]
        assert writer.execute("PRAGMA synchronous").get == 1
        assert writer.execute("PRAGMA cache_size").get == -2000
        assert writer.execute("PRAGMA page_size").get == 4096
    with App("shop", url=f"sqlite:///{tmp_path / 'other.db'}") as app:
        assert app.durability == "full"
        assert app.engine._writer.db.execute("PRAGMA synchronous").get == 2  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="durability"), App("shop", url=f"{url}&durability=disk") as app:
        app.engine  # noqa: B018


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:{0}/{0}@db/shop",
        "postgresql://shop:12/{0}@db/shop",
        "postgresql://shop:{0}#{0}@db/shop",
        "kafka://shop:{0}/{0}@host:9092?state=sqlite:///x.db",
        "kafka://shop:{0}?{0}@host:9092?state=sqlite:///x.db",
        "kafka://host:9092?state=postgresql://shop:{0}/{0}@db/shop",
        "kafka://host:9092?state=postgresql%3A%2F%2Fshop%3A{0}%2F{0}%40db%2Fshop",
    ],
)
def test_a_password_that_is_not_quoted_is_not_shown(url: str) -> None:
    """Its end looks like a path, or like options: what is said says how to write it, and nothing of it."""
    secret = uuid4().hex
    with pytest.raises(ConfigError, match="quote") as caught:
        parse_url(url.format(secret))
    assert secret not in "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://shop:s3@cret@db/shop", "postgresql://shop:…@db/shop"),
        ("postgresql://db/shop?user=a&password=s3cret", "postgresql://db/shop?user=a&password=…"),
        ("kafka://u:s3@h:1?state=postgresql://a:s3@b/c", "kafka://u:…@h:1?state=postgresql://a:…@b/c"),
        ("kafka://h:1?state=postgresql%3A%2F%2Fa%3As3%40b", "kafka://h:1?state=postgresql://a:…@b"),
        (
            "kafka://h:1?sasl.password=s3&ssl.key.password=s3&ssl.key.pem=s3&prefix=p-&state=sqlite:///x.db",
            "kafka://h:1?sasl.password=…&ssl.key.password=…&ssl.key.pem=…&prefix=p-&state=sqlite:///x.db",
        ),
        (
            "kafka://h:1?state=postgresql%3A%2F%2Fa%3As3%40b%3Fschema%3Dx%26user%3Dy&sasl.password=s3",
            "kafka://h:1?state=postgresql://a:…@b?schema=x%26user=y&sasl.password=…",
        ),
        ("//me:s3cret@db/shop", "//me:…@db/shop"),
        ("me:s3cret@db/shop", "me:…@db/shop"),
        ("sqlite:///a:b.db", "sqlite:///a:b.db"),
    ],
)
def test_urls_for_people(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_url_shows_which_database_its_options_say() -> None:
    first, second = (parse_url(f"postgresql://db/?dbname={name}&password=x") for name in "ab")
    assert (first.shown, second.shown) == ("postgresql://db/?dbname=a", "postgresql://db/?dbname=b")


@pytest.mark.parametrize("name", ["", "x" * 41, "it's", 'quo"te', "back\\slash", "50%"])
def test_a_schema_that_no_statement_can_name(name: str) -> None:
    with pytest.raises(ConfigError, match="schema cannot be"):
        parse_url(f"postgresql://db/shop?schema={quote(name)}")
    assert parse_url(f"postgresql://db/shop?schema={quote('Größe a.b-1')}").options["schema"] == "Größe a.b-1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@h/db?sslpassword=s3cret&schema=two", "postgresql://me@h/db?schema=two"),
        ("postgresql://h/db?schema=two%20%26%20three", "postgresql://h/db?schema=two%20%26%20three"),
        ("postgresql://h/db?schema=respool&sslmode=disable", "postgresql://h/db"),
        (
            "kafka://h:1?state=postgresql://a:s3cret@b/c?schema=two&prefix=two-&sasl.password=s3cret",
            "kafka://h:1?state=postgresql://a@b/c?schema=two&prefix=two-",
        ),
        (
            "kafka://h:1?prefix=two-&state=postgresql%3A%2F%2Fb%2Fc%3Fuser%3Da%26password%3Ds3cret%26schema%3Dx",
            "kafka://h:1?state=postgresql://b/c?user=a%26schema=x&prefix=two-",
        ),
        ("sqlite:////a/50%25%3F.db?durability=os", "sqlite:////a/50%25%3F.db"),
        ("kafka://h:1?state=sqlite:////a/50%2525.db", "kafka://h:1?state=sqlite:////a/50%2525.db"),
    ],
)
def test_the_url_that_is_shown_leads_to_the_same_log(url: str, shown: str) -> None:
    """It is what one is told to use when a log was moved."""
    given = parse_url(url)
    assert given.shown == shown
    again = parse_url(shown)
    assert again.shown == shown
    assert _which(again) == _which(given)
    assert (again.state is None) == (given.state is None)
    if again.state is not None and given.state is not None:
        assert _which(again.state) == _which(given.state)


def _which(location: Location) -> tuple[str | None, str, str]:
    options = location.options
    return location.path, options.get("prefix", ""), options.get("schema", "respool")


def test_a_folder_may_be_called_as_urls_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "50%25 #1?"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RESPOOL_URL", raising=False)
    assert parse_url(find_url(None, None)).path == str(folder / "respool.db")
