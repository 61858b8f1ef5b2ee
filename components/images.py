"""The one image every step runs in; the cluster launch replaces it by a digest, the local runner ignores it."""

RUNTIME_IMAGE = "ghcr.io/flashslm/runtime:0.1.0"
