"""The table of figures to reach: which figure, or ratio of figures, against what was asked for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cases.common import Sizes

Round = Mapping[str, Mapping[str, Any]]  # step: figure: value; a step that failed is not there


def number(value: float) -> str:
    return f"{value:.0f}"


def rate(value: float) -> str:
    return f"{value:,.0f}/s"


def times(value: float) -> str:
    return f"{value:.3g}x" if value < 100 else f"{value:,.0f}x"


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def ms(value: float) -> str:
    return f"{value:,.3g} ms" if value < 100 else f"{value:,.0f} ms"


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def mb(value: float) -> str:
    return f"{value:.1f} MB"


def percent(value: float) -> str:
    return f"{value:.2f} %"


@dataclass(frozen=True)
class Row:
    """One line: a figure ("step.name"), perhaps divided by the least of others from the same round."""

    work: str
    figure: str
    shown: Callable[[float], str]
    asked: float | None = None
    at_most: bool = False
    against: tuple[str, ...] = ()

    @property
    def asked_shown(self) -> str:
        return "" if self.asked is None else ("≤ " if self.at_most else "") + self.shown(self.asked)

    def value(self, done: Round) -> float | None:
        """The figure in one round; None where it, or what it is compared with, was not measured."""
        ours, *others = (_figure(done, name) for name in (self.figure, *self.against))
        if ours is None or None in others:
            return None
        return ours / min(others) if others else ours  # type: ignore[no-any-return]

    @property
    def steps(self) -> list[str]:
        return sorted({name.partition(".")[0] for name in (self.figure, *self.against)})


def _figure(done: Round, name: str) -> Any:
    step, _, key = name.partition(".")
    found: Any = done.get(step)
    for part in key.split("."):
        found = None if found is None else found.get(part)
    return found


def rows(sizes: Sizes, engine: str) -> list[Row]:
    """The lines for an engine."""
    if engine == "kafka":
        return kafka_rows(sizes)
    return postgres_rows(sizes) if engine == "postgres" else sqlite_rows(sizes)


def kafka_rows(sizes: Sizes) -> list[Row]:
    return [
        Row("drain of no-op calls, 2 processes", "drain.rate", rate),
        Row("drain of a stream of 4 partitions, 2 processes", "partitions.rate", rate, 80_000),
        Row("drain of no-op calls, every result stored", "results.rate", rate),
        Row("drain in batches of 500, 2 processes", "batch.rate", rate),
        Row("  the same, every result stored", "batch.results_rate", rate),
        Row(
            "drain of 10,000 keys, each in order: of unordered",
            "ordered.rate",
            share,
            0.5,
            against=("drain.rate",),
        ),
        Row("publish_many, 100 bytes", "publish.rate", rate, 150_000),
        Row("a subscription that does nothing", "subscription.rate", rate),
        Row("  of a bare loop", "subscription.rate", share, 0.5, against=("bare_loop.rate",)),
        Row("delay_many", "delay_many.rate", rate),
        Row("delay() one by one", "delay.rate", rate),
        *rows_of_again(sizes),
        Row("8 workers on one partition, 10 ms a record", "many_workers.ratio", times, 7),
        Row("delay().get() p50", "get.p50_ms", ms, 4, at_most=True),
    ]


def postgres_rows(sizes: Sizes) -> list[Row]:
    peer = "procrastinate_postgres."
    return [
        Row(f"drain of {sizes.drain:,} no-op calls, 2 processes", "drain.rate", rate, 60_000),
        Row("  … of Procrastinate’s", "drain.rate", times, 10, against=(peer + "drain_per_s",)),
        Row("  the same, every result stored", "results.rate", rate, 40_000),
        Row("drain in batches of 500, 2 processes", "batch.rate", rate),
        Row("  the same, every result stored", "batch.results_rate", rate),
        Row(
            "  of 10,000 keys, each in order: of unordered",
            "ordered.rate",
            share,
            0.5,
            against=("drain.rate",),
        ),
        Row(f"delay_many of {sizes.many:,} calls", "delay_many.rate", rate, 100_000),
        Row("delay() one by one", "delay.rate", rate),
        Row("  … of Procrastinate’s", "delay.rate", times, against=(peer + "enqueue_per_s",)),
        Row("delay(), 16 connections one by one: all", "enqueue_16.rate", rate),
        Row("  … of bare INSERTs", "enqueue_16.rate", share, 0.75, against=("enqueue_16.bare_rate",)),
        Row("delay().get(): p50", "get.p50_ms", ms, 2.5, at_most=True),
        Row("  p99", "get.p99_ms", ms),
        *rows_of_again(sizes),
        Row(
            "drain beside a transaction that stays open, of without",
            "old_transaction.rate",
            share,
            0.8,
            against=("old_transaction.without_rate",),
        ),
        Row("ten idle workers: transactions", "idle_queries.queries_per_s", rate, 20, at_most=True),
        Row("  open transactions", "idle_queries.open_transactions", number, 0, at_most=True),
        Row("Procrastinate: drain", peer + "drain_per_s", rate),
        Row("  calls sent one by one", peer + "enqueue_per_s", rate),
    ]


def rows_of_again(sizes: Sizes) -> list[Row]:
    """What is overtaken, given back or run again: the same on each engine that has it."""
    return [
        Row(f"priority 9 behind {sizes.backlog:,} calls: starts after, p50", "priority.p50_ms", ms),
        Row("  worst", "priority.worst_ms", ms, 100, at_most=True),
        Row(f"due among {sizes.backlog:,} scheduled: starts after its time, p50", "scheduled.p50_ms", ms),
        Row("  worst", "scheduled.worst_ms", ms, 50, at_most=True),
        Row(f"redrive of {sizes.dead:,} dead letters: seconds", "redrive.seconds", seconds, 5, at_most=True),
        Row("  counted by cause", "redrive.by_error_seconds", seconds),
        Row(f"replay of {sizes.again:,} calls", "replay.rate", rate),
        Row("  … of the drain’s", "replay.rate", share, 0.95, against=("replay.drain_rate",)),
        Row(
            "  with an expression over each, of the drain’s",
            "replay.where_rate",
            share,
            against=("replay.drain_rate",),
        ),
    ]


def sqlite_rows(sizes: Sizes) -> list[Row]:
    celery, huey = "celery_redis.", "huey_sqlite."
    by_celery, by_huey = "  … of Celery’s", "  … of Huey’s"
    return [
        Row(f"drain of {sizes.drain:,} no-op calls, 2 processes", "drain.rate", rate, 120_000),
        Row(by_celery, "drain.rate", times, 100, against=(celery + "drain_per_s",)),
        Row(by_huey, "drain.rate", times, 20, against=(huey + "drain_per_s",)),
        Row("  the same, every result stored", "results.rate", rate, 100_000),
        Row("drain in batches of 500, 2 processes", "batch.rate", rate, 300_000),
        Row("  the same, every result stored", "batch.results_rate", rate),
        Row(
            "  of 10,000 keys, each in order: of unordered",
            "ordered.rate",
            share,
            0.5,
            against=("drain.rate",),
        ),
        Row(f"delay_many of {sizes.many:,} calls, synced", "delay_many.rate", rate, 200_000),
        Row("publish_many, records of 100 bytes, synced", "publish.rate", rate, 300_000),
        Row("  read by a subscription, 2 processes", "subscription.rate", rate, 300_000),
        Row("delay() one by one, synced", "delay.rate", rate),
        Row(by_celery, "delay.rate", times, 4, against=(celery + "enqueue_per_s",)),
        Row(
            "  … of bare one-row commits",
            "delay.rate",
            share,
            0.7,
            against=("baselines.synced_per_s",),
        ),
        Row('delay() one by one, durability="os"', "delay_os.rate", rate),
        Row(by_celery, "delay_os.rate", times, 15, against=(celery + "enqueue_per_s",)),
        Row("  … of Huey’s, unsynced", "delay_os.rate", times, 1, against=(huey + "enqueue_per_s",)),
        Row("delay(), 4 producers beside 2 workers: all", "crowd.rate", rate),
        Row("  p99", "crowd.p99_ms", ms),
        Row("  worst", "crowd.worst_ms", ms),
        Row("  largest share of a producer to smallest", "crowd.unfairness", times, 2, at_most=True),
        Row("delay().get(), synced: p50", "get.p50_ms", ms),
        Row(
            "  … of the better peer’s",
            "get.p50_ms",
            share,
            0.5,
            at_most=True,
            against=(celery + "call_get_p50_ms", huey + "call_get_p50_ms"),
        ),
        Row("  p99", "get.p99_ms", ms),
        *rows_of_again(sizes),
        Row(
            f"calls --between over {sizes.records:,} records: newest page",
            "between.newest_ms",
            ms,
            1000,
            at_most=True,
        ),
        Row("  oldest page", "between.oldest_ms", ms, 1000, at_most=True),
        Row("idle worker with 2 processes: of a core", "idle.cpu_percent", percent, 0.3, at_most=True),
        Row("memory of a child: resident", "idle.child_rss_mb", mb, 35, at_most=True),
        Row("  of which not shared", "idle.child_uss_mb", mb),
        Row("import respool, Python’s start with it", "startup.import_ms", ms, 80, at_most=True),
        Row("respool --help", "startup.help_ms", ms, 200, at_most=True),
        Row("  python -c pass, for comparison", "startup.bare_ms", ms),
        Row("Celery + Redis: drain", celery + "drain_per_s", rate),
        Row("  calls sent one by one", celery + "enqueue_per_s", rate),
        Row("  call and get: p50", celery + "call_get_p50_ms", ms),
        Row("Huey + SQLite, unsynced: drain", huey + "drain_per_s", rate),
        Row("  calls sent one by one", huey + "enqueue_per_s", rate),
        Row("  call and get: p50", huey + "call_get_p50_ms", ms),
        Row("bare one-row commits, synced", "baselines.synced_per_s", rate),
        Row("bare syncs of one page of this disk", "baselines.syncs_per_s", rate),
        Row(by_celery, "baselines.syncs_per_s", times, against=(celery + "enqueue_per_s",)),
    ]


def lines(
    sizes: Sizes, rounds: Sequence[Round], failures: Mapping[str, str], engine: str
) -> list[dict[str, Any]]:
    """The table, ready to be shown and kept. Rows of steps that were not asked for are left out.

    `failures`: step: why, for steps that failed in any round.
    """
    out = []
    for row in rows(sizes, engine):
        values = [value for done in rounds if (value := row.value(done)) is not None]
        own = row.figure.partition(".")[0]
        failed = [step for step in row.steps if step in failures]
        if not values and not (failed and (own in failures or any(own in done for done in rounds))):
            continue
        line: dict[str, Any] = {
            "work": row.work,
            "asked": row.asked_shown,
            "failed": failed,
            "values": values,
        }
        if values:
            median = statistics.median(values)
            line |= {
                "median": row.shown(median),
                "from": row.shown(min(values)),
                "to": row.shown(max(values)),
            }
            if row.asked is not None:
                line["reached"] = median <= row.asked if row.at_most else median >= row.asked
                line["part"] = median / row.asked if row.asked else float("inf")
        out.append(line)
    return out


def verdict(line: Mapping[str, Any]) -> str:
    """In words: whether a line reached what was asked, else by how much not."""
    if line["failed"] and not line["values"]:
        return f"{', '.join(line['failed'])} failed"
    if "reached" not in line:
        return ""
    missed = f"no: {100 * line['part']:.0f} %" if line["part"] < 9.995 else f"no: {line['part']:,.0f}x"
    return "yes" if line["reached"] else missed


def spread(line: Mapping[str, Any]) -> str:
    if len(line["values"]) < 2:
        return ""
    low, unit = _split(line["from"])
    high, other = _split(line["to"])
    return f"{low}–{high}{unit}" if unit == other else f"{line['from']}–{line['to']}"


def _split(shown: str) -> tuple[str, str]:
    number = shown.rstrip("/sxm MB%")
    return number, shown[len(number) :]
