"""Which pods may talk to which under network policies: the rules of networking.k8s.io/v1 for pods and ports."""

from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod, or with no namespace an address outside the cluster."""

    namespace: str
    labels: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, namespace: str, **labels: str) -> "Pod":
        return cls(namespace, tuple((f"app.kubernetes.io/{key.replace('_', '-')}", v) for key, v in labels.items()))


OUTSIDE = Pod("", ())


def allowed(policies: list[Document], source: Pod, target: Pod, port: int) -> bool:
    """Whether the source's egress and the target's ingress both let a connection through."""
    out = _open(policies, source, "Egress", "to", target, port)
    return out and _open(policies, target, "Ingress", "from", source, port)


def _open(policies: list[Document], pod: Pod, direction: str, side: str, other: Pod, port: int) -> bool:
    if not pod.namespace:
        return True
    mine = [
        p["spec"]
        for p in policies
        if p["metadata"]["namespace"] == pod.namespace
        and direction in p["spec"]["policyTypes"]
        and _selects(p["spec"]["podSelector"], dict(pod.labels))
    ]
    rules = [rule for spec in mine for rule in spec.get(direction.lower(), [])]
    return not mine or any(
        _ports_match(rule, port) and any(_is_peer(peer, pod.namespace, other) for peer in rule[side]) for rule in rules
    )


def _ports_match(rule: Document, port: int) -> bool:
    return "ports" not in rule or any(p["port"] == port for p in rule["ports"])


def _is_peer(peer: Document, namespace: str, other: Pod) -> bool:
    if "ipBlock" in peer:  # the API server and everything outside; the network plugin knows pods by their labels
        return not other.namespace
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        there = {"kubernetes.io/metadata.name": other.namespace}
        if not _selects(peer["namespaceSelector"], there):
            return False
    elif other.namespace != namespace:
        return False
    return _selects(peer.get("podSelector", {}), dict(other.labels))


def _selects(selector: Document, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
