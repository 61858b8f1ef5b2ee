"""`flashslm stack`: the embedded S3 and MLflow of this machine."""

import shlex
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flashslm.cli.options import HOME, HomeOption, JsonOption
from flashslm.cli.output import AS_IT_IS, console

if TYPE_CHECKING:
    from flashslm.infra.stack.embedded_stack import StackStatus

stack_app = typer.Typer(no_args_is_help=True, help="The embedded S3 and MLflow of this machine.")


def show_stack(status: "StackStatus", as_json: bool) -> None:
    if as_json:
        print(status.model_dump_json())
        return
    if not status.services:
        Console().print(f"no stack in '{status.home}': start it with `flashslm stack up`", **AS_IT_IS)
    for service in status.services:
        state = "healthy" if service.healthy else "not answering" if service.running else "stopped"
        Console().print(f"{service.name:<8}{state:<15}{service.address}  log {service.log}", **AS_IT_IS)


@stack_app.command("up")
def stack_up(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Start what is not running; safe to repeat."""
    from flashslm.infra.stack import embedded_stack

    embedded_stack.up(home)
    show_stack(embedded_stack.status(home), as_json)


@stack_app.command("status")
def stack_status(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Say what runs, where, and whether it answers."""
    from flashslm.infra.stack import embedded_stack

    show_stack(embedded_stack.status(home), as_json)


@stack_app.command("env")
def stack_env(home: HomeOption = HOME) -> None:
    """Print the variables by which other programs reach S3 and MLflow: `eval "$(flashslm stack env)"`.

    They hold the keys of S3.
    """
    from flashslm.infra.stack.services import existing_settings

    for name, value in existing_settings(home).as_env().items():
        print(f"export {name}={shlex.quote(value)}")


@stack_app.command("down")
def stack_down(
    home: HomeOption = HOME,
    force: Annotated[bool, typer.Option("--force", help="Stop it under a run that uses it, too.")] = False,
) -> None:
    """Stop both services; data stays. Refuses while a run uses them."""
    from flashslm.infra.stack import embedded_stack
    from flashslm.launch.processes import exclusive

    lock = home / "kfp" / "lock"
    with nullcontext() if force or not lock.is_file() else exclusive(lock):
        embedded_stack.down(home)
    console.print(f"stopped; data stays in {home}", **AS_IT_IS)
