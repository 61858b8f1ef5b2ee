"""MLflow's logged model of a registered version: among the experiment's models, with what was measured of it."""

import logging
import re
import time
from typing import Any

from flashslm.infra.storage.object_store import Manifest
from flashslm.infra.tracking.mlflow_client import MlflowError, MlflowUnavailable, TrackingClient

_NOT_IN_NAMES = r"[/:.%\"']"
_log = logging.getLogger(__name__)


def log_model(client: TrackingClient, name: str, manifest: Manifest, run_id: str, facts: dict[str, Any]) -> str | None:
    """Log a stored tree as a model that the run put out; numbers of `facts` are metrics, other values parameters.

    The weights stay where they are: `mlflow.pyfunc` loads the registered version. Returns the model's id, or None
    where MLflow refuses (a run that is gone, a server before MLflow 3). Raises MlflowUnavailable.
    """
    from mlflow import entities

    numbers = {key: float(value) for key, value in facts.items() if isinstance(value, int | float)}
    texts = {key: str(value) for key, value in facts.items() if key not in numbers and value is not None}
    try:
        experiment, tags = client.get_run(run_id).info.experiment_id, {"source": manifest.uri}
        model = client.create_logged_model(experiment, re.sub(_NOT_IN_NAMES, "-", name), run_id, tags, texts)
        now_ms, model_id = int(time.time() * 1000), str(model.model_id)
        metrics = [entities.Metric(key, n, now_ms, 0, model_id=model_id, run_id=run_id) for key, n in numbers.items()]
        client.log_batch(run_id, metrics=metrics)
        client.log_outputs(run_id, [entities.LoggedModelOutput(model_id, 0)])
        client.finalize_logged_model(model_id, "READY")
    except MlflowUnavailable:
        raise
    except MlflowError as error:
        _log.warning("'%s' is registered without a logged model: %s", name, error)
        return None
    return model_id
