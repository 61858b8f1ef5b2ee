"""`python -m flashslm` is the `flashslm` command."""

from flashslm.cli import main

main()
