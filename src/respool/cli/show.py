"""`respool show`: one call."""

from __future__ import annotations

import click

from .common import document_option, resolve_option


@click.command()
@click.argument("id")
@click.option("--group", metavar="NAME", help="Only as this group sees it.")
@resolve_option
@document_option
def command(id: str, group: str | None, resolve: bool, as_json: bool) -> None:
    """Show a call: its input, its attempts, and what it gave in each group.

    ID may be the beginning of an id, of 6 characters or more, where it is that of one call only; so it may
    for rerun, dead and replay. The newest 100,000 records are looked at for it.

    \b
    respool -A shop show 0198c1d2-4a
    respool -A shop show order-17 --json
    """
    from ..errors import UnknownName
    from .details import FETCHED, PRINTED, print_record, record_data
    from .output import document
    from .target import open_target

    target = open_target()
    places = target.find(id)
    if group is not None:
        known = {
            each.name for pos in places for each in target.groups if each.stream == target.stream_at(pos).id
        }
        if group not in known:
            raise UnknownName("group", group, known, f"of {id}")
    most = float("inf") if resolve else PRINTED if as_json else FETCHED
    found = [record_data(target, pos, None if group is None else {group}, most) for pos in places]
    if as_json:
        document(found[0] if len(found) == 1 else found)
        return
    for data in found:
        print_record(data)
