"""Webhooks, with a rate limit for each tenant: a big one does not hold up a small one.

    python examples/webhook_sender.py

Each tenant's receiver takes twenty requests a second. The limit is kept by all workers together, in the log;
what is over it waits for its turn, and takes nothing from the others meanwhile.

The log is a file in the working directory, or what RESPOOL_URL says. The receivers are a small server here.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from respool import App
from respool.testing import work

app = App("webhooks")
received: dict[str, list[float]] = defaultdict(list)


class Receiver(BaseHTTPRequestHandler):
    """Stands for the tenants' servers: notes when it was called."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        received[self.path.strip("/")].append(time.monotonic())
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@app.task(
    rate_limit="20/s",
    rate_burst=4,
    limit_key="tenant",
    autoretry_for=(OSError,),
    max_retries=10,
)
def send(tenant: str, url: str, event: str) -> None:
    request = urllib.request.Request(f"{url}/{tenant}", event.encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10):
        pass


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"

    send.apply_many((("big", url, f"order {n}"), {}) for n in range(60))
    send.apply_many((("small", url, f"order {n}"), {}) for n in range(5))
    began = time.monotonic()
    work(app)  # in this process, for the example; else: respool -A webhook_sender worker
    server.shutdown()

    took = {tenant: times[-1] - began for tenant, times in received.items()}
    print(f"big got {len(received['big'])} requests, small {len(received['small'])}")
    print(f"small waited for none of big's: {took['small'] < took['big'] / 2}")
    rate = (len(received["big"]) - 4) / (received["big"][-1] - received["big"][0])
    print(f"big's rate was kept: {rate <= 21}")


if __name__ == "__main__":
    main()
