import math

import pytest

from flashslm.infra.settings import Settings
from flashslm.infra.tracking import mlflow_api
from flashslm.infra.tracking.mlflow_api import MlflowApi, MlflowError, MlflowUnavailable

SETTINGS = Settings(
    access_key="k", secret_key="s", endpoint_url="http://x", bucket="b", tracking_uri="http://127.0.0.1:1"
)


def test_numbers_json_lacks_become_strings():
    points = [mlflow_api.metric_point("loss", value, 3) for value in (math.nan, math.inf, -math.inf, 1.5)]
    assert [point["value"] for point in points] == ["NaN", "Infinity", "-Infinity", 1.5]
    assert all(point["key"] == "loss" and point["step"] == 3 for point in points)


def test_only_a_server_will_do():
    with pytest.raises(ValueError, match=r"'sqlite:///x.db'.*flashslm stack up"):
        MlflowApi(SETTINGS.model_copy(update={"tracking_uri": "sqlite:///x.db"}))


def test_an_absent_server_is_unavailable(monkeypatch):
    monkeypatch.setattr(mlflow_api, "_RETRIES", mlflow_api._RETRIES.new(total=0))
    with pytest.raises(MlflowUnavailable, match=r"http://127.0.0.1:1 does not answer.*flashslm stack status"):
        MlflowApi(SETTINGS).get("runs/get", run_id="x")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, {}),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, {"Authorization": "Bearer t"}),
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}, {"Authorization": "Basic dTpw"}),
        ({"MLFLOW_WORKSPACE": "w"}, {"X-MLFLOW-WORKSPACE": "w"}),
    ],
)
def test_credentials_are_those_mlflow_reads(env, expected, monkeypatch):
    for name in ("TOKEN", "USERNAME", "PASSWORD", "AUTH"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_WORKSPACE", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert mlflow_api._authorization() == expected


def test_a_service_accounts_token_is_read_anew_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_api, "_SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes-namespaced")
    (tmp_path / "namespace").write_text("team-a")
    for token in ("one", "two"):
        (tmp_path / "token").write_text(token + "\n")
        assert mlflow_api._authorization() == {"Authorization": f"Bearer {token}", "X-MLFLOW-WORKSPACE": "team-a"}


def test_a_refusal_says_what_and_why():
    error = mlflow_api._refused("POST", "http://m/x", 400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}')
    assert isinstance(error, MlflowError) and error.code == "INVALID_PARAMETER_VALUE" and "no" in str(error)
    assert "MLFLOW_TRACKING_TOKEN" in str(mlflow_api._refused("GET", "http://m/x", 401, "<html>"))
