"""The client of the API server: its token, its address, its rights."""

from pathlib import Path

import pytest

from flashslm.infra.kubernetes import client, train_job
from flashslm.infra.kubernetes.client import Kubernetes, KubernetesError
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes
from tests.unit.infra.kubernetes.jobs import Watched, trains


def test_a_rotated_token_is_used_at_once(
    server: FakeKubernetes, api: Kubernetes, watched: Watched, tmp_path: Path
) -> None:
    server.token = "second-token"
    with pytest.raises(KubernetesError, match=r"401 .*Unauthorized"):
        watched.job.run()
    (tmp_path / "account" / "token").write_text("second-token\n")
    server.on_create = trains("in")
    watched.job.run()
    assert watched.lines == ["in"]


def test_outside_a_cluster_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubernetesError, match=r"set platform.nodes to 1"):
        Kubernetes.in_cluster()


def test_in_a_pod_the_address_is_that_of_the_environment(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SERVICE_ACCOUNT", tmp_path / "account")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    found = Kubernetes.in_cluster()
    assert (found.url, found.namespace) == ("https://[fd00::1]:6443", "kubeflow")


def test_the_client_asks_nothing_beyond_its_rights(server: FakeKubernetes, api: Kubernetes) -> None:
    """The server's rights are those of manifests/: it refuses what the Role does not name."""
    with pytest.raises(KubernetesError, match=r"403 .*cannot list resource trainjobs"):
        api.request("GET", api.resource(train_job.API_VERSION, "trainjobs"))
