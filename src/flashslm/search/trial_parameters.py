"""What a trial's design is in Optuna's terms: parameters by which its plots show what matters.

The search proposes designs itself; these parameters describe them. Their distributions are the same in every search,
as Optuna demands of the trials of one study.
"""

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, OPERATOR_SPECS
from flashslm.search.trial import FINALIST, Candidate

OBJECTIVES = ("proxy_loss_nats", "latency_ms")  # both are minimised
RECALL = "recall_accuracy"  # maximised: a third one where recall is measured
ORIGINS = ("seed", "random", "mutation", FINALIST)
_MOST_OPERATORS, _LARGEST_WIDTH = 1024, 65_536
_COUNTS = {letter: f"num_{OPERATOR_SPECS[letter].name}" for letter in EXPORTABLE_OPERATORS}

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "width": IntDistribution(1, _LARGEST_WIDTH),
    "num_operators": IntDistribution(1, _MOST_OPERATORS),
    **{name: IntDistribution(0, _MOST_OPERATORS) for name in _COUNTS.values()},
    "first_operator": CategoricalDistribution(tuple(EXPORTABLE_OPERATORS)),
    "origin": CategoricalDistribution(ORIGINS),
}


def trial_parameters(candidate: Candidate) -> dict[str, int | str]:
    """Width, counts of operators, the first one, and where the design comes from."""
    operators = candidate.operators
    return {
        "width": candidate.architecture.hidden_size,
        "num_operators": len(operators),
        **{name: operators.count(letter) for letter, name in _COUNTS.items()},
        "first_operator": operators[0],
        "origin": candidate.mutation if candidate.mutation in ORIGINS else "mutation",
    }
