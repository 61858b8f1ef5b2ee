"""Pod Security Standard "restricted" (and with it "baseline"), and two rules of our own, over a pod template."""

from typing import Any

from tests.manifests.rendering import containers

Document = dict[str, Any]

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def violations(pod: Document) -> set[str]:
    """The names of the rules that a pod breaks."""
    found = _of_pod(pod["spec"])
    context = pod["spec"].get("securityContext", {})
    for container in containers(pod):
        found |= _of_container(container, context) | _of_context(container.get("securityContext", {}))
    return found | _of_context(context)


def _of_pod(spec: Document) -> set[str]:
    context = spec.get("securityContext", {})
    rules = {
        "host namespaces": any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "volume types": any(not (set(volume) - {"name"}) <= VOLUMES for volume in spec.get("volumes", [])),
        "sysctls": any(sysctl["name"] not in SYSCTLS for sysctl in context.get("sysctls", [])),
    }
    return {name for name, broken in rules.items() if broken}


def _of_context(context: Document) -> set[str]:
    """Rules for a security context of a pod or a container."""
    selinux = context.get("seLinuxOptions", {})
    rules = {
        "HostProcess": context.get("windowsOptions", {}).get("hostProcess", False),
        "SELinux": selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"),
        "AppArmor": context.get("appArmorProfile", {}).get("type") == "Unconfined",
    }
    return {name for name, broken in rules.items() if broken}


def _of_container(container: Document, pod: Document) -> set[str]:
    """Rules for a container, whose own context replaces the pod's field by field."""
    own = container.get("securityContext", {})
    effective = pod | own
    capabilities = own.get("capabilities", {})
    rules = {
        "privileged": own.get("privileged", False),
        "capabilities added": not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "capabilities dropped": "ALL" not in capabilities.get("drop", []),
        "host ports": any(port.get("hostPort") for port in container.get("ports", [])),
        "host probes": _names_a_host(container),
        "proc mount": own.get("procMount", "Default") != "Default",
        "seccomp": effective.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
        "privilege escalation": own.get("allowPrivilegeEscalation") is not False,
        "run as non-root": effective.get("runAsNonRoot") is not True,
        "user 0": effective.get("runAsUser") == 0,
        "numeric user": not isinstance(effective.get("runAsUser"), int),
        "read-only root": own.get("readOnlyRootFilesystem") is not True,
    }
    return {name for name, broken in rules.items() if broken}


def _names_a_host(container: Document) -> bool:
    handlers = [container.get(probe, {}) for probe in ("livenessProbe", "readinessProbe", "startupProbe")]
    handlers += container.get("lifecycle", {}).values()
    return any(handler.get(kind, {}).get("host") for handler in handlers for kind in ("httpGet", "tcpSocket"))
