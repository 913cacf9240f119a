"""Reaching a server: what libpq is told besides the URL, and what is said where it cannot be reached.

Nothing that is said holds the password: not the message, and not the errors behind it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from ...errors import ConfigError, EngineUnavailable, RespoolError
from ..turns import left

SHORTEST = 2
"""Seconds that connecting may take at least: libpq counts no less."""
_SECRETS = ("password", "sslpassword", "passfile", "oauth_client_secret")
_BUNDLES = (  # the authorities that the system trusts, as one file
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_KEEPALIVES = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
"""A connection that is cut, and that nobody uses, is noticed within a minute."""


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """How to reach a schema. `conninfo` is libpq's, with the password, and is shown to nobody."""

    conninfo: str = field(repr=False)
    shown: str  # the URL without password
    schema: str = "respool"
    durability: str = "full"
    timeout: float = 10.0  # seconds that an append or a connection may take
    prepare: bool | None = None  # statements on the server; None: unless a pooler is between


def parameters(options: PostgresOptions) -> dict[str, Any]:
    """Return what libpq is told: what the URL says, and ours where it does not. Raises ConfigError."""
    wrong: str | None = None
    try:
        given: dict[str, Any] = dict(conninfo_to_dict(options.conninfo))
    except psycopg.Error as error:
        wrong = _said(error, options)
    if wrong is not None:  # outside: what the driver says may repeat the URL
        raise ConfigError(f"{options.shown}: {wrong}; check the options of the URL (url=, RESPOOL_URL)")
    if not _is_near(given):
        given |= _verified(given)
    hosts = (given.get("host") or given.get("hostaddr") or "").count(",") + 1
    ours = {
        "connect_timeout": str(max(SHORTEST, int(options.timeout) // hosts)),  # libpq takes it for each
        "tcp_user_timeout": str(int(max(SHORTEST, options.timeout) * 1000)),
    }
    return _KEEPALIVES | ours | given


def resolved(told: dict[str, Any], options: PostgresOptions) -> dict[str, Any]:
    """Return the same with the addresses of the hosts: a resolver waits as long as it likes.

    Raises: ConfigError where there is no such host; EngineUnavailable where it is not known within the time
        that connecting may take.
    """
    hosts = str(told.get("host") or os.environ.get("PGHOST", "")).split(",")
    if told.get("hostaddr") or os.environ.get("PGHOSTADDR") or not any(map(_is_name, hosts)):
        return told
    ports = str(told.get("port") or os.environ.get("PGPORT") or 5432).split(",")
    lookups = [_Lookup(host) for host in hosts]
    deadline = time.monotonic() + left(max(SHORTEST, options.timeout))
    places: list[tuple[str, str, str]] = []
    for n, lookup in enumerate(lookups):
        port = ports[n if len(ports) == len(hosts) else 0]
        places += [(lookup.host, address, port) for address in lookup.addresses(deadline)]
    if not places:
        late = [lookup.host for lookup in lookups if lookup.failure is None]
        where = f"cannot connect to {options.shown}: "
        if late:
            waited = f"within {max(SHORTEST, options.timeout):g} s"
            raise EngineUnavailable(
                f"{where}{', '.join(late)} could not be resolved {waited}; nothing was sent"
            )
        why = "; ".join(f"failed to resolve host {each.host!r}: {each.failure}" for each in lookups)
        raise ConfigError(f"{where}{why}; check the host {_URL}")
    names, addresses, used = (",".join(column) for column in zip(*places, strict=True))
    return {**told, "host": names, "hostaddr": addresses, "port": used}


class _Lookup:
    """One host being looked up; given up, it goes on by itself, for there is no way to end it."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.failure: OSError | None = None
        self._found: list[str] = [] if _is_name(host) else [host]
        self._done = threading.Event()
        if self._found or not host:
            self._done.set()
        else:
            threading.Thread(target=self._look, name="respool-resolver", daemon=True).start()

    def _look(self) -> None:
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
            self._found = list(dict.fromkeys(str(each[4][0]) for each in found))
        except OSError as error:
            self.failure = error
        finally:
            self._done.set()

    def addresses(self, deadline: float) -> list[str]:
        """Return what is known by then; a path has none."""
        self._done.wait(max(deadline - time.monotonic(), 0.0))
        found = list(self._found)
        return [""] if found == [self.host] and self.host[0] in "/@" else found


def _is_name(host: str) -> bool:
    """Say whether a host is one that a resolver is asked for: no address, and no path."""
    if not host or host[0] in "/@" or host == "localhost":
        return False
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return False
    return True


def _is_near(given: dict[str, Any]) -> bool:
    """Say whether all hosts are this one: what is sent to them passes no network."""
    hosts = given.get("host") or os.environ.get("PGHOST", "")
    addresses = given.get("hostaddr") or os.environ.get("PGHOSTADDR", "")
    return all(
        not each or each[0] in "/@" or each in ("localhost", "::1") or each.startswith("127.")
        for each in f"{hosts},{addresses}".split(",")
    )


def _verified(given: dict[str, Any]) -> dict[str, Any]:
    """Return libpq's options for TLS with a server that proves who it is, as far as the URL says nothing."""
    more = {} if "sslmode" in given or "PGSSLMODE" in os.environ else {"sslmode": "verify-full"}
    mode = given.get("sslmode") or more.get("sslmode") or os.environ["PGSSLMODE"]
    named = "sslrootcert" in given or "PGSSLROOTCERT" in os.environ
    if mode.startswith("verify") and not named and not Path("~/.postgresql/root.crt").expanduser().exists():
        # Drivers bring a library of their own, which may not know where this system keeps them.
        places = (os.environ.get("SSL_CERT_FILE", ""), *_BUNDLES)
        more["sslrootcert"] = next((place for place in places if place and os.path.exists(place)), "system")
    return more


def unreachable(error: psycopg.Error, options: PostgresOptions) -> RespoolError:
    """Return the error for a connection that could not be made: what was wrong, and what to do."""
    said = _said(error, options)
    where = f"cannot connect to {options.shown}: {said}"
    for signs, remedy in _REMEDIES:
        if any(sign in said for sign in signs):
            if any(sign in said for sign in _BROKEN_OFF):
                return EngineUnavailable(f"{where}; {remedy}; nothing was sent")
            return ConfigError(f"{where}; {remedy}")
    if isinstance(error, pg.OperationalError) and not isinstance(error, _CONFIG):
        return EngineUnavailable(f"{where}; nothing was sent")
    return ConfigError(f"{where}; check the URL (url=, RESPOOL_URL)")


def away(error: RespoolError) -> EngineUnavailable:
    """Return the error for a server that was reached before by the same URL: it is away, whatever is said.

    Balancers, poolers and servers that come up say much: that there is no such host, user, password,
    database or certificate. What to do, if it is true, stays in the text.
    """
    return EngineUnavailable(f"{error}; nothing was sent")


_CONFIG = (pg.InvalidPassword, pg.InvalidAuthorizationSpecification, pg.InvalidCatalogName)
_URL = "of the URL (url=, RESPOOL_URL)"
_BROKEN_OFF = ("unexpected eof", " alert ")
"""Of errors of TLS: the other side has ended it, as a balancer does whose servers are away."""
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("authentication failed", "no password supplied"), f"check user and password {_URL}"),
    (("does not exist",), f"check user and database {_URL}"),
    (("no pg_hba.conf", "permission denied for database"), "its administrator has to let this role in"),
    (
        ("certificate", "does not support SSL", "SSL error", "root.crt"),
        "TLS is verified by default beyond this host: sslrootcert=FILE in the URL names the authority, "
        "sslmode=disable does without where the network is trusted",
    ),
    (("failed to resolve", "could not translate host"), f"check the host {_URL}"),
)


def _said(error: psycopg.Error, options: PostgresOptions) -> str:
    """Return the driver's text in one line, of all hosts that were tried, without what is secret."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip(" -\t") for line in text.splitlines()]
    tried = [line for line in lines if line.startswith("host: ")]
    told = "; ".join(line.split("hostaddr: ", 1)[-1] for line in tried) if tried else lines[0]
    return hidden(told, options.conninfo)


def hidden(text: str, url: str) -> str:
    """Return a text without the secrets of a URL: as they are written there, and as they are meant."""
    userinfo, at, _ = url.partition("://")[2].rpartition("@")
    written = [userinfo.partition(":")[2]] if at else []
    for part in url.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if name in _SECRETS:
            written.append(value)
    for secret in {each for one in written for each in (one, unquote(one)) if each}:
        text = text.replace(secret, "…")
    return text
