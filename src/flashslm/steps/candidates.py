"""Short training of the search's candidates: each in its own nested MLflow run, beside other workers of the GPU."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from flashslm.config import SearchConfig
from flashslm.data.shards import SplitReader
from flashslm.evaluation.perplexity import Reading, evaluate_perplexity, sample_documents
from flashslm.hardware import pick_device, pick_dtype
from flashslm.infra.tracking.mlflow_runs import end_lost
from flashslm.models.hybrid import HybridLM
from flashslm.search.evolution import Proposer
from flashslm.search.finalists import Finalists, JudgedOutcome
from flashslm.search.halving import CandidatePruned, Halving
from flashslm.search.recall_score import RecalledOutcome, RecallScore, RecallTest
from flashslm.search.study import SearchStudy
from flashslm.search.trial import Candidate, FinishedTrial, TrialFailed
from flashslm.steps.context import StepContext
from flashslm.steps.run_names import trial_run_name
from flashslm.training.new_model import new_model
from flashslm.training.proxy import proxy_training
from flashslm.training.runtime import reproducible
from flashslm.training.shared_gpu import OutOfMemory, SharedGpu
from flashslm.training.spec import (
    VALIDATION_LOSS,
    FromArchitecture,
    NonFiniteLoss,
    OnMetrics,
    TrainOutcome,
    TrainSpec,
)
from flashslm.training.trainer import train


class CandidateTrainer:
    """Called with a candidate; raises TrialFailed, or CandidatePruned where recall or successive halving ends it."""

    def __init__(self, context: StepContext, study: SearchStudy, section: SearchConfig) -> None:
        self.context, self.study, self.section = context, study, section
        self.device = pick_device(context.config.profiling.training_device)
        self.training = proxy_training(section, context.config.profiling.threads, decay=True)
        self.halving, self.gpu = Halving(section), SharedGpu.of(self.device)

    def __call__(self, candidate: Candidate) -> TrainOutcome:
        name = trial_run_name(candidate)
        end_lost(self.context.settings, name, self.study.lost_workers(candidate.slot))
        try:
            ended = self.gpu.run(partial(self._train, candidate, name))
        except (NonFiniteLoss, OutOfMemory) as error:
            raise TrialFailed(str(error)) from error
        if isinstance(ended, CandidatePruned):
            raise ended
        return ended

    def seed_of(self, candidate: Candidate) -> int:
        """Of weights and data order: the same for all trials."""
        return self.context.config.seed

    def known(self, candidate: Candidate) -> Sequence[FinishedTrial]:
        """The earlier trials that the candidate is compared with at each budget."""
        return ()

    def recall(self, candidate: Candidate, log: OnMetrics) -> RecallScore | None:
        """The candidate's recall, if it is measured; raises CandidatePruned where that rejects it."""
        return None

    def judged(self, model: HybridLM, outcome: TrainOutcome) -> TrainOutcome:
        """The outcome, with what the trained model is measured on besides."""
        return outcome

    def _train(self, candidate: Candidate, name: str) -> TrainOutcome | CandidatePruned:
        seed, output_init = self.seed_of(candidate), self.context.config.model.output_init
        start = FromArchitecture(architecture=candidate.architecture, output_init=output_init)
        spec = TrainSpec(
            start=start,
            dataset=self.context.manifest("dataset"),
            training=self.training,
            weight_norm=False,  # as in the paper's search
            seed=seed,
            validate_at=self.halving.budgets,
        )
        with self.context.mlflow_run.nested(name, params=_parameters(candidate) | {"seed": seed}) as run:
            try:
                recall = self.recall(candidate, run.log_row)
                model = new_model(start, self.device, seed, init_on_device=True)
                on_metrics = self._pruning(candidate, recall, run.log_row)
                outcome = train(spec, model, self.context.stream, on_metrics=on_metrics)
            except CandidatePruned as pruned:
                run.set_tags({"pruned_at_step": str(pruned.step)})
                return pruned.with_traceback(None)  # its frames hold the model and, on a GPU, its memory
            outcome = self.judged(model, outcome)
            if recall is not None:
                outcome = RecalledOutcome(**(dict(outcome) | recall.attributes()))
            final = {"proxy_loss_nats": outcome.validation_loss_nats, "latency_ms": candidate.latency_ms}
            final |= outcome.model_dump(include={"test_loss_nats"})
            run.log_metrics(final, step=self.section.steps)
        return outcome

    def _pruning(self, candidate: Candidate, recall: RecallScore | None, log: OnMetrics) -> OnMetrics:
        """Log each row, and raise CandidatePruned at a budget beyond which the candidate is not trained."""
        earlier = self.known(candidate)
        losses_nats: dict[int, float] = {}

        def on_metrics(step: int, values: dict[str, float]) -> None:
            log(step, values)
            if step in self.halving.budgets:
                losses_nats[step] = values[VALIDATION_LOSS]
                if self.halving.ends(earlier, losses_nats):
                    raise CandidatePruned(losses_nats, recall.attributes() if recall else None)

        return on_metrics


def _parameters(candidate: Candidate) -> dict[str, Any]:
    """Of the candidate's run in MLflow, where each searched size is a parameter by itself."""
    return {name: value for name, value in candidate.attributes().items() if name != "sizes"} | candidate.sizes.given()


class TrialTrainer(CandidateTrainer):
    """Of the search itself."""

    def __init__(self, context: StepContext, study: SearchStudy, proposer: Proposer) -> None:
        super().__init__(context, study, context.config.search)
        self.proposer = proposer
        threads, seed = context.config.profiling.threads, context.config.seed
        self.recall_test = RecallTest(self.section.recall_steps, self.section.recall_length, self.device, threads, seed)

    def known(self, candidate: Candidate) -> Sequence[FinishedTrial]:
        return self.proposer.known(candidate.slot, self.study.finished())

    def recall(self, candidate: Candidate, log: OnMetrics) -> RecallScore | None:
        if not self.section.recall_steps:
            return None
        score = self.recall_test.score(candidate.notation)
        log(0, score.by_task | {"recall_accuracy": score.accuracy})
        if score.accuracy < self.section.recall_min_accuracy:
            raise CandidatePruned({}, score.attributes())
        return score


class FinalistTrainer(CandidateTrainer):
    """Of the best trials, with several seeds and to the end."""

    def __init__(self, context: StepContext, study: SearchStudy, finalists: Finalists) -> None:
        search = context.config.search
        longer = {"steps": search.finalist_steps or search.steps, "halving_from_steps": 0}
        super().__init__(context, study, search.model_copy(update=longer))
        self.finalists = finalists

    def seed_of(self, candidate: Candidate) -> int:
        return self.finalists.seed_of(candidate)

    def judged(self, model: HybridLM, outcome: TrainOutcome) -> TrainOutcome:
        """With the loss on the test split, of which as many tokens are read as of the validation split."""
        dtype, seed = pick_dtype("auto", self.device), self.context.config.seed
        dataset, section = self.context.stream(self.context.manifest("dataset")), self.section
        documents = sample_documents(SplitReader(dataset, "test"), section.validation_tokens, seed)
        reading = Reading(section.sequence_length, section.sequence_length, section.batch_size)
        deterministic = self.training.is_deterministic(torch.device(self.device).type)
        with reproducible(seed, self.training.threads, deterministic=deterministic):
            _, found = evaluate_perplexity(model.cast(getattr(torch, dtype)).eval(), documents, reading)
        return JudgedOutcome(**dict(outcome), test_loss_nats=found["loss_nats"].mean)
