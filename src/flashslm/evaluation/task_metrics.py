"""What the results of an lm-eval task hold. No imports: reports and model cards read it too."""

ASKED = ("samples", "version", "shots")  # beside the metrics and their standard errors


def is_metric(name: str) -> bool:
    """Whether a key of a task's results is a metric, not its standard error or what was asked."""
    return name not in ASKED and not name.endswith("_stderr")
