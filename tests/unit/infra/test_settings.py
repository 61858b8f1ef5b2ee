import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config import PlatformConfig
from flashslm.infra.settings import Settings, SettingsError, experiment_name, pod_variables

ENV = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ENDPOINT_URL_S3": "http://s3:8333",
    "FLASHSLM_BUCKET": "lab",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}


def test_reads_the_contract_with_defaults():
    settings = Settings.from_env(ENV)
    assert (settings.access_key, settings.bucket, settings.tracking_uri) == ("key", "lab", "http://mlflow:5000")
    assert (settings.region, settings.experiment, settings.parent_run_id) == ("us-east-1", "flashslm", "")
    assert settings.s3_checksums == "when_supported"


def test_one_error_names_every_missing_or_malformed_variable():
    env = {
        "AWS_ACCESS_KEY_ID": "key",
        "FLASHSLM_BUCKET": "",
        "AWS_ENDPOINT_URL_S3": "s3:8333",
        "FLASHSLM_S3_CHECKSUMS": "no",
    }
    with pytest.raises(SettingsError) as error:
        Settings.from_env(env)
    message = str(error.value)
    for name in ("AWS_SECRET_ACCESS_KEY: missing", "FLASHSLM_BUCKET: missing", "MLFLOW_TRACKING_URI: missing"):
        assert name in message
    assert "AWS_ENDPOINT_URL_S3" in message and "'s3:8333'" in message and "FLASHSLM_S3_CHECKSUMS" in message
    assert "AWS_ACCESS_KEY_ID" not in message


def test_as_env_is_read_back_and_serves_the_libraries_too():
    settings = Settings.from_env(ENV | {"FLASHSLM_PARENT_RUN_ID": "p1", "FLASHSLM_S3_CHECKSUMS": "when_required"})
    env = settings.as_env()
    assert Settings.from_env(env) == settings
    assert env["MLFLOW_S3_ENDPOINT_URL"] == "http://s3:8333"
    assert env["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["AWS_SESSION_TOKEN"] == ""


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"access_key": "key"}',
        '{"access_key": "other", "ports": {"s3": 1, "mlflow": 2}}',
        '{"ports": 1}',
        None,
    ],
)
def test_addresses_stay_where_the_stack_says_nothing(content, tmp_path):
    file = tmp_path / "stack.json"
    settings = Settings.from_env(ENV | {"FLASHSLM_STACK": str(file)})
    if content is not None:
        file.write_text(content)
    assert settings.present() == settings
    file.write_text('{"access_key": "key", "ports": {"s3": 1, "mlflow": 2}}')
    assert (settings.present().endpoint_url, settings.present().tracking_uri) == (
        "http://127.0.0.1:1",
        "http://127.0.0.1:2",
    )


UNUSABLE = ["   ", " a", "a\n", "tab\tin it", "bell\x07", "del\x7f", "a" * 257, "\udcff"]


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_experiment_is_an_error_that_names_its_variable(name):
    for read in (Settings.from_env, experiment_name):
        with pytest.raises(SettingsError, match="MLFLOW_EXPERIMENT_NAME: an experiment's name has 1 to 256 printable"):
            read(ENV | {"MLFLOW_EXPERIMENT_NAME": name})


def test_an_empty_experiment_is_the_projects_own():
    env = ENV | {"MLFLOW_EXPERIMENT_NAME": ""}
    assert experiment_name(env) == Settings.from_env(env).experiment == "flashslm"


@pytest.mark.parametrize("command", [["run", "--config", "recipe.yaml"], ["stack", "up"]], ids=" ".join)
def test_an_unusable_experiment_leaves_nothing_behind(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "a\nb")
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, SettingsError), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_secret_is_not_printed():
    assert "secret" not in repr(Settings.from_env(ENV | {"AWS_SECRET_ACCESS_KEY": "s3cr3t"})).replace("secret_key", "")
    assert "s3cr3t" not in repr(Settings.from_env(ENV | {"AWS_SECRET_ACCESS_KEY": "s3cr3t"}))


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize("login", ["user:hunter2", "hunter2", ":hunter2"])
def test_an_address_holds_no_credentials_and_the_message_does_not_quote_them(variable, login):
    with pytest.raises(SettingsError, match=rf"{variable}: .*MLFLOW_TRACKING_PASSWORD") as error:
        Settings.from_env(ENV | {variable: f"https://{login}@host:5000/path"})
    assert "hunter2" not in str(error.value)
    assert Settings.from_env(ENV | {variable: "https://host:5000/a@b"})


def test_pods_are_given_what_differs_from_the_settings_own_defaults():
    assert pod_variables(PlatformConfig()) == [{"name": "FLASHSLM_PATIENCE_S", "value": "900"}]
    changed = PlatformConfig(patience_s=Settings.model_fields["patience_s"].default, data_cache_bytes=10**9)
    assert pod_variables(changed) == [{"name": "FLASHSLM_DATA_CACHE_BYTES", "value": "1000000000"}]
