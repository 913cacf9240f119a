"""The exact inputs and outcomes between two moments, as a file for the auditor; and one call looked at again.

    python examples/audit_export.py

Every prompt is on record, with its headers, what came of it, and when. The export is streamed, the oldest
first; JSON lines have values as they were. Then one call of the file is executed here, with its exact input,
and nothing is changed or sent by that.

By command: respool -A prompts export --queue default --between 14:00 16:00 -o audit.jsonl
            respool -A prompts rerun ID --pdb

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path

from respool import App
from respool.replay import group_of
from respool.replay.export import Wanted, exported, write_jsonl
from respool.replay.rerun import rerun
from respool.tagged import from_tagged
from respool.testing import work

app = App("prompts")


@app.task
def answer(prompt: str, day: date) -> str:
    if "secret" in prompt:
        raise PermissionError("not for you")
    return f"{prompt}? On {day:%d %B}, yes."


def main() -> None:
    today = date(2026, 1, 31)
    began = time.time()
    answer.apply_async(("may I",), {"day": today}, headers={"user": "ada"}, task_id="prompt-1")
    answer.apply_async(("the secret",), {"day": today}, headers={"user": "eve"}, task_id="prompt-2")
    work(app)

    stream, group = group_of(app, "default", "main")
    path = Path("audit.jsonl")
    with path.open("w", encoding="utf-8") as out:
        number = write_jsonl(exported(app, stream, group, Wanted(began - 60, time.time() + 60)), out)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    print(f"{number} calls in {path}")
    for line in lines:
        args, kwargs = from_tagged(line["args"]), from_tagged(line["kwargs"])
        came = line["result"] if line["state"] == "SUCCESS" else f"{line['error_type']}: {line['error']}"
        print(f"{line['id']} of {line['headers']['user']}: {args} {kwargs['day']} -> {line['state']} {came}")

    again = rerun(app, "prompt-2")
    print(f"run again here: {again.error!r}; it is still {app.AsyncResult('prompt-2').state} on record")
    path.unlink()


if __name__ == "__main__":
    main()
