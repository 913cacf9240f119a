"""Is all there? `check` on both sides, and the same figures for each group."""

from __future__ import annotations

from functools import partial

from ..engines.base import Engine
from ..engines.moving import INCOMING
from ..record import first_pos
from ..replay.checking import GroupReport, Report, check
from .copying import Tell, by_name

Key = tuple[str, str, str, str, str]


def differences(source: Engine, target: Engine, tell: Tell) -> list[str]:
    """Return what is wrong on either side, or not the same on both; [] where all is there."""
    reports = [
        check(engine, partial(tell, f"check of the {side}"))
        for engine, side in ((source, "source"), (target, "target"))
    ]
    theirs, ours = _by_name(reports[0], ""), _by_name(reports[1], INCOMING)
    found = [f"on the source: {text}" for text in reports[0].problems]
    found += [f"on the target: {text}" for text in reports[1].problems]
    for key, report in theirs.items():
        name = f"{key[0]} {key[2]}, group {key[4]}"
        found += [f"on the source, {name}: {text}" for text in report.problems]
        there = ours.get(key)
        if there is None:
            found.append(f"{name} is not on the target")
            continue
        found += [f"on the target, {name}: {text}" for text in there.problems]
        if _figures(report) != _figures(there):
            found.append(f"{name}: {_figures(report)} on the source, {_figures(there)} on the target")
    return found + _other_logs(source, target)


def _by_name(report: Report, before: str) -> dict[Key, GroupReport]:
    return {
        (
            each.stream.kind,
            each.stream.app.removeprefix(before),
            each.stream.name,
            each.group.app,
            each.group.name,
        ): each
        for each in report.groups
        if each.stream.app.startswith(before)
    }


def _figures(report: GroupReport) -> dict[str, int]:
    parked = dict(report.parked)
    late = parked.pop("gap", 0)  # there it is in a lease that nobody has
    return {
        "records": report.records,
        "pending": report.pending,
        "returned": report.leased + late,
        "done": report.done,
        **{reason: number for reason, number in sorted(parked.items()) if number},
    }


def _other_logs(source: Engine, target: Engine) -> list[str]:
    """Return what differs of the logs themselves: how much there is, and where they end."""
    found = []
    there = by_name(target.streams())
    for key, stream in by_name(source.streams()).items():
        kind, app, name = key
        other = there.get((kind, INCOMING + app, name))
        if other is None or len(other.logs) != len(stream.logs):
            found.append(f"{kind} {name} has other partitions on the target")
            continue
        for log, ours in zip(stream.logs, other.logs, strict=True):
            numbers = [
                engine.record_count(first_pos(each), first_pos(each + 1))
                for engine, each in ((source, log), (target, ours))
            ]
            if numbers[0] != numbers[1]:
                found.append(
                    f"{kind} {name}: {numbers[0]:,} records on the source, {numbers[1]:,} on the target"
                )
        if target.capabilities.keeps_positions:
            ends = [
                [end - first_pos(log) for log, _, end in engine.bounds(each)]
                for engine, each in ((source, stream), (target, other))
            ]
            if ends[0] != ends[1]:
                found.append(f"{kind} {name} ends at {ends[0]} on the source, at {ends[1]} on the target")
    return found
