"""A broker that wants to know who comes, and proves who it is: passwords, TLS, tokens, rights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from tests.services.kafka import KafkaServer, Listener
from tests.services.process import free_port
from tests.worker.support import Place

from respool import App, ConfigError
from respool.errors import RespoolError
from respool.testing import work

SECRET = "s3cr/t w0rd"
TIMEOUT = 4.0
_LOGIN = "org.apache.kafka.common.security"


class Secured(NamedTuple):
    """Where a broker can be reached, and the authority that has signed its certificate."""

    passwords: int
    tokens: int
    certificates: int
    authority: Path

    def url(self, user: str, password: str, state: Path, more: str = "", host: str = "127.0.0.1") -> str:
        return (
            f"kafka://{user}:{quote(password, safe='')}@{host}:{self.passwords}?prefix=p{time.time_ns()}-"
            f"&state=sqlite:///{state}/state.db&ssl.ca.location={self.authority}{more}"
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    made = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    named = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", *made, *named, "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    authority, passwords, tokens, certificates = folder / "cert.pem", free_port(), free_port(), free_port()
    listeners = [
        Listener("PASSWORDS", passwords, passwords, "SASL_SSL"),
        Listener("TOKENS", tokens, tokens, "SASL_PLAINTEXT"),
        Listener("CERTIFICATES", certificates, certificates, "SSL"),
    ]
    server = KafkaServer(listeners=listeners)
    keys = server.write("keys.pem", (folder / "key.pem").read_text() + authority.read_text())
    trusted = server.write("trusted.pem", authority.read_text())
    users = f'user_ada="{SECRET}" user_bob="{SECRET}"'
    server._settings |= {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keys),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(trusted),
        "listener.name.certificates.ssl.client.auth": "required",
        "listener.name.passwords.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.passwords.plain.sasl.jaas.config": (
            f"{_LOGIN}.plain.PlainLoginModule required {users};"
        ),
        "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.tokens.oauthbearer.sasl.jaas.config": (
            f'{_LOGIN}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:ada;User:carol;User:CN=127.0.0.1",
    }
    with server:
        yield Secured(passwords, tokens, certificates, authority)


def shop(url: str) -> App:
    app = App("shop", url=url, append_timeout=TIMEOUT)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    return app


def used(url: str) -> None:
    """Send a call and run it, so that all kinds of clients have been let in."""
    with shop(url) as app:
        sent = app.tasks["add"].delay(2, 3)
        given = app.tasks["add"].apply_async((3, 4), task_id="seven")
        work(app)
        assert (sent.get(timeout=1), given.get(timeout=1)) == (5, 7)
        app.engine.tidy_now()  # type: ignore[attr-defined]


def refused(url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    """Return what an app that is used for the first time says; the secret is nowhere, and it took no time."""
    began = time.monotonic()
    with pytest.raises(RespoolError) as caught:
        used(url)
    assert time.monotonic() - began < TIMEOUT + 1.5
    assert isinstance(caught.value, ConfigError), caught.value
    shown = "".join(traceback.format_exception(caught.value)) + repr(shop(url)) + caplog.text
    error: BaseException | None = caught.value
    while error is not None:
        shown += f"{error} {error!r} {error.args} {error.__dict__}"
        error = error.__cause__ or error.__context__
    out, err = capfd.readouterr()
    assert SECRET not in shown + out + err
    assert quote(SECRET, safe="") not in shown + out + err
    return str(caught.value)


def test_a_password_over_tls(secured: Secured, tmp_path: Path) -> None:
    """`user:password@` means SASL_SSL, and that the broker proves who it is."""
    used(secured.url("ada", SECRET, tmp_path))


def test_a_certificate_of_the_clients_own(secured: Secured, tmp_path: Path) -> None:
    """What librdkafka knows stands in the URL as it is."""
    key = secured.authority.with_name("key.pem")
    used(
        f"kafka://127.0.0.1:{secured.certificates}?security.protocol=SSL&ssl.ca.location={secured.authority}"
        f"&ssl.certificate.location={secured.authority}&ssl.key.location={key}"
        f"&state=sqlite:///{tmp_path}/state.db&prefix=c{time.time_ns()}-"
    )


def test_a_wrong_password(
    secured: Secured, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = secured.url("ada", SECRET + "x", tmp_path)
    said = refused(wrong, capfd, caplog)
    assert "check user, password" in said
    assert f"kafka://ada@127.0.0.1:{secured.passwords}" in said


def test_a_broker_that_cannot_prove_who_it_is(
    secured: Secured, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By default: signed by nobody known, or of another name."""
    url = secured.url("ada", SECRET, tmp_path)
    unsigned = url.replace(f"&ssl.ca.location={secured.authority}", "")
    misnamed = secured.url("ada", SECRET, tmp_path, host="localhost")
    for each in (unsigned, misnamed):
        said = refused(each, capfd, caplog)
        assert "certificates are verified" in said
    used(unsigned + "&enable.ssl.certificate.verification=false")


def test_tokens(secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a function that the URL names; it is asked by each client, in a worker's processes too."""
    (tmp_path / "tokens.py").write_text(TOKENS)
    monkeypatch.syspath_prepend(tmp_path)
    url = (
        f"kafka://127.0.0.1:{secured.tokens}?security.protocol=SASL_PLAINTEXT&sasl.mechanism=OAUTHBEARER"
        f"&oauth_cb=tokens:give&sasl.oauthbearer.config=carol&state=sqlite:///{tmp_path}/state.db"
        f"&prefix=o{time.time_ns()}-"
    )
    used(url)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) >= 3, "at least one who produces, one who reads, one who administers"
    assert set(asked) == {"carol"}


TOKENS = """
import base64, json, time
from pathlib import Path


def give(config):
    with open(Path(__file__).with_name("asked"), "a") as out:
        print(config, file=out)
    now = time.time()
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
    claims = {"sub": config, "iat": now, "exp": now + 600}
    return part({"alg": "none"}) + "." + part(claims) + ".", now + 600
"""


def test_a_user_without_rights(
    secured: Secured, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster that lets him make no topic says so, and we say which right he lacks."""
    said = refused(secured.url("bob", SECRET, tmp_path), capfd, caplog)
    assert "grant the user" in said
    assert "shop--queue--default" in said


def test_a_password_is_shown_nowhere(secured: Secured, tmp_path: Path) -> None:
    """Not in command lines, logs, the register or the shared file of a worker; nor by commands."""
    url = secured.url("ada", SECRET, tmp_path)
    place = Place(tmp_path, url)
    try:
        module = place.module("@app.task\ndef fine(n):\n    return n\n")
        worker = place.worker(1, url=url)
        assert module.fine.delay(1).get(timeout=20) == 1
        hidden = (SECRET, quote(SECRET, safe=""))
        for pid in place.children(1):
            shown = Path(f"/proc/{pid}/cmdline").read_text()
            assert not any(each in shown for each in hidden)
        said = subprocess.run(
            [sys.executable, "-m", "respool", "lag"],
            capture_output=True, text=True, timeout=60, env={**os.environ, "RESPOOL_URL": url},
        )  # fmt: skip
        assert "default" in said.stdout, said.stderr
        assert worker.stop() == 0
        told = worker.log + said.stdout + said.stderr
        assert "kafka://ada@" in told
        assert not any(each in told for each in hidden)
    finally:
        place.close()
