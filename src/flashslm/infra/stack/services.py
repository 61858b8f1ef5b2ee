"""Which home and which services a command uses: those of the environment, or the embedded stack of a home."""

import os
from pathlib import Path

from flashslm.infra.settings import OWN_NAMES, VARIABLES, Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.stack.daemons import StackError


def find_home(start: Path | None = None) -> Path:
    """The `.flashslm` of a directory (default: the present one) or the nearest above it, else where one would be made.

    Raises StackError for one that belongs to another user: its credentials and caches would be believed.
    """
    here = (start or Path.cwd()).resolve()
    for directory in (here, *here.parents):
        home = directory / embedded_stack.DEFAULT_HOME
        if home.is_dir():
            if home.stat().st_uid != os.getuid():
                raise StackError(f"'{home}' belongs to another user: give a directory of your own with --home")
            return home
    return here / embedded_stack.DEFAULT_HOME


def resolve_settings(home: Path) -> Settings:
    """The environment's services if it names any, else the embedded stack of a home, started if need be: for work.

    Raises StackError if no home is found: a command that runs one step does not make one.
    """
    if settings := _of_environment():
        return settings
    if embedded_stack.settings_of(home) is None:
        raise _no_stack(home)
    return embedded_stack.up(home)


def existing_settings(home: Path) -> Settings:
    """The environment's services if it names any, else those of a stack that was started: for looking.

    Nothing is made or started. Raises StackError where there is no stack, or where none runs.
    """
    if settings := _of_environment():
        return settings
    settings, status = embedded_stack.settings_of(home), embedded_stack.status(home)
    if settings is None:
        raise _no_stack(home)
    if stopped := [service.name for service in status.services if not service.running]:
        raise StackError(
            f"the stack in '{home}' does not run ({', '.join(stopped)}): start it with `flashslm stack up`"
        )
    return settings


def _no_stack(home: Path) -> StackError:
    return StackError(f"no stack in '{home}': `flashslm stack up` or `flashslm run` makes one, --home names another")


def _of_environment() -> Settings | None:
    tracking = (VARIABLES["tracking_uri"], OWN_NAMES["tracking_uri"])
    named = os.environ.get(VARIABLES["endpoint_url"]) and any(os.environ.get(name) for name in tracking)
    return Settings.from_env() if named else None
