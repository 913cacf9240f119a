"""Each example runs, on a log of its own, and says what it promises."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests import warm

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "event_fan_out": (
        "packed: [0, 1, 2, 3, 4, 5]; mailed: [0, 1, 2, 3, 4, 5]",
        "order 2 was mailed at the third try: True; it was packed meanwhile: True",
        "a reader that came later has seen all: {'anna': 60, 'bert': 90}",
        "nobody packed or mailed anything twice: True",
        "the events are still there: 6, the last of them [4, 5]",
    ),
    "per_user_order": (
        "anna: [0, 1, 2, 3]",
        "bert: [0, 1, 2, 3]",
        "anna's transfer 1 was tried 3 times",
    ),
    "two_model_versions_on_live_traffic": (
        "main ran 40 calls, v2 some of them: True",
        "all that differ have another label: True",
        "alerts sent by main: 40; by v2: none",
        "v2 dropped as many calls as it ran: True",
        "a gate of 50 %: version 2 may be deployed",
    ),
    "thirty_day_backfill": (
        "800 calls on record, 40 of them dead letters",
        "the backfill looks at 580 calls of the last 29 and a half days",
        "over: True; left out, since they failed then: 29; dead letters: 0",
        "results beside each other: [20] and [20, 2]",
        "the dead letters of main are as they were: 40",
    ),
    "audit_export": (
        "2 calls in audit.jsonl",
        "prompt-1 of ada: ['may I'] 2026-01-31 -> SUCCESS may I? On 31 January, yes.",
        "prompt-2 of eve: ['the secret'] 2026-01-31 -> FAILURE PermissionError: not for you",
        "run again here: PermissionError('not for you'); it is still FAILURE on record",
    ),
    "embeddings_with_a_malformed_item": (
        "499 of 500 texts are embedded; item 387: ValueError('an empty text cannot be embedded')",
        "the first time with 500 texts",
        "1 dead letter",
        "now embedded: [15.0, 0.0]; this time the model ran with [1] text",
    ),
    "long_beside_short": (
        "300 thumbnails are done; is the film? False",
        "they were done before the film: True",
        "and so were the previews: True",
        "the film was run 1 time, and delivered again 0 times",
        "the worker's exit code is 0",
    ),
    "large_payloads": (
        "3 MB there and back: 3,072,000 bytes, inverted: True",
        "their records have 64 and 64 bytes, the small one 10",
        "equal ones are stored once: 2 blobs for two calls, their input and their result",
    ),
    "producer_that_slows_down": (
        "previews: 10 to do, 5 refused; pressure 100%",
        "mails: 100 to do, pressure 100%: who sends waits from now on",
        "1,000 more were sent, and there were never more than 150 to do: True",
        "now all are done: lag 0, pressure 0%",
        "the worker's exit code is 0",
    ),
    "results_that_do_not_leak": (
        "2,100 calls are done, and 100 results are stored",
        "one of them: the summary of report 7",
        "a call without a result is done, too: SUCCESS, SUCCESS",
        "its value has expired; its state is SUCCESS",
        "now 0 results are stored",
    ),
    "webhook_sender": (
        "big got 60 requests, small 5",
        "small waited for none of big's: True",
        "big's rate was kept: True",
    ),
}


def run(name: str, folder: Path, url: str | None = None) -> str:
    """Run an example in a folder; return what it printed."""
    environ = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    environ["RESPOOL_URL"] = url or f"sqlite:///{folder / 'example.db'}"
    done = warm.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_example(name: str, tmp_path: Path) -> None:
    said = run(name, tmp_path)
    for text in SAYS[name]:
        assert text in said, said
