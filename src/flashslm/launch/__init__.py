"""Launching pipelines: compile, lint, run here or on a cluster. The only part of the package that imports kfp."""
