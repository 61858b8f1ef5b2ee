"""The patch of a pod's definition that KFP 2.17's driver makes for a task, as it was recorded on a cluster."""

import json
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

UUID = "a82283ed-5c78-4a8d-b625-6dca2a338d6d"
ROOT = "minio://mlpipeline/v2/artifacts"
STORE = {
    "Provider": "minio",
    "Params": {
        "accessKeyKey": "accesskey",
        "disableSSL": "true",
        "endpoint": "seaweedfs.kubeflow:9000",
        "fromEnv": "false",
        "maxRetries": "5",
        "region": "minio",
        "secretKeyKey": "secretkey",
        "secretName": "mlpipeline-minio-artifact",
    },
}
LAUNCHER = (
    *("--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"),
    *("--ml_pipeline_server_address", "ml-pipeline.kubeflow.svc.cluster.local", "--ml_pipeline_server_port", "8887"),
    *("--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local", "--mlmd_server_port", "8080"),
    *("--publish_logs", "true", "--ml_pipeline_tls_enabled=false", "--metadata_tls_enabled=false"),
    *("--ca_cert_path", "", "--cache_disabled=false", "--log_level", "1", "--"),
)
LOGS = {"executor-logs": {"artifactType": {"schemaTitle": "system.Artifact"}}}
LIMITS = {"cpu": "2", "memory": "4Gi"}


@dataclass(frozen=True)
class Artifact:
    """An artifact of a run: the task that made it, its name there; whether a task beside it in its DAG reads it."""

    task: str
    key: str
    beside: bool = True


def compact(value: Any) -> str:
    """JSON as Go writes it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def size(value: Any) -> int:
    return len(compact(value).encode())


def pod_patch(
    pipeline: str,
    task: str,
    component: Document,
    container: Document,
    settings: Document,
    parameters: Document,
    artifacts: dict[str, list[Artifact]],
) -> Document:
    """`settings` is the executor's part of the platform's specification, `artifacts` those of the task's inputs."""
    declared = dict(component.get("outputDefinitions", {}))
    declared["artifacts"] = declared.get("artifacts", {}) | LOGS
    interface = {key: component[key] for key in ("inputDefinitions",) if key in component}
    interface |= {"outputDefinitions": declared, "executorLabel": component["executorLabel"]}
    command = ["/kfp-launcher/launch", "--executor_type", "container", "--pipeline_name", pipeline, "--run_id", UUID]
    command += [
        "--execution_id",
        "14",
        "--executor_input",
        compact(_execution(pipeline, task, declared, parameters, artifacts)),
    ]
    command += ["--component_spec", compact(interface), *LAUNCHER]
    volumes, mounts = _volumes(settings)
    main: Document = {"name": "main", "image": container["image"], "command": command}
    main |= {"args": [*container["command"], *container["args"]], "env": _environment(container, settings)}
    main |= {"resources": {"limits": LIMITS, "requests": LIMITS}, "volumeMounts": mounts}
    main |= {"securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}}
    patch = {"volumes": volumes, "containers": [{key: value for key, value in main.items() if value}]}
    patch["activeDeadlineSeconds"] = int(settings.get("activeDeadlineSeconds", 0))
    return {key: value for key, value in patch.items() if value}


def _execution(
    pipeline: str, task: str, declared: Document, parameters: Document, artifacts: dict[str, list[Artifact]]
) -> Document:
    """What the launcher hands to the step: values, and addresses of artifacts."""
    place = f"{pipeline}/{UUID}"
    made = {
        key: {"artifacts": [{"name": key, "type": kind["artifactType"], "uri": f"{ROOT}/{place}/{task}/{UUID}/{key}"}]}
        for key, kind in declared["artifacts"].items()
    }
    read = {key: {"artifacts": [_reference(place, each) for each in found]} for key, found in artifacts.items()}
    inputs = {"artifacts": read, "parameterValues": parameters}
    outputs: Document = {"artifacts": made}
    if returned := declared.get("parameters", {}):
        outputs["parameters"] = {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in returned}
    outputs["outputFile"] = f"/minio/mlpipeline/v2/artifacts/{place}/{task}/{UUID}/output_metadata.json"
    return {"inputs": {key: value for key, value in inputs.items() if value}, "outputs": outputs}


def _reference(place: str, artifact: Artifact) -> Document:
    metadata = {"display_name": artifact.key, "store_session_info": compact(STORE)}
    kind = {"type": {"instanceSchema": ""}} if artifact.beside else {}
    uri = f"{ROOT}/{place}/{artifact.task}/{UUID}/{artifact.key}"
    return {"name": "10"} | kind | {"uri": uri, "metadata": metadata}


def _volumes(settings: Document) -> tuple[list[Document], list[Document]]:
    """Volumes and where they are mounted."""
    named: list[tuple[str, Document, str]] = []
    for mounted in settings.get("secretAsVolume", []):
        source = {"secret": {"secretName": mounted["secretName"], "optional": True}}
        named.append((mounted["secretName"], source, mounted["mountPath"]))
    for mounted in settings.get("configMapAsVolume", []):
        source = {"configMap": {"name": mounted["configMapName"], "optional": True}}
        named.append((mounted["configMapName"], source, mounted["mountPath"]))
    for mounted in settings.get("emptyDirMounts", []):
        source = {"emptyDir": {"medium": mounted["medium"], "sizeLimit": mounted["sizeLimit"]}}
        named.append((mounted["volumeName"], source, mounted["mountPath"]))
    volumes = [{"name": name} | source for name, source, _ in named]
    return volumes, [{"name": name, "mountPath": path} for name, _, path in named]


def _environment(container: Document, settings: Document) -> list[Document]:
    """Variables with their values, and those that come from fields, secrets and config maps."""
    found = [dict(entry) for entry in container.get("env", [])]
    for entry in settings.get("fieldPathAsEnv", []):
        found.append({"name": entry["name"], "valueFrom": {"fieldRef": {"fieldPath": entry["fieldPath"]}}})
    for kind, reference, name, key in (
        ("secretAsEnv", "secretKeyRef", "secretName", "secretKey"),
        ("configMapAsEnv", "configMapKeyRef", "configMapName", "configMapKey"),
    ):
        for source in settings.get(kind, []):
            for entry in source["keyToEnv"]:
                value = {"name": source[name], "key": entry[key], "optional": source["optional"]}
                found.append({"name": entry["envVar"], "valueFrom": {reference: value}})
    return found
