"""Which services a command uses: those of the environment, or the embedded stack."""

import os
from pathlib import Path

from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack


def resolve_settings(home: Path) -> Settings:
    """The environment's services if it names any, else the embedded stack, started if need be."""
    if os.environ.get("AWS_ENDPOINT_URL_S3") and os.environ.get("MLFLOW_TRACKING_URI"):
        return Settings.from_env()
    return embedded_stack.up(home)
