"""`respool migrate`: make the schema, or print what makes it."""

from __future__ import annotations

import click

from .common import common, document_option


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print the SQL and do nothing.")
@document_option
def command(only_print: bool, as_json: bool) -> None:
    """Make the schema that the log lives in, where it is not there yet.

    On PostgreSQL that needs the right to create a schema; the application's own role needs it only if
    nobody has run this. With --print the SQL comes out, for those who run their own migrations. A file is
    made by its first use, and needs nothing.

    \b
    respool -A shop migrate
    respool migrate --url postgresql://owner@host/shop
    respool migrate --print --url postgresql://host/shop | psql …
    """
    from ..config import find_url, parse_url
    from ..engines import migrate, schema_of
    from .output import document

    given = common()
    if given.app and not given.url:
        from .loading import load_app

        url = load_app(given.app, None).url
    else:
        url = find_url(given.url, None)
    location = parse_url(url)
    if only_print:
        click.echo(schema_of(location))
        return
    made = migrate(location)
    if as_json:
        document({"url": location.shown, "made": made})
    else:
        click.echo(
            f"{location.shown}: {'the schema was made' if made else 'the schema is there, and current'}"
        )
