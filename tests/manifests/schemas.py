"""Strict validation of Kubernetes objects: an unknown field is an error, in a custom resource too.

Kubernetes' own kinds have the schemas of the package kubernetes-validate. Those of Kubeflow Trainer 2.3 are made of the
models its project publishes (kubeflow-trainer-api), closed against unknown fields, with the rules of its CRDs and
webhooks that models cannot say. Those of KFP's objects are few enough to be said here.
"""

import re
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
from kubeflow_trainer_api.models.trainer_v1alpha1_cluster_training_runtime import TrainerV1alpha1ClusterTrainingRuntime
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
from pydantic import BaseModel

Document = dict[str, Any]

KUBERNETES = ("1.33", "1.36")  # the oldest and the newest that KFP 2.17 is tested with
TRAINER: dict[str, type[BaseModel]] = {
    "TrainJob": TrainerV1alpha1TrainJob,
    "ClusterTrainingRuntime": TrainerV1alpha1ClusterTrainingRuntime,
}
ENV_BY_TRAINER_ONLY = {"node", "dataset-initializer", "model-initializer"}
_TEXT, _ANYTHING = {"type": "string"}, {"type": "object"}
_PIPELINE_SPEC = {"description": _TEXT, "displayName": _TEXT}
_VERSION_SPEC = _PIPELINE_SPEC | {
    "codeSourceURL": _TEXT,
    "pipelineName": _TEXT,
    "pipelineSpec": _ANYTHING,
    "pipelineSpecURI": _TEXT,
    "platformSpec": _ANYTHING,
}
PIPELINES = {"Pipeline": (_PIPELINE_SPEC, []), "PipelineVersion": (_VERSION_SPEC, ["pipelineSpec"])}


class Invalid(ValueError):
    """An API server would refuse the object."""


def validate(document: Document) -> None:
    """Raise Invalid, with the path of the field at fault."""
    kind, version = document.get("kind", ""), document.get("apiVersion", "")
    try:
        if kind in TRAINER:
            _validate_trainer(document)
        elif version == "pipelines.kubeflow.org/v2beta1" and kind in PIPELINES:
            jsonschema.Draft202012Validator(_pipelines_schema(kind)).validate(document)
        else:
            for release in KUBERNETES:
                kubernetes_validate.validate(document, release, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        path = ".".join(str(part) for part in error.absolute_path)
        raise Invalid(f"{kind} {path}: {error.message[:300]}") from None
    except kubernetes_validate.SchemaNotFoundError as error:
        raise Invalid(str(error.message)) from None


def _validate_trainer(document: Document) -> None:
    kind = document["kind"]
    if document["apiVersion"] != "trainer.kubeflow.org/v1alpha1":
        raise Invalid(f"{kind} apiVersion: {document['apiVersion']}")
    jsonschema.Draft202012Validator(trainer_schema(kind)).validate(document)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", document["metadata"].get("name", "")):
        raise Invalid(f"{kind} metadata.name: must be an RFC 1035 label of at most 63 characters")
    if kind == "ClusterTrainingRuntime" and "namespace" in document["metadata"]:
        raise Invalid(f"{kind} metadata.namespace: it belongs to the cluster")
    if kind == "TrainJob":
        _validate_train_job(document["spec"])


def _validate_train_job(spec: Document) -> None:
    trainer, patches = spec.get("trainer", {}), spec.get("runtimePatches", [])
    for path, value in (
        ("trainer.numNodes", trainer.get("numNodes", 1)),
        ("trainer.numProcPerNode", trainer.get("numProcPerNode", 1)),
        ("activeDeadlineSeconds", spec.get("activeDeadlineSeconds", 1)),
    ):
        if value < 1:
            raise Invalid(f"TrainJob spec.{path}: {value} is less than 1")
    managers = [patch["manager"] for patch in patches]
    if len(set(managers)) < len(managers):
        raise Invalid("TrainJob spec.runtimePatches: managers are the keys of the list and must differ")
    for container in _patched_containers(patches):
        if "env" in container and container["name"] in ENV_BY_TRAINER_ONLY:
            raise Invalid(
                f"TrainJob spec.runtimePatches: env of container '{container['name']}' belongs to spec.trainer"
            )


def _patched_containers(value: Any) -> list[Document]:
    if isinstance(value, list):
        return [found for item in value for found in _patched_containers(item)]
    if not isinstance(value, dict):
        return []
    own = [*value.get("containers", []), *value.get("initContainers", [])]
    return own + [found for item in value.values() for found in _patched_containers(item)]


@cache
def trainer_schema(kind: str) -> Document:
    """The model's JSON schema with every object closed, and kind, metadata and spec required."""
    schema: Document = _without_null(TRAINER[kind].model_json_schema(by_alias=True))
    for name, part in [("", schema), *schema["$defs"].items()]:
        if name.endswith(("Quantity", "IntOrString")):  # the models wrap what is written as a plain value
            part.clear()
            part["type"] = ["string", "number"]
        elif part.get("properties"):
            part["additionalProperties"] = False
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _without_null(schema: Any) -> Any:
    """The models say "or null" of every optional field; without it an error names the field and not the choice."""
    if isinstance(schema, list):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        schema = {key: value for key, value in (schema | choices[0]).items() if key not in ("anyOf", "default")}
    return {key: _without_null(value) for key, value in schema.items()}


def _pipelines_schema(kind: str) -> Document:
    properties, required = PIPELINES[kind]
    spec = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    whole = {"apiVersion": _TEXT, "kind": _TEXT, "metadata": _ANYTHING, "spec": spec}
    return {"type": "object", "properties": whole, "required": list(whole), "additionalProperties": False}
