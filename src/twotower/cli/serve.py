"""`twotower serve`: a bundle over HTTP. Nothing that trains is imported here."""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

import click


@click.command()
@click.argument("bundle")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen. Anything but loopback needs a key.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Where to listen; 0 takes a free port and names it.",
)
@click.option(
    "--store",
    metavar="PATH|URI",
    help="Where events and items are kept: a file, or postgresql://...; by default serving.db beside the bundle, and "
    "none for a bundle at an address; 'none' keeps none.",
)
@click.option("--watch", metavar="ADDRESS", help="A registry's folder, ADDRESS/NAME, whose champion is to answer.")
@click.option(
    "--keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keys and what each may do; see `twotower keys`.",
)
@click.option("--admin-host", default="127.0.0.1", show_default=True, help="Where to listen for the admin.")
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    help="Where to listen for the admin, who says which bundles answer; by default nowhere.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where downloaded bundles lie; by default a temporary directory.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Of what goes to stderr.",
)
@click.option("--access-log", is_flag=True, help="Write a line for each request.")
def serve(
    bundle: str,
    host: str,
    port: int,
    store: str | None,
    watch: str | None,
    keys: Path | None,
    admin_host: str,
    admin_port: int | None,
    cache: Path | None,
    log_format: str,
    access_log: bool,
) -> None:
    """Answer over HTTP from BUNDLE, a directory or an address such as s3://bucket/films/versions/ID.

    POST /v1/recommend takes {"user_id": ...} or {"history": [...]} with k, exclude, filter, context, explain and
    deadline_ms; /openapi.json tells the rest, and / shows it. Where there is a key (TWOTOWER_API_KEY,
    TWOTOWER_ADMIN_KEY or --keys), a request has to show one: Authorization: Bearer KEY.

    \b
    Example:
      twotower serve runs/simulated/bundle --port 8000
      twotower serve runs/simulated/bundle --admin-port 8001 --store events.db
    """
    _leave_pandas_out()
    # Read by numpy's library when it is loaded: one request is computed at a time, on vectors too small to share out.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from twotower.serving import http

    options = http.ServeOptions(
        host=host,
        port=port,
        admin_host=admin_host,
        admin_port=admin_port,
        store=http.store_of(bundle, store),
        watch=watch,
        keys=keys,
        cache=cache,
        log_format="json" if log_format == "json" else "text",
        access_log=access_log,
    )
    http.serve(bundle, options)


class _NoPandas(MetaPathFinder):
    """Says that pandas is not installed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:  # noqa: ARG002
        if fullname == "pandas":
            raise ModuleNotFoundError("left out of the server", name=fullname)


def _leave_pandas_out() -> None:
    """Have Arrow do without pandas, as it does where there is none.

    It looks for it once, when it makes its first array. Loaded, it costs a start 0.8 s and 30 MB, and a server has no
    use for it.
    """
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(finder)
