"""Decode latency measured with the engine that ships: operator table, whole-model sweep, latency budget."""
