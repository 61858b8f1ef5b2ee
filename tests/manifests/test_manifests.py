"""The overlays: valid for the API servers we support, complete, and closed."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity
from mlflow.server.security_utils import is_allowed_host_header

from components.images import IMAGES
from flashslm.config import PlatformConfig
from flashslm.infra import mounted_environment
from flashslm.launch.kfp.cluster_pass import for_cluster
from manifests.pin_images import component
from tests.manifests.rendering import (
    MANIFESTS,
    OVERLAYS,
    containers,
    find,
    key,
    kustomize,
    pinned,
    pods,
    rendered,
    sources,
)
from tests.manifests.schemas import Invalid, validate

Document = dict[str, Any]

SERVICES, STEPS = "flashslm", PlatformConfig().namespace
PLACEHOLDER = re.compile(r"<[a-z0-9+` ]+>")
YAML_1_1_BOOLEAN = re.compile(r"y|n|yes|no|on|off|true|false", re.IGNORECASE)


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> tuple[Document, ...]:
    return rendered(request.param)


def test_there_are_both_overlays() -> None:
    assert OVERLAYS == ["local", "production"]


def test_every_object_is_valid(objects: tuple[Document, ...]) -> None:
    for document in objects:
        validate(document)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("Deployment", lambda d: d["spec"].update(replica=2), r"Deployment spec: .*'replica' was unexpected"),
        ("Deployment", lambda d: d["spec"].pop("selector"), "'selector' is a required property"),
        ("NetworkPolicy", lambda d: d["spec"].update(ingres=[]), "'ingres' was unexpected"),
        ("ClusterTrainingRuntime", lambda d: d["spec"].update(podTemplateOverrides=[]), "podTemplateOverrides"),
        ("ClusterTrainingRuntime", lambda d: d["metadata"].update(name="1st"), "RFC 1035"),
        ("Service", lambda d: d.update(apiVersion="v2"), "Couldn't find schema"),
    ],
)
def test_the_validation_is_strict(kind: str, change: Any, reason: str) -> None:
    text = yaml.safe_dump(next(d for d in rendered("local") if d["kind"] == kind))
    document = yaml.safe_load(text)
    change(document)
    with pytest.raises(Invalid, match=reason):
        validate(document)


def test_pipelines_as_kubernetes_objects_are_valid() -> None:
    documents = list(yaml.safe_load_all(for_cluster("design_and_train", PlatformConfig()).manifests(STEPS)))
    for document in documents:
        validate(document)
    documents[1]["spec"]["pipelineSpecs"] = {}
    with pytest.raises(Invalid, match="pipelineSpecs"):
        validate(documents[1])


def test_no_secret_is_rendered_and_none_holds_a_value(objects: tuple[Document, ...]) -> None:
    assert [key(d) for d in objects if d["kind"] == "Secret"] == []
    for file in sources():
        assert "secretGenerator" not in file.read_text(encoding="utf-8"), file
        assert secret_values(file.read_text(encoding="utf-8")) == [], file


def secret_values(text: str) -> list[str]:
    """Keys of secrets whose value is more than a placeholder in angle brackets."""
    secrets = [d for d in yaml.safe_load_all(text) if isinstance(d, dict) and d.get("kind") == "Secret"]
    pairs = [pair for s in secrets for field in ("data", "stringData") for pair in s.get(field, {}).items()]
    return [name for name, value in pairs if not PLACEHOLDER.fullmatch(str(value))]


def test_a_value_in_a_secret_is_seen() -> None:
    secret = "kind: Secret\n{field}: {{a: '<one>', password: {value}}}\n"
    assert secret_values(secret.format(field="stringData", value="hunter2")) == ["password"]
    assert secret_values(secret.format(field="data", value="aHVudGVyMg==")) == ["password"]
    assert secret_values(secret.format(field="stringData", value="''")) == ["password"]


def references(value: Any) -> Iterator[tuple[str, str, str]]:
    """(kind, name, key) of every reference to a key of a Secret or ConfigMap; the key is empty for all of them."""
    if isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if field in value:
                yield kind, value[field]["name"], value[field]["key"]
        for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap"), ("configMap", "ConfigMap")):
            if field in value:
                yield kind, value[field]["name"], ""
        for item in value.values():
            yield from references(item)


def keys_of(objects: tuple[Document, ...]) -> dict[tuple[str, str, str], set[str]]:
    """What ConfigMaps of the overlay and the secrets of the example hold."""
    secrets = yaml.safe_load_all((MANIFESTS / "secrets.example.yaml").read_text(encoding="utf-8"))
    maps = [d for d in objects if d["kind"] == "ConfigMap"]
    return {key(d): set(d.get("data") or d["stringData"]) for d in [*secrets, *maps]}


def test_every_reference_leads_somewhere(objects: tuple[Document, ...]) -> None:
    there = keys_of(objects)
    accounts = {key(d)[1:] for d in objects if d["kind"] == "ServiceAccount"}
    for document in objects:
        namespace = document["metadata"].get("namespace", STEPS)  # TrainJobs use the runtime among the steps
        for pod in pods(document):
            assert (namespace, pod["spec"]["serviceAccountName"]) in accounts
            for kind, name, wanted in references(pod):
                assert (kind, namespace, name) in there, key(document)
                assert not wanted or wanted in there[kind, namespace, name], key(document)


def test_steps_find_what_the_cluster_pass_promises_them(objects: tuple[Document, ...]) -> None:
    there, platform = keys_of(objects), PlatformConfig()
    assert there["ConfigMap", STEPS, platform.config_map] >= set(mounted_environment.CONFIG_MAP_VARIABLES)
    assert there["Secret", STEPS, platform.s3_secret] == set(mounted_environment.S3_SECRET_VARIABLES)
    assert there["Secret", STEPS, platform.database_secret] == set(mounted_environment.DATABASE_SECRET_VARIABLES)
    assert there["Secret", STEPS, platform.mlflow_secret] <= set(mounted_environment.MLFLOW_SECRET_OPTIONAL)
    assert find(objects, "ClusterTrainingRuntime", platform.training_runtime)


def test_mlflow_answers_to_the_name_that_steps_call(objects: tuple[Document, ...]) -> None:
    site = find(objects, "ConfigMap", "flashslm", STEPS)["data"]
    assert site == find(objects, "ConfigMap", "flashslm", SERVICES)["data"]
    mlflow = find(objects, "ConfigMap", "mlflow", SERVICES)["data"]
    hosts = mlflow["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert is_allowed_host_header(hosts, urlsplit(site["FLASHSLM_TRACKING_URI"]).netloc)
    for stranger in ("attacker.example", "mlflow.flashslm.svc.attacker.example:5000", "10.0.0.1:5000"):
        assert not is_allowed_host_header(hosts, stranger)
    (container,) = pods(find(objects, "Deployment", "mlflow", SERVICES))[0]["spec"]["containers"]
    names = [variable["name"] for variable in container["env"]]
    assert names.index("FLASHSLM_BUCKET") < names.index("MLFLOW_ARTIFACTS_DESTINATION"), "else it is not filled in"
    destination = container["env"][names.index("MLFLOW_ARTIFACTS_DESTINATION")]["value"]
    assert destination == "s3://$(FLASHSLM_BUCKET)/mlflow" and site["FLASHSLM_BUCKET"]
    for ingress in (d for d in objects if d["kind"] == "Ingress"):
        assert all(is_allowed_host_header(hosts, rule["host"]) for rule in ingress["spec"]["rules"])
        assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]]
        asked = {name.rpartition("/")[2] for name in ingress["metadata"]["annotations"]}
        assert {"auth-type", "auth-secret"} <= asked or {"auth-url", "auth-signin"} <= asked


def test_images_are_named_exactly() -> None:
    for overlay, exact in (("local", r".+:[\w.-]+"), ("production", r".+@sha256:[0-9a-f]{64}")):
        images = {c["image"] for d in rendered(overlay) for pod in pods(d) for c in containers(pod)}
        assert len(images) >= 3
        assert [i for i in images if not re.fullmatch(exact, i) or i.endswith(":latest")] == []


def test_production_does_not_render_before_its_images_are_pinned(tmp_path: Path) -> None:
    root = Path(shutil.copytree(MANIFESTS, tmp_path / "manifests"))
    shutil.rmtree(root / "overlays" / "production" / "images", ignore_errors=True)
    done = kustomize(root / "overlays" / "production")
    assert done.returncode == 1 and done.stdout == "" and "overlays/production/images" in done.stderr


def test_pinned_images_are_those_that_production_runs() -> None:
    images = {c["image"] for d in rendered("production") for pod in pods(d) for c in containers(pod)}
    assert images == set(pinned().values())


@pytest.mark.parametrize("wrong", ["runtime:0.1.0", "runtime@sha256:" + 64 * "0", "runtime@sha256:ab", ""])
def test_what_is_no_digest_is_not_pinned(wrong: str) -> None:
    named = wrong or IMAGES["runtime"]
    with pytest.raises(ValueError, match=re.escape(f"runtime: '{named}' is not NAME@sha256:DIGEST")) as caught:
        component(pinned() | {"runtime": wrong, "gpu": "x"})
    assert "gpu: no such image; there are: runtime, cuda, postgres" in str(caught.value)
    assert "cuda:" not in str(caught.value).replace("runtime, cuda", "")


def test_our_images_are_those_of_the_steps() -> None:
    def name(image: str) -> str:
        return re.split("[:@]", image.rpartition("/")[2])[0]

    images = {name(c["image"]) for d in rendered("local") for pod in pods(d) for c in containers(pod)}
    assert images == {"postgres", "seaweedfs", *(name(IMAGES[part]) for part in ("runtime", "cuda"))}


def test_servers_have_probes_and_every_container_its_limits(objects: tuple[Document, ...]) -> None:
    for document in objects:
        for pod in pods(document) if document["kind"] != "ClusterTrainingRuntime" else []:
            for container in containers(pod):
                for part in ("requests", "limits"):
                    assert {"cpu", "memory"} <= set(container["resources"][part]), key(document)
                if document["kind"] in ("Deployment", "StatefulSet"):
                    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), key(document)


def test_the_quota_holds_everything_and_an_update(objects: tuple[Document, ...]) -> None:
    """Replicas, one more of each Deployment while it rolls, and the nightly job."""
    quota = find(objects, "ResourceQuota", "flashslm", SERVICES)["spec"]["hard"]
    totals = dict.fromkeys(("requests.cpu", "requests.memory", "limits.cpu", "limits.memory"), 0)
    for document in objects:
        if document["kind"] not in ("Deployment", "StatefulSet", "CronJob"):
            continue
        count = document["spec"].get("replicas", 1) + (document["kind"] == "Deployment")
        for pod in pods(document):
            for name in totals:
                part, resource = name.split(".")
                totals[name] += count * sum(parse_quantity(c["resources"][part][resource]) for c in containers(pod))
    for name, total in totals.items():
        assert 0 < total <= parse_quantity(quota[name]), name


def test_rights_are_few(objects: tuple[Document, ...]) -> None:
    assert not [key(d) for d in objects if d["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    (role,) = [d for d in objects if d["kind"] == "Role"]
    (binding,) = [d for d in objects if d["kind"] == "RoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert key(find(objects, "ServiceAccount", "flashslm-pipeline", STEPS))[1:] == tuple(
        binding["subjects"][0][field] for field in ("namespace", "name")
    )
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["get"] and rule["resourceNames"]
    mounted = [d["metadata"]["name"] for d in objects if d["kind"] == "ServiceAccount" and may_mount(d)]
    assert mounted == ["flashslm-pipeline"]


def may_mount(account: Document) -> bool:
    return bool(account.get("automountServiceAccountToken", True))


def booleans_by_accident(text: str) -> list[str]:
    """Plain scalars, as keys or values, that YAML 1.1 reads as a boolean though they are not written true or false."""
    found: list[str] = []

    def walk(node: yaml.Node) -> None:
        if isinstance(node, yaml.ScalarNode):
            if node.style is None and YAML_1_1_BOOLEAN.fullmatch(node.value) and node.value not in ("true", "false"):
                found.append(node.value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item)
        elif isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                walk(name)
                walk(value)

    for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
        if node is not None:
            walk(node)
    return found


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(MANIFESTS).as_posix())
def test_nothing_is_a_boolean_by_accident(file: Path) -> None:
    assert booleans_by_accident(file.read_text(encoding="utf-8")) == []


def test_no_string_needs_quotes_to_stay_one(objects: tuple[Document, ...]) -> None:
    """A name such as `on` would be at the mercy of every tool that writes it out again; "true" is what a
    variable of an environment must be."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for name, item in value.items():
                assert isinstance(name, str)
                yield name
                yield from strings(item)
        elif isinstance(value, list):
            for item in value:
                yield from strings(item)
        elif isinstance(value, str):
            yield value

    accidents = {s for d in objects for s in strings(d) if YAML_1_1_BOOLEAN.fullmatch(s)}
    assert accidents <= {"true", "false"}


def test_a_boolean_by_accident_is_seen() -> None:
    assert booleans_by_accident("a: off\nno: [Yes, 'on', true]\nb: {y: N}\n") == ["off", "no", "Yes", "y", "N"]


def test_the_backup_gives_pg_dump_an_address_that_libpq_reads() -> None:
    """SQLAlchemy's address names a driver; the shell takes it out, and nothing else."""
    job = find(rendered("local"), "CronJob", "mlflow-backup", SERVICES)
    (dump,) = pods(job)[0]["spec"]["initContainers"]
    script = dump["args"][0].replace("pg_dump", "printf '%s\\n'")
    uri = "postgresql+psycopg2://mlflow:a+b:c@db.example:5432/mlflow?sslmode=require"
    shell = subprocess.run(
        [*dump["command"], script], env={"URI": uri, "PATH": os.environ["PATH"]}, capture_output=True
    )
    assert shell.stdout.decode().splitlines()[-1] == uri.replace("+psycopg2", "", 1)
