import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashslm.infra.kubernetes import client
from flashslm.infra.kubernetes.client import Kubernetes
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes, client_of, serving
from tests.unit.infra.kubernetes.jobs import NAME, PLATFORM, Document, Watched, template_of


@pytest.fixture(scope="module")
def template() -> Document:
    return template_of(PLATFORM)[1]


@pytest.fixture
def manifest(template: Document) -> Document:
    job = copy.deepcopy(template)
    job["metadata"]["name"] = NAME
    job["spec"]["trainer"]["command"] = ["python", "-m", "torch.distributed.run"]
    return job


@pytest.fixture
def server() -> FakeKubernetes:
    return FakeKubernetes()


@pytest.fixture
def address(server: FakeKubernetes, tmp_path: Path) -> Iterator[str]:
    with serving(server, tmp_path / "account") as url:
        yield url


@pytest.fixture
def api(address: str, tmp_path: Path) -> Kubernetes:
    quick = client._RETRIES.new(backoff_factor=0.001)
    return client_of(address, tmp_path / "account", quick)


@pytest.fixture
def watched(api: Kubernetes, manifest: Document) -> Watched:
    return Watched(api, manifest)
