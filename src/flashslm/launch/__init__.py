"""Launching pipelines: compile, lint, run here or on a cluster. The only room of the package that imports kfp."""
