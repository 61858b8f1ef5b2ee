"""The names under which a person finds the runs of steps and trials in MLflow."""

import re

from flashslm.search.trial import FINALIST, Candidate

_SHORT = {"weight_norm": "wnorm"}
_ORDER = ("weight_norm", "seed")  # other arguments come after these


def step_run_name(label: str) -> str:
    """`pretrain · wnorm on · seed 1` of a task's label, `pretrain seed=1 weight_norm=on`."""
    step, *arguments = re.split(r" (?=\w+=)", label)
    given = dict(argument.split("=", 1) for argument in arguments)
    ordered = sorted(given, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    return " · ".join([step, *(f"{_SHORT.get(name, name)} {given[name]}" for name in ordered)])


def trial_run_name(candidate: Candidate) -> str:
    """`trial 7 · AFFAFAFF w160`, or `finalist 2 · …` of a trial that is trained again."""
    kind = FINALIST if candidate.mutation == FINALIST else "trial"
    return f"{kind} {candidate.slot} · {candidate.label}"
