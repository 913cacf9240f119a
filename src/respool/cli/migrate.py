"""`respool migrate`: make the schema, or print what makes it."""

from __future__ import annotations

import click

from .common import common, document_option


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print the SQL and do nothing.")
@click.option("--producer", metavar="ROLE", help="Give a role what it needs to send and ask for results.")
@document_option
def command(only_print: bool, producer: str | None, as_json: bool) -> None:
    """Make the schema that the log lives in, where it is not there yet, or the indexes that it lacks.

    On PostgreSQL that needs the right to create a schema; the application's own role needs it only if
    nobody has run this. With --print the SQL comes out, for those who run their own migrations. A file is
    made by its first use, and needs nothing.

    With --producer a role gets the rights to send calls and events and to ask for their results, and no
    others; a worker's role is a member of the schema's owner.

    \b
    respool -A shop migrate
    respool migrate --url postgresql://owner@host/shop
    respool migrate --print --url postgresql://host/shop | psql …
    respool migrate --producer web --url postgresql://owner@host/shop
    """
    from ..engines import grant, grants_of, migrate, schema_of
    from ..location import locate
    from .output import document

    given = common()
    if given.app and not given.url:
        from .loading import load_app

        location = load_app(given.app, None).location
    else:
        _, location = locate(given.url, None)
    if only_print:
        click.echo(schema_of(location) if producer is None else grants_of(location, producer))
        return
    made = migrate(location)
    if producer is not None:
        grant(location, producer)
    if as_json:
        document({"url": location.shown, "made": made, "producer": producer})
        return
    click.echo(f"{location.shown}: {'the schema was made' if made else 'the schema is there, and current'}")
    if producer is not None:
        click.echo(f"{producer} may send, and ask for results")
