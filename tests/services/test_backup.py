"""The nightly back-up's second half: what the CronJob of manifests/ runs to put the dump into the bucket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from tests.manifests.rendering import find, pods, rendered

pytestmark = pytest.mark.services


def test_the_dump_is_stored(platform_env: Settings, store: ObjectStore, tmp_path: Path) -> None:
    job = find(rendered("local"), "CronJob", "mlflow-backup", "flashslm")
    (container,) = pods(job)[0]["spec"]["containers"]
    (script,) = container["args"]
    assert container["command"] == ["python", "-c"] and script.count("/backup/mlflow.dump") == 1
    (tmp_path / "mlflow.dump").write_bytes(b"a dump")
    script = script.replace("/backup/mlflow.dump", str(tmp_path / "mlflow.dump"))
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (key,) = store.list("backups/mlflow/")
    assert done.stdout.strip() == f"stored s3://{store.bucket}/{key}"
    assert store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read() == b"a dump"
