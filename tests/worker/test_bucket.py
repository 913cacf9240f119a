"""Large payloads in a bucket: on a server that speaks as much of S3's protocol as that needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from respool import App
from respool.errors import BlobLost, BlobsUnavailable
from respool.reference import unpack
from respool.testing import work
from respool.worker.sweeping import Progress, sweep

GONE = "<Error><Code>{}</Code><Message>gone</Message></Error>"


class Bucket(BaseHTTPRequestHandler):
    """One bucket named `films`; `broken` makes it answer with errors of its own."""

    protocol_version = "HTTP/1.1"
    held: dict[str, bytes]
    broken: bool

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _answer(self, status: int, body: bytes = b"", size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.send_header("ETag", '"e"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self) -> bool:
        self.rest = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        known = self._key().split("/")[1] == "films"
        if self.broken:
            self._answer(503)
        elif not known:
            self._answer(404, GONE.format("NoSuchBucket").encode())
        return self.broken or not known

    def do_PUT(self) -> None:
        if not self._refused():
            self.held[self._key()] = self.rest
            self._answer(200)

    def do_GET(self) -> None:
        if self._refused():
            return
        body = self.held.get(self._key())
        if body is None:
            self._answer(404, GONE.format("NoSuchKey").encode())
        else:
            self._answer(200, body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Answer a request to delete several, as its XML says."""
        if self._refused():
            return
        done = ""
        for part in self.rest.decode().split("<Key>")[1:]:
            name = part.partition("</Key>")[0]
            self.held.pop(f"/films/{name}", None)
            done += f"<Deleted><Key>{name}</Key></Deleted>"
        self._answer(200, f"<DeleteResult>{done}</DeleteResult>".encode())

    def do_DELETE(self) -> None:
        if not self._refused():
            self.held.pop(self._key(), None)
            self._answer(204)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def bucket() -> Iterator[type[Bucket]]:
    made = type("Made", (Bucket,), {"held": {}, "broken": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        made.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        yield made
        server.shutdown()
        serving.join()


def shop(folder: Path, bucket: Any, name: str = "films") -> App:
    options = f"endpoint={bucket.address}&region=eu-west-1&skip_signature=true"
    url = f"sqlite:///{folder / 'q.db'}"
    return App("shop", url, blobs=f"s3://{name}/some/where?{options}", blob_timeout=2.0)


def test_there_and_back(tmp_path: Path, bucket: Any) -> None:
    with shop(tmp_path, bucket) as app:
        task = app.task(name="f")(lambda data: data + data)
        results = [task.delay(b"%d" % (n % 2) * 200_000) for n in range(4)]
        name = unpack(results[0].record().body).name
        assert sorted(bucket.held)[0].startswith("/films/some/where/")
        assert f"/films/some/where/{name}" in bucket.held
        assert len(bucket.held) == 2
        work(app)
        assert [each.get(timeout=5) for each in results] == [b"%d" % (n % 2) * 400_000 for n in range(4)]
        assert len(bucket.held) == 4
        app.payloads.blobs.offload(b"z" * 100_000)
        store = app.payloads.store
        assert store is not None
        assert sweep(app.engine, store, Progress(), 4e9) == 1
        assert len(bucket.held) == 4


def test_larger_than_one_request(tmp_path: Path, bucket: Any) -> None:
    with shop(tmp_path, bucket) as app:
        data = bytes(range(256)) * 12_000
        reference = app.payloads.blobs.offload(data)
        assert app.payloads.blobs.load(reference) == data


def test_what_is_lost_and_what_is_out_of_reach_are_told_apart(tmp_path: Path, bucket: Any) -> None:
    with shop(tmp_path, bucket) as app:
        sent = app.task(name="f")(len).delay(b"x" * 100_000).record().body
        bucket.broken = True
        with pytest.raises(BlobsUnavailable, match="s3://films/some/where cannot be used"):
            app.payloads.load(sent)
        with pytest.raises(BlobsUnavailable, match="nothing was sent"):
            app.tasks["f"].delay(b"y" * 100_000)
        bucket.broken = False
        bucket.held.clear()
        with pytest.raises(BlobLost, match="is gone"):
            app.payloads.load(sent)
    with shop(tmp_path, bucket, "elsewhere") as app, pytest.raises(BlobsUnavailable):
        app.payloads.load(sent)  # there is no such bucket: nothing is lost
