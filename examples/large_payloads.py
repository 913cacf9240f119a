"""Payloads of megabytes: they go to a folder or a bucket by themselves, and the log stays small.

    python examples/large_payloads.py

Arguments and results over 64 KiB are stored under the digest of their content, and the record holds a
reference. Tasks, results, replays and dead letters know nothing of it. What no record refers to any more is
removed.

The log is a file in the working directory, or what RESPOOL_URL says; the store is a folder here, and would be
blobs="s3://bucket/prefix" for several machines. It needs: pip install 'respool[blobs]'
"""

from __future__ import annotations

from pathlib import Path

from respool import App
from respool.testing import work

store = Path("payloads").resolve()
app = App("images", blobs=store.as_uri())


@app.task
def invert(image: bytes) -> bytes:
    return bytes(255 - value for value in image)


def main() -> None:
    image = bytes(range(256)) * 12_000  # 3 MB
    results = [invert.delay(image), invert.delay(image), invert.delay(b"small")]
    work(app)  # in this process, for the example; else: respool -A large_payloads worker

    first = results[0].get(timeout=0)
    print(f"3 MB there and back: {len(first):,} bytes, inverted: {first[:3] == bytes((255, 254, 253))}")
    bodies = [len(result.record().body) for result in results]
    print(f"their records have {bodies[0]} and {bodies[1]} bytes, the small one {bodies[2]}")
    kept = [path for path in store.rglob("*") if path.is_file()]
    print(f"equal ones are stored once: {len(kept)} blobs for two calls, their input and their result")


if __name__ == "__main__":
    main()
