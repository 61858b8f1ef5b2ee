"""What every result holds besides its times: where, when, by which code and command, and what the times mean."""

import importlib.metadata
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flashslm.benchmarking.case import Case
from flashslm.hardware import DeviceFingerprint, DeviceKind, device_fingerprint, peak
from flashslm.infra.checkout import commit
from flashslm.infra.state_files import write_whole
from flashslm.models.accounting import parameters
from flashslm.ops import kernels

PACKAGES = ("torch", "triton", "transformers", "flash-linear-attention", "mamba-ssm")


class Provenance(BaseModel):
    """`device` is the fingerprint's name; `commit` is None where neither git nor FLASHSLM_COMMIT tells it."""

    model_config = ConfigDict(frozen=True)

    device: str
    fingerprint: DeviceFingerprint
    commit: str | None
    versions: dict[str, str]
    command: str
    date: str


class ModelFacts(BaseModel):
    """What ran. `kernels` are the forms that ran, `engine` names the one of the decode step, `weights` their format."""

    model_config = ConfigDict(frozen=True)

    preset: str
    operators: str
    parameters: int
    engine: str
    dtype: str
    weights: str
    kernels: dict[str, str]
    batch: int
    context: int
    new_tokens: int
    repeats: int


class Mbu(BaseModel):
    """Share of the memory bandwidth that a decode step uses; None where no data sheet is known for the device.

    `bytes_per_token` are those a step must move (`accounting.decode_bytes_per_token`) at its mean context.
    """

    model_config = ConfigDict(frozen=True)

    bytes_per_token: float
    bandwidth_bytes_per_s: float | None  # data sheet
    bandwidth_measured_bytes_per_s: float  # a copy on this machine
    mbu: float | None
    mbu_measured: float


def provenance(device: DeviceKind) -> dict[str, Any]:
    """The fields of `Provenance` for this process."""
    fingerprint = device_fingerprint(device)
    return {
        "device": fingerprint.name,
        "fingerprint": fingerprint,
        "commit": commit(),
        "versions": versions(),
        "command": command(),
        "date": date.today().isoformat(),
    }


def record_facts(device: DeviceKind) -> dict[str, Any]:
    """`Provenance` of this process as JSON values, which a record in a file begins with."""
    return Provenance(**provenance(device)).model_dump(mode="json")


def model_facts(case: Case, backend: str) -> dict[str, Any]:
    """The fields of `ModelFacts`; called once everything has run, so that `kernels` is complete."""
    return {
        "preset": case.preset,
        "operators": case.architecture.operators,
        "parameters": parameters(case.architecture)["total"],
        "engine": f"flashslm ({backend})",
        "dtype": case.dtype,
        "weights": case.weights,
        "kernels": kernels.decisions(),
        "batch": case.batch,
        "context": case.context,
        "new_tokens": case.new_tokens,
        "repeats": case.repeats,
    }


def memory_bandwidth_use(moved_bytes: float, step_ms: float, gpu: str, copy_bytes_per_s: float) -> Mbu:
    """MBU = bytes a step must move / its time / bandwidth, by the data sheet and by the copy."""
    known = peak(gpu)
    rate_bytes_per_s = moved_bytes / (step_ms * 1e-3)
    return Mbu(
        bytes_per_token=moved_bytes,
        bandwidth_bytes_per_s=known.bytes_per_s if known else None,
        bandwidth_measured_bytes_per_s=copy_bytes_per_s,
        mbu=rate_bytes_per_s / known.bytes_per_s if known else None,
        mbu_measured=rate_bytes_per_s / copy_bytes_per_s,
    )


def command() -> str:
    """How this process was started; a script by its path from the working directory, other files elsewhere by name."""
    program = Path(sys.argv[0])
    started = ["python", os.path.relpath(program)] if program.suffix == ".py" else [program.name]
    return shlex.join([*started, *map(_portable, sys.argv[1:])])


def _portable(argument: str) -> str:
    """An argument without the directories that only this machine has."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def versions() -> dict[str, str]:
    """Of Python and of those packages a decode step's time depends on, as far as they are installed."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def result_name(subject: str, device: DeviceKind) -> str:
    """`subject_device_date`, the stem of a result's file."""
    name = device_fingerprint(device).name.lower()
    return f"{subject}_{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}_{date.today()}"


def read_record(file: Path, *needed: str) -> dict[str, Any]:
    """A record that was written before. ValueError where the file holds none, or one without what is `needed`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{file}' is not a record, as it is not JSON ({error}): give another file") from None
    if not isinstance(found, dict):
        raise ValueError(f"'{file}' is not a record: it holds no JSON object; give another file")
    if absent := [name for name in needed if name not in found]:
        raise ValueError(f"'{file}' is not a record of that benchmark: it has no {', '.join(absent)}")
    return found


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all; its directory is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(record, indent=1) + "\n")
    file.chmod(0o644)  # it is to be read by others, also where a benchmark runs as root
