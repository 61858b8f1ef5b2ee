"""How the tests run a container: as little as Kubernetes' "restricted" pod security leaves, and a read-only root."""

from collections.abc import Mapping

MEMORY = "3g"


def hardened(env: Mapping[str, str] | None = None, memory: str = MEMORY, network: str = "none") -> list[str]:
    """Options of `docker run`; the user is the image's own."""
    options = ["--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", memory]
    options += ["--memory-swap", memory, "--network", network, "--tmpfs", "/tmp:rw,nosuid,nodev,mode=1777"]
    return options + [part for name, value in (env or {}).items() for part in ("--env", f"{name}={value}")]
