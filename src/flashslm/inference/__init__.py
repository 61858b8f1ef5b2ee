"""Decoding: static caches, sampling on the device, one operator's step for the latency table."""
