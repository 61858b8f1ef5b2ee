"""The checker of pod security sees a violation of every rule, and every pod of ours passes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.manifests.rendering import OVERLAYS, key, pods, rendered
from tests.manifests.restricted import violations

Document = dict[str, Any]

GOOD: Document = {
    "spec": {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "a",
                "ports": [{"containerPort": 80}],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                },
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }
}

# rule -> where, and what to put there
BAD: list[tuple[str, str, Any]] = [
    ("host namespaces", "pod.hostNetwork", True),
    ("host namespaces", "pod.hostPID", True),
    ("host namespaces", "pod.hostIPC", True),
    ("volume types", "pod.volumes", [{"name": "root", "hostPath": {"path": "/"}}]),
    ("volume types", "pod.volumes", [{"name": "share", "nfs": {"server": "a", "path": "/"}}]),
    ("sysctls", "pod.securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("HostProcess", "pod.securityContext.windowsOptions", {"hostProcess": True}),
    ("SELinux", "container.securityContext.seLinuxOptions", {"type": "spc_t"}),
    ("SELinux", "pod.securityContext.seLinuxOptions", {"user": "system_u"}),
    ("AppArmor", "container.securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("privileged", "container.securityContext.privileged", True),
    ("capabilities added", "container.securityContext.capabilities.add", ["NET_ADMIN"]),
    ("capabilities dropped", "container.securityContext.capabilities.drop", ["NET_RAW"]),
    ("host ports", "container.ports", [{"containerPort": 80, "hostPort": 80}]),
    ("host probes", "container.livenessProbe", {"httpGet": {"host": "10.0.0.1", "port": 80}}),
    ("host probes", "container.lifecycle", {"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 80}}}),
    ("proc mount", "container.securityContext.procMount", "Unmasked"),
    ("seccomp", "pod.securityContext.seccompProfile", {"type": "Unconfined"}),
    ("seccomp", "container.securityContext.seccompProfile", {"type": "Unconfined"}),
    ("privilege escalation", "container.securityContext.allowPrivilegeEscalation", True),
    ("run as non-root", "pod.securityContext.runAsNonRoot", False),
    ("run as non-root", "container.securityContext.runAsNonRoot", False),
    ("user 0", "container.securityContext.runAsUser", 0),
    ("numeric user", "pod.securityContext.runAsUser", None),
    ("read-only root", "container.securityContext.readOnlyRootFilesystem", False),
]
LACKING = {
    "seccomp": lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"),
    "run as non-root": lambda pod: pod["spec"]["securityContext"].pop("runAsNonRoot"),
    "privilege escalation": lambda pod: pod["spec"]["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
    "capabilities dropped": lambda pod: pod["spec"]["containers"][0]["securityContext"].pop("capabilities"),
}


def put(pod: Document, path: str, value: Any) -> None:
    first, *middle, last = path.split(".")
    target = pod["spec"] if first == "pod" else pod["spec"]["containers"][0]
    for part in middle:
        target = target[part]
    target[last] = value


def test_a_good_pod_passes() -> None:
    assert violations(GOOD) == set()


@pytest.mark.parametrize(("rule", "path", "value"), BAD, ids=[f"{rule}-{path}" for rule, path, _ in BAD])
def test_every_rule_sees_its_violation(rule: str, path: str, value: Any) -> None:
    pod = copy.deepcopy(GOOD)
    put(pod, path, value)
    assert violations(pod) == {rule}


@pytest.mark.parametrize("rule", LACKING)
def test_what_must_be_said_and_is_not(rule: str) -> None:
    pod = copy.deepcopy(GOOD)
    remove: Callable[[Document], Any] = LACKING[rule]
    remove(pod)
    assert violations(pod) == {rule}


def test_init_containers_count_too() -> None:
    pod = copy.deepcopy(GOOD)
    pod["spec"]["initContainers"] = [{"name": "b", "securityContext": {"privileged": True}}]
    assert "privileged" in violations(pod)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_of_ours_is_restricted(overlay: str) -> None:
    checked = {key(document): violations(pod) for document in rendered(overlay) for pod in pods(document)}
    assert {kind for kind, *_ in checked} >= {"Deployment", "CronJob", "ClusterTrainingRuntime"}
    assert {name: found for name, found in checked.items() if found} == {}
