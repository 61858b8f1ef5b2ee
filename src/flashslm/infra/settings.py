"""Settings: the one environment contract of every step, local or on a cluster."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

# field -> variable; the launcher (or the cluster's secrets) sets them, every step reads them
VARIABLES = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "region": "AWS_REGION",
    "endpoint_url": "AWS_ENDPOINT_URL_S3",
    "bucket": "FLASHSLM_BUCKET",
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "experiment": "MLFLOW_EXPERIMENT_NAME",
    "parent_run_id": "FLASHSLM_PARENT_RUN_ID",
    "study_url": "FLASHSLM_STUDY_URL",
    "s3_checksums": "FLASHSLM_S3_CHECKSUMS",
    "patience_s": "FLASHSLM_PATIENCE_S",
    "data_cache_bytes": "FLASHSLM_DATA_CACHE_BYTES",
    "stack_file": "FLASHSLM_STACK",
    "kfp_run_id": "FLASHSLM_KFP_RUN_ID",
}

# Names of our own, read before those of MLflow: in a pod, KFP's plug-in for MLflow sets MLFLOW_*, and a variable that
# is set twice makes an invalid pod.
OWN_NAMES = {"tracking_uri": "FLASHSLM_TRACKING_URI", "experiment": "FLASHSLM_EXPERIMENT_NAME"}

FROM_PLATFORM = ("patience_s", "data_cache_bytes")  # fields that a recipe's platform section sets for its steps

# Of the user's other work: they would lead boto3 to another account, and every step into one MLflow run.
FOREIGN_VARIABLES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "MLFLOW_RUN_ID")


DEFAULT_EXPERIMENT = "flashslm"
_MAX_EXPERIMENT_CHARACTERS = 256  # MLflow itself takes 500, and its database's column 256
LOOPBACK_ADDRESS = "http://127.0.0.1:{}"
STACK_PORTS = {"endpoint_url": "s3", "tracking_uri": "mlflow"}  # field -> the port's name in stack.json


class SettingsError(ValueError):
    """The environment does not say where S3 and MLflow are; the message names every variable at fault."""


def experiment_name(environ: Mapping[str, str] | None = None) -> str:
    """MLflow's experiment that the environment names, else this project's. Raises SettingsError for a wrong name."""
    source = os.environ if environ is None else environ
    variable = OWN_NAMES["experiment"] if source.get(OWN_NAMES["experiment"]) else VARIABLES["experiment"]
    name = source.get(variable) or DEFAULT_EXPERIMENT
    try:
        return _checked_experiment(name)
    except ValueError as error:
        raise SettingsError(f"{variable}: {error} (given: {name!r})") from None


def _checked_experiment(name: str) -> str:
    """Raise ValueError for a name that MLflow, or the column of its database, would refuse in the middle of a run."""
    if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > _MAX_EXPERIMENT_CHARACTERS:
        raise ValueError(
            f"an experiment's name has 1 to {_MAX_EXPERIMENT_CHARACTERS} printable characters, no line breaks or tabs "
            "among them and no blanks at its ends"
        )
    return name


class Settings(BaseModel):
    """Where S3, MLflow and the study are, and how to speak to them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    access_key: str = Field(min_length=1)
    secret_key: str = Field(min_length=1, repr=False)
    region: str = "us-east-1"
    endpoint_url: str = Field(pattern=r"^https?://")
    bucket: str = Field(min_length=1)
    tracking_uri: str = Field(min_length=1)
    experiment: str = DEFAULT_EXPERIMENT
    parent_run_id: str = ""
    study_url: str = Field(default="", repr=False)  # may hold a password
    # "when_required" for S3 servers that refuse the CRC trailers newer clients send (some MinIO, Ceph, B2)
    s3_checksums: Literal["when_supported", "when_required"] = "when_supported"
    # How long to wait for an object store or a study database that is away. A step has the recipe's
    # platform.patience_s, a command at a terminal this.
    patience_s: int = Field(default=60, ge=0)
    # What the files of data sets that are read while a model trains may take on a machine: platform.data_cache_bytes.
    data_cache_bytes: int = Field(default=32 * 10**9, gt=0)
    kfp_run_id: str = ""  # of the KFP run that this pod belongs to
    stack_file: str = ""  # of the embedded stack whose services these are: its ports may change

    @field_validator("experiment")
    @classmethod
    def _is_usable(cls, name: str) -> str:
        return _checked_experiment(name)

    @field_validator("endpoint_url", "tracking_uri")
    @classmethod
    def _holds_no_credentials(cls, address: str) -> str:
        """An address is shown in messages, in the UI and to `stack status`."""
        if "@" in address.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "an address with a user or password would be shown in messages: S3 has its keys, and MLflow takes "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return address

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the contract's variables; an empty one counts as missing.

        Raises SettingsError that names every missing or malformed variable.
        """
        source = os.environ if environ is None else environ
        values = {field: source[name] for field, name in VARIABLES.items() if source.get(name)}
        values |= {field: source[name] for field, name in OWN_NAMES.items() if source.get(name)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            listed = "\n".join(f"  {_describe(e)}" for e in error.errors())
            raise SettingsError(
                f"the environment does not say what S3 and MLflow need:\n{listed}\n"
                "`flashslm stack up` starts both on this machine; on a cluster the step's secret holds them"
            ) from None

    def present(self) -> "Settings":
        """These settings with the addresses at which their embedded stack listens now.

        A service whose port another process took while it was down has a new one; a process that was started before
        learns of it here.
        """
        if not self.stack_file:
            return self
        try:
            state = json.loads(Path(self.stack_file).read_bytes())
            addresses = {field: LOOPBACK_ADDRESS.format(state["ports"][name]) for field, name in STACK_PORTS.items()}
            is_own = state["access_key"] == self.access_key
        except (OSError, ValueError, LookupError, TypeError):  # absent or damaged: `stack up` writes it again
            return self
        return self.model_copy(update=addresses) if is_own else self

    def as_env(self) -> dict[str, str]:
        """The contract's variables for a child process, with those that boto3 and MLflow read themselves."""
        named = [*VARIABLES.items(), *OWN_NAMES.items()]
        env = {name: str(getattr(self, field)) for field, name in named if getattr(self, field)}
        return env | {
            "AWS_DEFAULT_REGION": self.region,
            "AWS_SESSION_TOKEN": "",  # one of the user's own cloud account does not fit these keys
            "AWS_REQUEST_CHECKSUM_CALCULATION": self.s3_checksums,
            "AWS_RESPONSE_CHECKSUM_VALIDATION": self.s3_checksums,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint_url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }


def _describe(error: object) -> str:
    assert isinstance(error, dict)
    field = str(error["loc"][0])
    if error["type"] == "missing":
        return f"{VARIABLES[field]}: missing"
    silent = field in ("secret_key", "study_url") or "@" in str(error["input"])
    given = "" if silent else f" (given: {error['input']!r})"
    return f"{VARIABLES[field]}: {error['msg'].removeprefix('Value error, ')}{given}"


def pod_variables(platform: Any) -> list[dict[str, str]]:
    """What a recipe's platform section sets in its pods. Defaults of `Settings` are left out, since Argo records every
    pod's environment several times.
    """
    values = {field: getattr(platform, field) for field in FROM_PLATFORM}
    changed = {field: value for field, value in values.items() if value != Settings.model_fields[field].default}
    return [{"name": VARIABLES[field], "value": str(value)} for field, value in changed.items()]
