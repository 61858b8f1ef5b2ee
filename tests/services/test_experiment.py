"""An experiment's runs in a real MLflow."""

from pathlib import Path

import pytest

from flashslm.experiments.experiment import Experiment
from flashslm.infra.settings import Settings
from flashslm.infra.tracking.mlflow_client import TrackingClient
from tests.unit.experiments.tiny import recipe

pytestmark = pytest.mark.services


def test_every_cell_is_a_run_of_one_experiment(platform_env: Settings, tmp_path: Path) -> None:
    record = Experiment(recipe(training={"seeds": [0]}), tmp_path, settings=platform_env, say=lambda _: None).run()
    tracked = platform_env.model_copy(update={"experiment": "tiny"})
    client = TrackingClient(tracked)
    runs = {run.data.params["cfg.model"]: run for run in client.find_runs("attributes.status = 'FINISHED'")}
    assert runs.keys() == {"attention", "deltanet"}
    for cell in record["cells"]:
        run = runs[cell["model"]]
        assert run.data.metrics["perplexity"] == pytest.approx(cell["metrics"]["perplexity"])
        assert run.data.params["cfg.seed"] == "0" and "validation/loss_nats" in run.data.metrics
