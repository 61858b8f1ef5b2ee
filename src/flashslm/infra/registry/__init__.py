"""The model registry: the gate, versions and aliases, the promotion hook."""
