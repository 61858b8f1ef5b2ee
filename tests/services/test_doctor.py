import pytest

from flashslm.infra.stack import doctor
from flashslm.infra.stack.doctor import diagnose
from flashslm.infra.tracking.mlflow_client import TrackingClient

pytestmark = pytest.mark.services

NAMES = [
    "S3 write",
    "S3 read",
    "S3 conditional put",
    "S3 delete",
    "MLflow run",
    "MLflow artifact",
    "MLflow delete",
    "MLflow registry",
    "disk space",
]


def test_a_sound_stack_passes_and_keeps_no_probe(settings, store, monkeypatch, capfd):
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 1)
    checks = diagnose(settings)
    assert "Downloading" not in capfd.readouterr().err, "MLflow's progress bar"
    assert [c.name for c in checks] == NAMES
    assert [c for c in checks if not c.ok] == []
    assert all(c.time_ms > 0 and c.detail and not c.hint for c in checks)
    assert [key for key in store.list("probe/") if key.endswith(".json")] == []
    assert TrackingClient(settings).find_runs("attributes.run_name = 'doctor'") == []


def test_each_fault_is_found_and_explained(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 10**18)
    wrong = settings.model_copy(update={"secret_key": "wrong", "tracking_uri": settings.endpoint_url, "stack_file": ""})
    checks = {c.name: c for c in diagnose(wrong, tmp_path)}
    assert [name for name in NAMES if checks[name].ok] == ["MLflow delete"]
    assert "refused access" in checks["S3 write"].detail and "AWS_ENDPOINT_URL_S3" in checks["S3 write"].hint
    assert "MLFLOW_TRACKING_URI" in checks["MLflow run"].hint
    assert "bytes free" in checks["disk space"].detail and checks["disk space"].hint


def test_an_absent_server_is_told_from_a_poor_one(settings):
    checks = {
        c.name: c
        for c in diagnose(settings.model_copy(update={"endpoint_url": "http://127.0.0.1:1", "stack_file": ""}))
    }
    assert "flashslm stack up" in checks["S3 conditional put"].hint
    assert checks["MLflow run"].ok
