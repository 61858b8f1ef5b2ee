"""The client of the API server: its token, its address, its rights."""

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from kubernetes.client import Configuration
from kubernetes.config import incluster_config, load_incluster_config

from flashslm.infra.kubernetes import client
from flashslm.infra.kubernetes.client import Kubernetes, KubernetesError
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes
from tests.unit.infra.kubernetes.jobs import Watched


@pytest.fixture
def account(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is in a pod with the server's service account."""
    directory = tmp_path / "account"
    (directory / "ca.crt").write_text("a certificate")
    monkeypatch.setattr(client, "SERVICE_ACCOUNT", directory)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(directory / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(directory / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    return directory


def test_a_wrong_token_is_refused(server: FakeKubernetes, watched: Watched) -> None:
    server.token = "second-token"
    with pytest.raises(KubernetesError, match=r"401 .*Unauthorized"):
        watched.job.run()


def test_outside_a_cluster_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubernetesError, match=r"host/port is not set.*set platform.nodes to 1"):
        Kubernetes.in_cluster()


def test_a_pod_without_its_account_says_so(account: Path) -> None:
    (account / "token").unlink()
    with pytest.raises(KubernetesError, match=r"token file does not exist.*set platform.nodes to 1"):
        Kubernetes.in_cluster()


def test_in_a_pod_the_address_is_that_of_the_environment(account: Path) -> None:
    found = Kubernetes.in_cluster()
    assert (found.host, found.namespace) == ("https://[fd00::1]:6443", "kubeflow")


def test_a_rotated_token_is_read_again_each_minute(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the official client, whose hook is asked before every request."""
    configuration = Configuration()
    load_incluster_config(configuration)
    assert configuration.get_api_key_with_prefix("authorization") == "bearer first-token"
    (account / "token").write_text("second-token")
    clock = SimpleNamespace(now=lambda: datetime.now() + timedelta(minutes=1))
    monkeypatch.setattr(incluster_config.datetime, "datetime", clock)
    assert configuration.get_api_key_with_prefix("authorization") == "bearer second-token"


def test_the_client_asks_nothing_beyond_its_rights(server: FakeKubernetes, api: Kubernetes) -> None:
    """The server's rights are those of manifests/: it refuses what the Role does not name."""
    with pytest.raises(KubernetesError, match=r"403 .*cannot get resource jobsets"):
        api.get("jobset.x-k8s.io/v1alpha2", "jobsets", "flashslm-0")
