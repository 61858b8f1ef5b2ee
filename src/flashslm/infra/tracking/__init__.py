"""MLflow: one run per step, and what waits on disk while MLflow is away."""
