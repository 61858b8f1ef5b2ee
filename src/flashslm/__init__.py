"""flashslm: design, train, evaluate and deploy latency-optimal hybrid small language models."""

__version__ = "0.1.0"
