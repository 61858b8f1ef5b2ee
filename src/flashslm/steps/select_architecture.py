"""select_architecture: read the finished study: the winner, the whole history, the Pareto front; time the winners."""

from typing import Any

from flashslm.models.architecture import build_architecture
from flashslm.search.result import pruned_by_step, search_result, trained_share
from flashslm.steps.context import StepContext
from flashslm.steps.search_architecture import budget_ms, open_study
from flashslm.steps.winners import measure_winners


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `architecture`: architecture.json, history.json, pareto.json, best.json, winners.json."""
    found = search_result(open_study(context).finished(), budget_ms(context))
    best, history = found.best, found.history
    pruned = pruned_by_step(history)
    vocab_size = context.manifest("dataset").metadata["vocab_size"]
    architecture = build_architecture(best["operators"], best["width"], context.config.model, vocab_size)
    files: dict[str, Any] = {
        "architecture.json": architecture.model_dump(mode="json"),
        "history.json": history,
        "pareto.json": found.pareto,
        "best.json": best,
    }
    winners = files["winners.json"] = measure_winners(context, best, found.pareto, budget_ms(context))
    facts = {"operators": architecture.operators, "width": architecture.hidden_size, "digest": architecture.digest}
    context.publish_json("architecture", files, facts)
    return {
        "trials": len(history),
        "pruned_trials": sum(pruned.values()),
        "trained_step_share": trained_share(history, context.config.search.steps),
        "distinct_architectures": len({t["operators"] for t in history}),
        "proxy_loss_nats": best["loss_nats"],
        "latency_ms": best["latency_ms"],
        "measured_latency_ms": winners[0]["measured_ms"],
        "worst_winner_error": max(abs(winner["relative_error"]) for winner in winners),
        "summary": f"{architecture.operators} at width {architecture.hidden_size}: proxy loss {best['loss_nats']:.3f} "
        f"nats, {best['latency_ms']:.3f} ms/token by the table, {winners[0]['measured_ms']:.3f} measured, best of "
        f"{len(history)} trials" + "".join(f"; {count} pruned after {step} steps" for step, count in pruned.items()),
    }
