"""Answers that a real KFP 2.17.0 gave about runs of this project's pipelines, put into the fake server.

`recorded/NAME.json.gz` is `GET /apis/v2beta1/runs/ID` without the specification, `NAME.v1beta1.json.gz` the older API's
answer with Argo's workflow, `PIPELINE.yaml.gz` the definition that ran. Cluster: Kubernetes 1.36.2, Argo 4.0.8.
"""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import yaml

from tests.pipeline.fake_kfp import FakeKfp, read

HERE = Path(__file__).parent
PIPELINES = {"succeeded_retraining": "retraining"}


def recorded(name: str) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress((HERE / "recorded" / f"{name}.json.gz").read_bytes())))


def recorded_nodes(name: str) -> dict[str, Any]:
    """The node statuses of a recorded workflow, decompressed where Argo compressed them."""
    status = json.loads(recorded(f"{name}.v1beta1")["pipeline_runtime"]["workflow_manifest"])["status"]
    if compressed := status.get("compressedNodes"):
        return dict(json.loads(gzip.decompress(base64.b64decode(compressed))))
    return dict(status["nodes"])


def add_recorded_run(fake: FakeKfp, name: str) -> str:
    """Serve a recorded run, with its pipeline's definition as the real server does; returns its id."""
    run = read("V2beta1Run", recorded(name))
    definition = HERE / "recorded" / f"{PIPELINES.get(name, 'design_and_train')}.yaml.gz"
    spec = yaml.safe_load(gzip.decompress(definition.read_bytes()))
    run.pipeline_spec = {"pipeline_spec": spec}
    fake.runs.append(run)
    if (HERE / "recorded" / f"{name}.v1beta1.json.gz").is_file():
        manifest = recorded(f"{name}.v1beta1")["pipeline_runtime"]["workflow_manifest"]
        fake.workflows[run.run_id] = json.loads(manifest)
    return str(run.run_id)
