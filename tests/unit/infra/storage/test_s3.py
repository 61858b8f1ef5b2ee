import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError

from flashslm.infra.settings import Settings
from flashslm.infra.storage import s3

SETTINGS = Settings(
    access_key="k", secret_key="s", endpoint_url="http://127.0.0.1:1", bucket="lab", tracking_uri="http://x"
)


def client_error(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetObject",
    )


@pytest.mark.parametrize(
    ("status", "code", "expected", "says"),
    [
        (404, "NoSuchKey", s3.ObjectMissing, "'some/key' is not in S3 at X"),
        (404, "NoSuchBucket", s3.StoreError, "FLASHSLM_BUCKET"),
        (412, "PreconditionFailed", s3.PreconditionFailed, "conditional put"),
        (409, "ConditionalRequestConflict", s3.PreconditionFailed, "conditional put"),
        (403, "SignatureDoesNotMatch", s3.StoreError, "AWS_ACCESS_KEY_ID"),
        (500, "InternalError", s3.StoreUnavailable, "flashslm stack status"),
        (503, "SlowDown", s3.StoreUnavailable, "flashslm stack status"),
        (400, "InvalidArgument", s3.StoreError, "InvalidArgument"),
    ],
)
def test_errors_are_translated(status, code, expected, says):
    with pytest.raises(s3.StoreError, match=says) as caught, s3.translated("S3 at X", "some/key"):
        raise client_error(status, code)
    assert type(caught.value) is expected


def test_an_uploads_wrapped_error_keeps_its_meaning():
    with pytest.raises(s3.StoreError, match="refused access"), s3.translated("S3", "k"):
        try:
            raise client_error(403, "AccessDenied")
        except ClientError as error:
            raise S3UploadFailedError(f"Failed to upload: {error}") from None


def test_connection_errors_are_unavailable():
    with pytest.raises(s3.StoreUnavailable, match="does not answer after retries"), s3.translated("S3", "k"):
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")


def test_client_is_path_style_with_bounded_waits_and_the_checksum_mode():
    config = s3.s3_client(SETTINGS.model_copy(update={"s3_checksums": "when_required"})).meta.config
    assert config.s3["addressing_style"] == "path"
    assert config.retries["mode"] == "standard" and config.retries["total_max_attempts"] == 1
    assert config.request_checksum_calculation == config.response_checksum_validation == "when_required"
    assert config.connect_timeout <= 10 and config.read_timeout <= 120
