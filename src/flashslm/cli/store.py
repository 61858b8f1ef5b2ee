"""`flashslm store`: verify what is stored, and remove what nothing needs."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from flashslm.cli.options import HOME, RUNS, HomeOption, JsonOption, RunsOption
from flashslm.cli.output import AS_IT_IS

DaysOption = Annotated[float, typer.Option("--days", min=0.0, help="Nothing younger goes, checkpoints excepted.")]
DAYS = 30.0

store_app = typer.Typer(no_args_is_help=True, help="The object store and this machine's caches of it.")


@store_app.command("verify")
def store_verify(home: HomeOption = HOME, runs: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Read every object; a damaged one is taken out, and put back where this machine has a good copy.

    Exit code 1 if one is damaged that could not be put back: the run that makes it does so.
    """
    from flashslm.infra.stack.services import existing_settings
    from flashslm.infra.storage.audit import audit
    from flashslm.infra.storage.object_store import ObjectStore

    found = audit(ObjectStore(existing_settings(home)), [*home.glob("trees/*"), *runs.glob("*/export")])
    if as_json:
        damages = [damage._asdict() for damage in found.damages]
        print(json.dumps({"trees": found.trees, "records": found.records, "damages": damages}))
    else:
        for damage in found.damages:
            end = "put back from a local copy" if damage.is_restored else "NOT put back"
            Console().print(f"{damage.key}: {damage.problem}; {end}", **AS_IT_IS)
        read = f"{found.trees} trees and {found.records} records were read"
        Console().print(f"{read}, {len(found.damages)} are damaged", highlight=False)
    if not all(damage.is_restored for damage in found.damages):
        raise typer.Exit(1)


@store_app.command("gc")
def store_gc(
    home: HomeOption = HOME,
    runs: RunsOption = RUNS,
    days: DaysOption = DAYS,
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed; without it nothing is.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what nothing needs: checkpoints of finished trainings, trees, old runs and caches. --delete removes it.

    What a registry version, a schedule or a kept run names stays, whatever its age.
    """
    from flashslm.infra.stack.services import existing_settings
    from flashslm.launch.local.garbage import Collector
    from flashslm.launch.processes import exclusive

    settings = existing_settings(home)
    with exclusive(home / "kfp" / "lock"):  # no run begins meanwhile
        collector = Collector(settings, home, runs, days * 86_400.0)
        found = collector.find()
        for garbage in found if delete else ():
            collector.remove(garbage)
    rows = [{"kind": g.kind, "name": g.name, "bytes": g.bytes, "reason": g.reason} for g in found]
    if as_json:
        print(json.dumps({"deleted": delete, "garbage": rows}))
        return
    table = Table("kind", Column("name", overflow="fold"), "bytes", "reason", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    if rows:
        Console().print(table)
    size = f"{len(rows)} things, {sum(g.bytes for g in found):,} bytes"
    Console().print(f"{size} removed" if delete else f"{size}; --delete removes them", highlight=False)
