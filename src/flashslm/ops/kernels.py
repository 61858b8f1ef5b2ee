"""Which backend of each operation runs: decided once per device and dtype, logged, recorded with a run. No torch here.

Every operation has a backend in plain torch, and on CUDA a fused one from a library. `auto` takes the fused one there;
a library that is missing is an error, never a silent slow path.
"""

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from pydantic import ValidationError

from flashslm.config import KernelsConfig

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# Operation -> the backend in plain torch, the fused backend.
BACKENDS = {
    "delta_rule": ("chunked", "fla"),
    "gated_delta_rule": ("chunked", "fla"),
    "gla": ("chunked", "fla"),
    "ssd": ("chunked", "mamba-ssm"),
    "causal_conv": ("shifted", "triton"),
    "rotary": ("torch", "triton"),
    "attention": ("sdpa", "flash"),
    "cross_entropy": ("chunked", "triton"),
    "elementwise": ("torch", "inductor"),
    "decode": ("torch", "fused"),
}
LIBRARIES = {
    "fla": ("fla", "flash-linear-attention"),
    "mamba-ssm": ("mamba_ssm", "mamba-ssm"),
    "triton": ("triton", "triton"),
    "inductor": ("triton", "triton"),
    "fused": ("cuda.bindings", "cuda-bindings"),  # and Triton: torch for CUDA brings both
}
USUAL = (
    "delta_rule",
    "ssd",
    "causal_conv",
    "rotary",
    "attention",
    "cross_entropy",
    "elementwise",
    "decode",
)  # of an exportable model
HALF_PRECISION_ONLY = {"delta_rule", "gated_delta_rule", "gla", "attention", "decode"}

_setting = KernelsConfig()
_decided: dict[str, str] = {}
_logged: dict[str, str] = {}


class MissingKernel(RuntimeError):
    """A backend that cannot run here; the message names the ones that can."""


def configure(setting: KernelsConfig) -> None:
    """Take a recipe's `kernels` section; earlier decisions are forgotten."""
    global _setting
    _setting = setting
    _decided.clear()
    chosen.cache_clear()


def preflight(device_type: str) -> None:
    """Raise MissingKernel if a backend that training or decoding on this device may choose cannot run there."""
    dtype = "bfloat16" if device_type == "cuda" else "float32"
    for operation in USUAL:
        _backend(operation, device_type, dtype)


def note(what: str, backend: str) -> None:
    """Record a backend that no setting chose; the log has it where it is another than before."""
    _decided[what] = backend
    if _logged.get(what) != backend:
        _logged[what] = backend
        logger.info("%s: %s", what, backend)


def forget(what: str) -> None:
    """Take back a note of earlier work in this process."""
    _decided.pop(what, None)


def decisions() -> dict[str, str]:
    """What has been decided so far: `operation/device/dtype` to backend."""
    return dict(_decided)


@cache
def chosen(operation: str, device_type: str, dtype: str) -> str:
    """The backend of `operation` for tensors of a device type and a dtype such as `bfloat16`.

    Raises MissingKernel when the setting, or `auto`, names a backend that cannot run.
    """
    backend = _backend(operation, device_type, dtype)
    name = f"{operation}/{device_type}/{dtype}"
    _decided[name] = _logged[name] = backend
    wanted = getattr(_setting, operation)
    logger.info("kernels.%s on %s/%s: %s (setting: %s)", operation, device_type, dtype, backend, wanted)
    return backend


def _backend(operation: str, device_type: str, dtype: str) -> str:
    torch_backend, fused_backend = BACKENDS[operation]
    wanted: str = getattr(_setting, operation)
    half_only = operation in HALF_PRECISION_ONLY and dtype not in ("bfloat16", "float16")
    backend = wanted
    if wanted == "auto":
        fused = device_type == "cuda" and dtype != "float64" and not half_only and _setting.default == "auto"
        backend = fused_backend if fused else torch_backend
    if backend == fused_backend:
        _require(operation, fused_backend, torch_backend, device_type, half_only)
    return backend


def backend_of(operation: str, x: "Tensor") -> str:
    """The backend of `operation` for a tensor's device and dtype."""
    return chosen(operation, x.device.type, str(x.dtype).removeprefix("torch."))


def _require(operation: str, fused_backend: str, torch_backend: str, device_type: str, half_only: bool) -> None:
    module, package = LIBRARIES.get(fused_backend, ("", ""))
    problem = ""
    if device_type != "cuda":
        problem = f"it runs on cuda, the tensors are on {device_type}"
    elif half_only:
        problem = "its kernels take bfloat16 or float16 only"
    elif module and not _installed(module):
        problem = f"the package {package} is not installed (pip install 'flashslm[cuda]')"
    if problem:
        raise MissingKernel(
            f"kernels.{operation}: backend '{fused_backend}' cannot run: {problem}; "
            f"or set kernels.{operation}={torch_backend}"
        )


def _installed(module: str) -> bool:
    parent = module.partition(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None


def read_setting(settings: Sequence[str] | None) -> KernelsConfig:
    """The `kernels` section that `operation=backend` settings make."""
    values = dict(text.partition("=")[::2] for text in settings or ())
    try:
        return KernelsConfig.model_validate(values)
    except ValidationError as error:
        operations = ", ".join(KernelsConfig.model_fields)
        problems = [
            f"'{e['loc'][0]}' is not an operation: choose among {operations}"
            if e["type"] == "extra_forbidden"
            else f"{e['loc'][0]}={e['input']}: {e['msg']}"
            for e in error.errors()
        ]
    raise ValueError(f"kernels: {'; '.join(problems)}")
