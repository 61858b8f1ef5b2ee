"""select_architecture: read the finished study: the winner, the whole history, the Pareto front; time the winners."""

from collections.abc import Sequence
from typing import Any

from flashslm.config import SizeChoice, sizes_in_words
from flashslm.models.architecture import build_architecture
from flashslm.search.edges import edges
from flashslm.search.finalists import Finalist, judge_finalists
from flashslm.search.result import SearchResult, pruned_by_step, pruning_in_words, search_result, trained_share
from flashslm.steps.context import StepContext
from flashslm.steps.search_architecture import budget_ms, open_finalists, open_study
from flashslm.steps.winners import measure_winners


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `architecture`: JSON documents architecture, history, pareto, best, edges, finalists and winners."""
    objective = context.config.search.objective
    found = search_result(open_study(context).finished(), budget_ms(context), objective)
    history = found.history
    runs = open_finalists(context).finished() if context.config.search.finalists else []
    finalists = judge_finalists(runs, objective, {trial["slot"]: trial["recall_accuracy"] for trial in history})
    best = chosen_trial(found, finalists)
    pruned = pruned_by_step(history)
    vocab_size = context.manifest("dataset").metadata["vocab_size"]
    sizes = SizeChoice(**best.get("sizes", {}))
    own = sizes.applied_to(context.config.model)
    architecture = build_architecture(best["operators"], best["width"], own, vocab_size)
    files: dict[str, Any] = {
        "architecture.json": architecture.model_dump(mode="json"),
        "history.json": history,
        "pareto.json": found.pareto,
        "best.json": best,
        "edges.json": edges(best, history, context.config.search),
        "finalists.json": [finalist.model_dump(mode="json") for finalist in finalists],
    }
    winners = files["winners.json"] = measure_winners(context, best, found.pareto, budget_ms(context))
    facts = {"operators": architecture.operators, "width": architecture.hidden_size, "digest": architecture.digest}
    context.publish_json("architecture", files, facts)
    with_sizes = f" with {sizes_in_words(sizes.given())}" if sizes.given() else ""
    return {
        "trials": len(history),
        "pruned_trials": sum(pruned.values()),
        "trained_step_share": trained_share(history, context.config.search.steps),
        "distinct_architectures": len({t["digest"] for t in history}),
        "proxy_loss_nats": best["loss_nats"],
        "latency_ms": best["latency_ms"],
        "measured_latency_ms": winners[0]["measured_ms"],
        "worst_winner_error": max(abs(winner["relative_error"]) for winner in winners),
        "summary": f"{architecture.operators} at width {architecture.hidden_size}{with_sizes}: proxy loss "
        f"{best['loss_nats']:.3f} nats, {best['latency_ms']:.4g} ms/token by the table, "
        f"{winners[0]['measured_ms']:.4g} measured{beyond(winners[0]['measured_ms'], budget_ms(context))}; "
        f"{won_against(finalists, len(history))}"
        + "".join(f"; {text}" for text in [*pruning_in_words(pruned), *files["edges.json"]]),
    }


def chosen_trial(found: SearchResult, finalists: Sequence[Finalist]) -> dict[str, Any]:
    """The first finalist's record in the history; the best trial's where no finalist was trained with every seed."""
    if not finalists or finalists[0].validation_loss_nats is None:
        return found.best
    return next(trial for trial in found.history if trial["slot"] == finalists[0].slot)


def beyond(measured_ms: float, limit_ms: float) -> str:
    """The table lets designs into the budget; a whole model may take longer than the table says."""
    return f", beyond the budget of {limit_ms:.4g}" if measured_ms > limit_ms else ""


def won_against(finalists: Sequence[Finalist], trials: int) -> str:
    """What the winner is the best of: a finalist's loss over new seeds counts, not the proxy loss of its trial."""
    if not finalists or finalists[0].test_loss_nats is None:
        return f"the best of {trials} trials"
    seeds = len(finalists[0].test_losses_nats)
    chosen = f"the best of {len(finalists)} finalists with {seeds} new {'seed' if seeds == 1 else 'seeds'}"
    return f"{chosen}, of {trials} trials; test loss {finalists[0].test_loss_nats:.3f} nats"
