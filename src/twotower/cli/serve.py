"""`twotower serve`: a bundle over HTTP. Nothing that trains is imported here."""

import os
from pathlib import Path

import click


@click.command()
@click.argument("bundle")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen. Anything but loopback needs a key in TWOTOWER_API_KEY.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Where to listen; 0 takes a free port and names it.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where a downloaded bundle lies; by default a temporary directory.",
)
def serve(bundle: str, host: str, port: int, cache: Path | None) -> None:
    """Answer over HTTP from BUNDLE, a directory or an address such as s3://bucket/films/versions/ID.

    POST /v1/recommend takes {"user_id": ...} or {"history": [...]} with k, exclude, exclude_seen and context;
    /openapi.json tells the rest. Where TWOTOWER_API_KEY is set, a request has to show it: Authorization: Bearer KEY.

    \b
    Example:
      twotower serve runs/simulated/bundle --port 8000
    """
    from twotower.serving import http

    # A key from a file often ends with a line's end, which no header can carry.
    api_key = os.environ.get(http.API_KEY, "").strip() or None
    http.serve(bundle, host=host, port=port, api_key=api_key, cache=cache)
