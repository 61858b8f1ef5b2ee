"""Which image a step runs in: the one place that says so. `platform.image` in a recipe, or one step's, goes before.

`PUSH=1 make images` puts what it pushed here, by digest. The local runner uses no image.
"""

from flashslm.config import GPU_STEPS

IMAGES = {
    "runtime": "ghcr.io/flashslm/runtime:0.1.0",
    "cuda": "ghcr.io/flashslm/cuda:0.1.0",
    "tensorrt-llm": "ghcr.io/flashslm/tensorrt-llm:0.1.0",  # serves what export_model writes; no step's
}


def image_of(step: str) -> str:
    """The image of a step; the one for GPUs runs on a CPU too."""
    return IMAGES["cuda" if step in GPU_STEPS else "runtime"]
