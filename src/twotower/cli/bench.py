"""`twotower bench`: how the user's own bundle is served on this machine."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from twotower.cli.progress import tell

if TYPE_CHECKING:
    from twotower.serving.load.generator import LoadPlan, Saturation
    from twotower.serving.load.measuring import IndexChoice, Served

DRAWN = 20_000
"""Requests made ready; a longer run begins again with the first."""
SATURATION_STEP_S = 4.0
"""How long each rate is tried."""
LATE_MS = 1.0
"""By which the client may be late itself without a word about it."""


@click.group()
def bench() -> None:
    """Measure on this machine what users would get.

    \b
    Example:
      twotower bench serve runs/simulated/bundle
    """


@bench.command("serve")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Requests a second, whether the server keeps up or not.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long, after two seconds to warm up.",
)
@click.option("-k", "k", type=click.IntRange(min=1), default=20, show_default=True, help="Items in an answer.")
@click.option(
    "--users",
    type=click.Choice(["uniform", "zipf"]),
    default="uniform",
    show_default=True,
    help="How users are drawn: all alike, or the r-th busiest in proportion to 1/r.",
)
@click.option(
    "--connections", type=click.IntRange(min=1), default=256, show_default=True, help="Connections at once, at most."
)
@click.option("--saturate", is_flag=True, help="Look for the highest rate that the server follows as well.")
@click.option("--no-index", is_flag=True, help="Do not compare the exact with the approximate index.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the users.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def bench_serve(
    bundle: Path,
    rate: float,
    seconds: float,
    k: int,
    users: Literal["uniform", "zipf"],
    connections: int,
    saturate: bool,
    no_index: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Start `twotower serve BUNDLE`, ask it at a constant rate, and say how quickly it answers.

    Latency runs from the moment when a request was due until its whole answer is read, so that a stall counts for all
    who come meanwhile. Server and client run on cores of their own where the machine has two. Then the exact and the
    approximate index are measured on the bundle's own embeddings, and the one to set in the recipe is named.

    \b
    Example:
      twotower bench serve runs/simulated/bundle
      twotower bench serve runs/simulated/bundle --rate 1000 --seconds 30 --saturate --json
    """
    from twotower.bundle import Bundle
    from twotower.serving.load.child import cores_apart, on_cores, serving
    from twotower.serving.load.generator import LoadPlan
    from twotower.serving.load.measuring import choose_index, request_bodies

    opened = Bundle.load(bundle)
    server_cores, client_cores = cores_apart() or (None, None)
    bodies = request_bodies(opened, k=k, count=DRAWN, users=users, seed=seed)
    found: dict[str, Any] = {
        "bundle": opened.id,
        "k": k,
        "users": users,
        "seed": seed,
        "cores": client_cores and "apart",
    }
    with serving(bundle, "--store", "none", cores=server_cores) as child, on_cores(client_cores):
        tell(f"{child.bundle_id} was ready after {child.ready_seconds:.1f} s; asking it {rate:g} times a second")
        plan = LoadPlan(url=child.url, rate=rate, seconds=seconds, bodies=bodies, warmup=2.0, connections=connections)
        served, saturation = _ask(plan, saturate=saturate)
        found |= {"ready_seconds": child.ready_seconds, "resident_mb": child.resident_mb()}
    choice = None
    if not no_index:
        tell("comparing the exact with the approximate index")
        choice = choose_index(opened, users=users, seed=seed)
    if as_json:
        found |= {"load": served.load.summary(), "timings_ms": served.timings_ms}
        found |= {"saturation": saturation and asdict(saturation), "index": choice and asdict(choice)}
        click.echo(json.dumps(found, indent=1))
        return
    _print_served(served, found=found, saturation=saturation)
    if choice is not None:
        _print_choice(choice)


def _ask(plan: "LoadPlan", *, saturate: bool) -> "tuple[Served, Saturation | None]":
    from dataclasses import replace

    from twotower.serving.load.generator import find_saturation, run_loop
    from twotower.serving.load.measuring import measure

    served = run_loop(measure(plan))
    if not saturate:
        return served, None
    tell("looking for the highest rate that it follows")
    return served, run_loop(find_saturation(replace(plan, seconds=SATURATION_STEP_S, warmup=1.0)))


def _print_served(served: "Served", *, found: dict[str, Any], saturation: "Saturation | None") -> None:
    from twotower.cli.tables import print_table

    load = served.load
    rows = [
        ["asked", f"{load.rate:g} a second for {load.seconds:g} s, {found['users']} over users, k = {found['k']}"],
        ["answered", f"{load.achieved:.1f} a second"],
        *([f"p{percent}", f"{load.percentile_ms(percent):.2f} ms"] for percent in (50, 95, 99)),
        ["max", f"{load.percentile_ms(100):.2f} ms"],
        ["turned away", f"{load.shed:.2%}"],
        ["failed", _failed(served)],
        ["memory", f"{found['resident_mb']:.0f} MB resident"],
        ["ready after", f"{found['ready_seconds']:.1f} s"],
    ]
    if saturation is not None:
        rows.append(["saturation", f"{saturation.max_rps:.0f} a second"])
    if found["cores"] is None:
        rows.append(["cores", "server and client share them: the figures are worse than the server's own"])
    if (late := load.summary()["late_p99_ms"]) is not None and late > LATE_MS:
        rows.append(["the client", f"was itself late by {late:.1f} ms (p99): is the machine busy?"])
    print_table(f"Serving {found['bundle']}", ["", ""], rows)
    parts = [[part, f"{each['p50']:.3f}", f"{each['p99']:.3f}"] for part, each in served.timings_ms.items()]
    print_table("Within the server, ms", ["part", "#p50", "#p99"], parts)


def _failed(served: "Served") -> str:
    """How many failed, and how."""
    load = served.load
    how = [f"{count} {name}" for name, count in load.errors.items()]
    how += [f"{count} with {status}" for status, count in load.counts.items() if status not in (200, 429, 503)]
    return f"{load.failed}" + (f" ({', '.join(how)})" if how else "")


def _print_choice(choice: "IndexChoice") -> None:
    from twotower.cli.tables import console, print_table

    rows = [
        [
            each.kind,
            f"{each.ms_per_query:.3f}",
            f"{each.recall:.4f}",
            "" if each.build_seconds is None else f"{each.build_seconds:.1f}",
        ]
        for each in choice.figures
    ]
    title = f"Indexes, one query for {choice.depth} candidates"
    print_table(title, ["kind", "#ms", f"#recall@{choice.depth}", "#seconds to build"], rows)
    is_own = choice.own == choice.better
    verdict = "which the bundle has" if is_own else f"the bundle has {choice.own}: set it in the recipe"
    console().print(f'index.kind = "{choice.better}" ({verdict}). {choice.why}.', markup=False)
