"""The command line: `app` puts the commands together, each other module is a family of them."""

from flashslm.cli.app import main

__all__ = ["main"]
