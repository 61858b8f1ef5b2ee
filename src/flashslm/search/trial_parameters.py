"""What a trial's design is in Optuna's terms: parameters by which its plots show what matters.

The search proposes designs itself; these parameters describe them. Their distributions are the same in every search,
as Optuna demands of the trials of one study; the sizes are there where the search varies them.
"""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, OPERATOR_SPECS
from flashslm.search.trial import FINALIST, Candidate

OBJECTIVES = ("proxy_loss_nats", "latency_ms")  # both are minimised
RECALL = "recall_accuracy"  # maximised: a third one where recall is measured
ORIGINS = ("seed", "random", "mutation", FINALIST)
_MOST_OPERATORS, _LARGEST_WIDTH, _LARGEST_SIZE = 1024, 65_536, 2**53
_COUNTS = {letter: f"num_{OPERATOR_SPECS[letter].name}" for letter in EXPORTABLE_OPERATORS}

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "width": IntDistribution(1, _LARGEST_WIDTH),
    "num_operators": IntDistribution(1, _MOST_OPERATORS),
    **{name: IntDistribution(0, _MOST_OPERATORS) for name in _COUNTS.values()},
    "first_operator": CategoricalDistribution(tuple(EXPORTABLE_OPERATORS)),
    "origin": CategoricalDistribution(ORIGINS),
    "ffn_ratio": FloatDistribution(0.0, _LARGEST_SIZE),
    "mamba_state": IntDistribution(1, _LARGEST_SIZE),
    "head_dim": IntDistribution(1, _LARGEST_SIZE),
}


def trial_parameters(candidate: Candidate) -> dict[str, int | float | str]:
    """Width, counts of operators, the first one, where the design comes from, and the sizes that are searched."""
    operators = candidate.operators
    return {
        "width": candidate.architecture.hidden_size,
        "num_operators": len(operators),
        **{name: operators.count(letter) for letter, name in _COUNTS.items()},
        "first_operator": operators[0],
        "origin": candidate.mutation if candidate.mutation in ORIGINS else "mutation",
        **candidate.sizes.given(),
    }
