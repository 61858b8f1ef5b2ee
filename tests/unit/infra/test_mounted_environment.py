"""What is mounted in a pod becomes the contract's variables."""

from pathlib import Path

from flashslm.infra.mounted_environment import load_mounted_environment, mount_path


def mount(directory: Path, name: str, **keys: str) -> None:
    """As the kubelet does it: the keys are links into a directory that a change replaces."""
    data = directory / name / "..data"
    data.mkdir(parents=True)
    for key, value in keys.items():
        (data / key).write_text(value)
        (directory / name / key).symlink_to(Path("..data") / key)


def test_each_key_is_a_variable(tmp_path: Path) -> None:
    mount(tmp_path, "flashslm", FLASHSLM_BUCKET="bucket", AWS_ENDPOINT_URL_S3="http://store\n")
    mount(tmp_path, "flashslm-s3", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")
    environ: dict[str, str] = {}
    load_mounted_environment(environ, tmp_path)
    assert environ == {
        "FLASHSLM_BUCKET": "bucket",
        "AWS_ENDPOINT_URL_S3": "http://store",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


def test_what_the_process_was_given_stays(tmp_path: Path) -> None:
    mount(tmp_path, "flashslm", FLASHSLM_TRACKING_URI="http://ours", FLASHSLM_BUCKET="bucket")
    environ = {"MLFLOW_TRACKING_URI": "http://the plug-in's"}
    load_mounted_environment(environ, tmp_path)
    assert environ == {
        "MLFLOW_TRACKING_URI": "http://the plug-in's",
        "FLASHSLM_TRACKING_URI": "http://ours",
        "FLASHSLM_BUCKET": "bucket",
    }


def test_other_keys_of_an_object_are_no_variables(tmp_path: Path) -> None:
    mount(tmp_path, "flashslm", LD_PRELOAD="/tmp/x.so", PATH="/tmp", FLASHSLM_STEP_RETRIES="9")
    environ: dict[str, str] = {}
    load_mounted_environment(environ, tmp_path)
    assert environ == {}


def test_absent_objects_are_left_out(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    (tmp_path / "flashslm-mlflow").mkdir()  # what the kubelet mounts for an optional object that is not there
    load_mounted_environment(environ, tmp_path)
    load_mounted_environment(environ, tmp_path / "nowhere")
    assert environ == {} and mount_path("s3") == "/etc/flashslm/s3"
