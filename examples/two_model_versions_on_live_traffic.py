"""Two versions of a model on the same live calls, compared call by call while both run.

    python examples/two_model_versions_on_live_traffic.py

`main` runs version 1. A second group of the same queue runs version 2 on half of the live calls, chosen by a
hash of their ids; the producer knows nothing of it, and calls that version 2 makes are dropped. Then the two
are compared, with a tolerance: a gate that a deployment can ask.

By command: respool -A scoring groups create v2 --queue default --task score --share 50%
            respool -A scoring_v2 worker --group v2
            respool -A scoring compare main v2 --queue default --tolerance 0.01 --max-diff 10%

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

from respool import App
from respool.replay import Selection, Tolerance, compare, create_group, group_of
from respool.testing import work

app = App("scoring")


@app.task
def score(text: str) -> dict[str, object]:
    alert.delay(text)
    return {"score": len(text) / 100, "label": "long" if len(text) > 20 else "short"}


@app.task(queue="alerts")
def alert(text: str) -> None: ...


next_app = App("scoring", url=app.url)  # as a rule another module: -A scoring_v2


@next_app.task(name="score")
def score_v2(text: str) -> dict[str, object]:
    next_app.send_task("alert", (text,), queue="alerts")
    return {"score": len(text) / 100 + 0.001, "label": "long" if len(text) > 24 else "short"}


next_app.queue("alerts")


def main() -> None:
    create_group(app, "default", "v2", start="latest", selection=Selection(tasks=["score"], share="50%"))
    calls = [score.delay("x" * n) for n in range(40)]  # live traffic
    work(app, queues=["default"])  # in this process, for the example
    work(next_app, queues=["default"], group="v2")

    both = [call for call in calls if call.of("v2").state == "SUCCESS"]
    print(f"main ran {len(calls)} calls, v2 some of them: {0 < len(both) < len(calls)}")
    first = both[0]
    print(f"one call, both versions: {first.get(timeout=0)} and {first.of('v2').get(timeout=0)}")

    stream, one = group_of(app, "default", "main")
    _, two = group_of(app, "default", "v2")
    found = compare(app, stream, one, two, tolerance=Tolerance(absolute=0.01))
    labels = sum("label" in "".join(each.diff(("main", "v2"))) for each in found.sample)
    print(f"compared {found.compared} calls, {100 * found.share:.0f} % differ")
    print(f"all that differ have another label: {labels == len(found.sample)}")
    alerts = group_of(app, "alerts", "main")[1]
    print(f"alerts sent by main: {app.engine.counts(alerts).pending}; by v2: none")
    print(f"v2 dropped as many calls as it ran: {app.engine.counters(two.id)['calls dropped'] == len(both)}")
    verdict = "may" if found.share <= 0.5 else "must not"
    print(f"a gate of 50 %: version 2 {verdict} be deployed")


if __name__ == "__main__":
    main()
