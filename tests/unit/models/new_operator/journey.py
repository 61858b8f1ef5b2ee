"""Take an operator through the project: python journey.py RECIPE LETTER. Run by test_new_operator on a copy of it."""

import sys

import torch

from flashslm.config.file import load
from flashslm.export.names import exported_names
from flashslm.inference.engine import DecodeEngine
from flashslm.models.accounting import operator_parameters, parameters, state_bytes
from flashslm.models.architecture import build_architecture
from flashslm.models.describe import Device, describe
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import OPERATOR_SPECS, export_blockers
from flashslm.profiling.measure import measure_latency_table
from flashslm.profiling.plan import ProfilingPlan
from flashslm.reporting.plots import latency_by_width
from flashslm.search.evolution import Proposer
from flashslm.training.optimizer import build_optimizer
from flashslm.training.weight_norm import mean_weight_norm, project_weights_

torch.manual_seed(0)
RECIPE, LETTER = sys.argv[1:]
LABEL = OPERATOR_SPECS[LETTER].label
VOCABULARY = 64

# The recipe: the search's operators are measured without being listed.
config = load(
    RECIPE, ["search.trials=60", "search.candidates_per_cycle=60", "search.population=4", "profiling.repeats=3"]
)
assert LETTER in config.profiling.operators

# The latency table.
table = measure_latency_table(ProfilingPlan(config.profiling, config.model, VOCABULARY))
entries = [entry for entry in table.entries if entry.operator == LETTER]
assert {entry.width for entry in entries} == set(config.profiling.widths)
assert {entry.context for entry in entries} == set(config.profiling.contexts), "one measurement stands for each context"

# The search.
proposer = Proposer(config.search, config.model, VOCABULARY, table=table, latency=config.latency, budget_ms=1e9, seed=0)
proposed = [candidate for candidate in proposer.propose(0, []) if LETTER in candidate.architecture.operators]
assert proposed and not export_blockers(proposed[0].operators)

# Training, with weight normalisation.
architecture = build_architecture(f"{LETTER}FA{LETTER}F", config.search.widths[0], config.model, VOCABULARY)
model = HybridLM.build(architecture)
assert sum(p.numel() for p in model.parameters()) == parameters(architecture)["total"]
assert operator_parameters(architecture, LETTER) == sum(p.numel() for p in model.layers[0].parameters())
tokens_BT = torch.randint(VOCABULARY, (4, 17))
optimizer = build_optimizer(model, config.training)
losses = []
for _ in range(8):
    loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    project_weights_(model)
    losses.append(loss.item())
assert losses[-1] < losses[0] and abs(mean_weight_norm(model).item() - 1) < 1e-5

# Decoding: the engine's steps are the forward pass.
engine = DecodeEngine(model.eval(), 4, 32)
with torch.no_grad():
    expected_BTV = model.logits(model(tokens_BT))
    engine.prefill(tokens_BT[:, :5])
    states = engine.cache.layers[0]
    assert sum(t[0].numel() for t in states) * 4 == state_bytes(architecture.model_copy(update={"operators": LETTER}))
    for position in range(5, tokens_BT.shape[1]):
        logits_BV = model.decode_step(tokens_BT[:, position], engine.cache)
        torch.testing.assert_close(logits_BV, expected_BTV[:, position], rtol=1e-4, atol=1e-4)

# Export names, the description, the report.
assert exported_names(architecture).keys() == {name for name, _ in model.named_parameters()}
assert describe(architecture, 64, 1, Device("CPU", None), []).parameters[OPERATOR_SPECS[LETTER].name]
figure = latency_by_width(table.model_dump(mode="json"), config.profiling.contexts[0], 1)
assert LABEL in {line.get_label() for line in figure.axes[0].get_lines()}
print("the journey is done")
