"""The environment contract in a pod: ConfigMap and Secrets are mounted, each key a file with the variable's name.

Argo records a pod's environment six times, so a variable costs far more there than a file of a mounted object. An
object may be absent: what is missing then is named by whoever needs it, and no pod waits for it. MLflow's variables
have names of our own, since KFP's plug-in for MLflow sets MLFLOW_* in the same pods.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

DIRECTORY = Path("/etc/flashslm")  # the cluster pass mounts each object in a directory of its purpose below this one

CONFIG_MAP_VARIABLES = ("AWS_ENDPOINT_URL_S3", "FLASHSLM_BUCKET", "FLASHSLM_TRACKING_URI")
CONFIG_MAP_OPTIONAL = (
    "AWS_REGION",
    "FLASHSLM_S3_CHECKSUMS",
    "FLASHSLM_EXPERIMENT_NAME",
    "FLASHSLM_KFP_API",
    "FLASHSLM_KFP_URL",
    "FLASHSLM_MLFLOW_URL",
)
S3_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MLFLOW_SECRET_OPTIONAL = ("FLASHSLM_TRACKING_PASSWORD", "FLASHSLM_TRACKING_TOKEN", "FLASHSLM_TRACKING_USERNAME")
DATABASE_SECRET_VARIABLES = ("FLASHSLM_STUDY_URL",)
HOOK_SECRET_VARIABLES = ("FLASHSLM_HOOK_SECRET",)
HOOK_SECRET_OPTIONAL = ("FLASHSLM_HOOK_URL",)  # a hook that is a command has none
_MOUNTED = {
    *CONFIG_MAP_VARIABLES,
    *CONFIG_MAP_OPTIONAL,
    *S3_SECRET_VARIABLES,
    *MLFLOW_SECRET_OPTIONAL,
    *DATABASE_SECRET_VARIABLES,
    *HOOK_SECRET_VARIABLES,
    *HOOK_SECRET_OPTIONAL,
}


def mount_path(purpose: str) -> str:
    return f"{DIRECTORY}/{purpose}"


def load_mounted_environment(environ: MutableMapping[str, str] = os.environ, directory: Path = DIRECTORY) -> None:
    """Set the contract's variables that are mounted; those that the environment has already stay as they are."""
    for file in sorted(directory.glob("*/*")):
        if file.name in _MOUNTED and file.is_file():
            environ.setdefault(file.name, file.read_text(encoding="utf-8").rstrip("\n"))
