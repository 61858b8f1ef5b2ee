"""search_architecture: one worker of the shared study."""

import json
from typing import Any

from flashslm.config import SizeChoice, digest, sizes_in_words
from flashslm.infra.events import Events
from flashslm.infra.process.interrupts import keeping
from flashslm.models.architecture import (
    Architecture,
    InfeasibleArchitecture,
    build_architecture,
    parse_operators,
    repeat_block,
)
from flashslm.search.evolution import Proposer
from flashslm.search.finalists import Finalists
from flashslm.search.fit import WidthFitter
from flashslm.search.halving import CandidatePruned
from flashslm.search.space import SearchSpace
from flashslm.search.study import SearchStudy
from flashslm.search.trial import Candidate, FinishedTrial, TrialFailed
from flashslm.search.worker import Train, run_worker
from flashslm.steps.candidates import FinalistTrainer, TrialTrainer
from flashslm.steps.context import StepContext
from flashslm.steps.latency_tables import read_latency_table
from flashslm.training.spec import TrainOutcome

FINALISTS = "finalists of "  # begins the name of their study; the search's follows
_OF_FINALISTS = ("finalists", "finalist_seeds", "finalist_steps")


def run(context: StepContext) -> dict[str, Any]:
    """Work on the study until every trial is finished; any number of workers may do so at once."""
    study = open_study(context)
    proposer = make_proposer(context)
    count = {"done": len(study.finished()), "total": context.config.search.trials}

    def on_trial(candidate: Candidate, outcome: TrainOutcome) -> None:
        count["done"] = len(study.finished())
        text = f"{_trial_text(candidate)}: loss {outcome.validation_loss_nats:.3f}"
        context.events.emit("progress", text, **count)

    train = saying_what_ended(context.events, TrialTrainer(context, study, proposer))
    with keeping(lambda: f"stopped after {count['done']} of {count['total']} trials, which are in the study"):
        summary = run_worker(study, proposer, train, on_trial)
        retrained = _retrain_finalists(context, study.finished()) if context.config.search.finalists else 0
    return {
        "trained_trials": summary.trained,
        "pruned_trials": summary.pruned,
        "retrained_finalists": retrained,
        "waited_s": summary.waited_s,
        "worker": study.name,
        "summary": f"{summary.trained + summary.pruned} trials by this worker, {summary.completed} in the study"
        + (f"; {retrained} trainings of finalists" if retrained else ""),
    }


def saying_what_ended(events: Events, train: Train) -> Train:
    """`train`, of which a candidate that was pruned or failed is progress too."""

    def saying(candidate: Candidate) -> TrainOutcome:
        try:
            return train(candidate)
        except (CandidatePruned, TrialFailed) as ended:
            events.emit("progress", f"{_trial_text(candidate)}: {ended}")
            raise

    return saying


def _trial_text(candidate: Candidate) -> str:
    sizes = sizes_in_words(candidate.sizes.given())
    design = f"trial {candidate.slot}: {candidate.operators} at width {candidate.architecture.hidden_size}"
    return f"{design}{f' with {sizes}' if sizes else ''}, {candidate.latency_ms:.4g} ms"


def _retrain_finalists(context: StepContext, trials: list[FinishedTrial]) -> int:
    """Work on the second study, with the other workers; returns how many trainings this worker did."""
    config, vocab_size = context.config, context.manifest("dataset").metadata["vocab_size"]

    def build(trial: FinishedTrial) -> Architecture:
        sizes = SizeChoice(**trial.sizes).applied_to(config.model)
        return build_architecture(trial.operators, trial.width, sizes, vocab_size)

    study = open_finalists(context)
    finalists = Finalists(config.search, config.seed, trials, budget_ms(context), build)

    def on_finalist(candidate: Candidate, outcome: TrainOutcome) -> None:
        text = f"finalist {candidate.operators}, seed {finalists.seed_of(candidate)}: "
        context.events.emit("progress", f"{text}loss {outcome.validation_loss_nats:.3f}")

    return run_worker(study, finalists, FinalistTrainer(context, study, finalists), on_finalist).trained


def open_study(context: StepContext) -> SearchStudy:
    """The study is named by the work: same configuration, inputs and code = same study."""
    return _open(context, study_name(context), with_recall=context.config.search.recall_steps > 0)


def open_finalists(context: StepContext) -> SearchStudy:
    """That of the finalists: other finalists of the same search make another one."""
    search = context.config.search
    again = {name: getattr(search, name) for name in _OF_FINALISTS}
    return _open(context, f"{FINALISTS}{study_name(context)} ({digest(again)[:16]})")


def _open(context: StepContext, name: str, *, with_recall: bool = False) -> SearchStudy:
    if not context.settings.study_url:
        raise ValueError("FLASHSLM_STUDY_URL is not set: give an Optuna storage such as sqlite:///study.db")
    settings = context.settings
    return SearchStudy.open(settings.study_url, name, with_recall=with_recall, patience_s=settings.patience_s)


def study_name(context: StepContext) -> str:
    """The study's identity: all that decides what is proposed and which loss it gets. It is the same in every worker
    and in select_architecture; the number of workers is not part of it, so a search continues with more or fewer, and
    neither are finalists. Optuna's dashboard lists studies by it.
    """
    sections = json.loads(context.config.for_step("search_architecture"))
    for name in ("workers", *_OF_FINALISTS):
        del sections["search"][name]
    del sections["scaling"]["workers"]
    inputs = {name: context.manifest(name).sha256 for name in ("dataset", "latency_table", "scaling_law")}
    work = {"config": sections, "inputs": inputs, "code": context.parameters["code_digest"]}
    search = context.config.search
    widths = f"{min(search.widths)} to {max(search.widths)}"
    return f"search: {search.trials} trials, width {widths} ({digest(work)[:16]})"


def budget_ms(context: StepContext) -> float:
    """The latency budget the scaling law's choice was made under."""
    return float(context.manifest("scaling_law").metadata["budget_ms"])


def make_proposer(context: StepContext) -> Proposer:
    """The pure function from finished trials to the next candidates; the law's choice is one of the seed designs."""
    config = context.config
    fitter = WidthFitter(
        table=read_latency_table(context),
        latency=config.latency,
        budget_ms=budget_ms(context),
        widths=config.search.widths,
        sizes=config.model,
        vocab_size=context.manifest("dataset").metadata["vocab_size"],
    )
    return Proposer(config.search, fitter, config.seed, law_designs(context))


def law_designs(context: StepContext) -> tuple[str, ...]:
    """The scaling law's choice as a seed design: whole blocks, then what is left of one; none if it does not fit."""
    config = context.config
    block = parse_operators(config.scaling.block)
    operators = repeat_block(block, context.manifest("scaling_law").metadata["depth"])
    whole, rest = divmod(len(operators), len(block))
    notation = " | ".join([f"({block})x{whole}"] * (whole > 0) + [block[:rest]] * (rest > 0))
    try:
        SearchSpace(config.search.max_operators, config.search.max_mixer_types).parse(notation)
    except InfeasibleArchitecture as error:
        context.events.emit("progress", f"the scaling law's choice is not a seed design: {error}")
        return ()
    return (notation,)
