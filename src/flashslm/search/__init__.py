"""Latency-aware architecture search: the space, its mutations, aging evolution and the shared study."""
