"""Names of runs in MLflow."""

from dataclasses import replace

import pytest

from flashslm.steps.run_names import step_run_name, trial_run_name
from tests.unit.search.synthetic import make_proposer


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("evaluate", "evaluate"),
        ("prepare_data worker=3", "prepare_data · worker 3"),
        ("pretrain seed=1 weight_norm=on", "pretrain · wnorm on · seed 1"),
        ("fetch text=a b seed=2", "fetch · seed 2 · text a b"),
    ],
)
def test_a_step_is_named_by_what_distinguishes_it(label: str, name: str) -> None:
    assert step_run_name(label) == name


def test_a_trial_is_named_by_its_design() -> None:
    candidate = make_proposer(trials=1).propose([])[0]
    width = candidate.architecture.hidden_size
    assert trial_run_name(candidate) == f"trial {candidate.slot} · {candidate.operators} w{width}"
    again = replace(candidate, mutation="finalist")
    assert trial_run_name(again) == f"finalist {candidate.slot} · {candidate.operators} w{width}"
