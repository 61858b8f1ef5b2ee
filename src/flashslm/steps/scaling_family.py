"""Train the scaling law's family: what is finished is kept in the store, so that a retry trains only the rest."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from flashslm.config import KernelsConfig, digest
from flashslm.hardware import pick_device
from flashslm.infra.process.interrupts import keeping
from flashslm.infra.process.private_logs import log_privately
from flashslm.infra.settings import Settings
from flashslm.infra.storage.errors import ObjectCorrupt
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.ops import kernels
from flashslm.scaling.family import Family, FamilyTraining, Member, TrainedMember, family_of, members
from flashslm.steps.context import StepContext, stream_tree
from flashslm.training.shared_gpu import SharedGpu
from flashslm.training.side_by_side import side_by_side
from flashslm.training.spec import OpenDataset

PREFIX = "scaling/"  # an object for each model that is trained
# Of the scaling section: what decides a model's numbers.
_DECIDES = {
    *("block", "checkpoints", "steps", "batch_size", "sequence_length", "learning_rate"),
    *("validation_tokens", "cuda_graph"),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FamilyWorker:
    """Trains models of one family, in the step's process or in one beside it, and keeps what they came to."""

    training: FamilyTraining
    settings: Settings
    kernels: KernelsConfig
    key: str  # the family's identity

    def kept(self, store: ObjectStore, member: Member) -> TrainedMember | None:
        """What an earlier attempt, or a run with the same family, has trained."""
        try:
            found = store.get_json(self._object(member))
            return TrainedMember.model_validate(found[0]) if found else None
        except (ObjectCorrupt, ValueError) as error:
            _log.warning("%s is damaged and is trained again: %s", self._object(member), error)
            return None

    def train(self, member: Member, store: ObjectStore, open_dataset: OpenDataset) -> TrainedMember:
        """Train a model; raises OutOfMemory if the device has too little without neighbours too."""
        trained = SharedGpu.of(self.training.device).run(partial(self.training.train, member, open_dataset))
        store.put_json(self._object(member), trained.model_dump(mode="json"))
        return trained

    def train_in_own_process(self, member: Member) -> TrainedMember:
        """The same, with the recipe's kernels and a log of warnings: the step's process says the rest once."""
        log_privately()
        kernels.configure(self.kernels)
        store = ObjectStore(self.settings)
        return self.train(member, store, partial(stream_tree, store, self.settings))

    def _object(self, member: Member) -> str:
        return f"{PREFIX}{self.key}/{member.depth}-{member.width}.json"


def trained_family(context: StepContext) -> Family:
    """The family's points, each model reported as it is trained; `scaling.workers` of them are trained side by side."""
    config, worker = context.config.scaling, _worker(context)
    wanted, trained = members(config), dict[Member, TrainedMember]()
    with keeping(lambda: f"stopped after {len(trained)} of {len(wanted)} models, which are kept"):
        for found in _every(context, worker, wanted):
            trained[found.member] = found
            context.events.emit("progress", found.summary, done=len(trained), total=len(wanted))
            context.mlflow_run.set_tags({f"kernel.{name}": form for name, form in found.kernels.items()})
            for name, form in found.kernels.items():
                kernels.note(name, form)
    return family_of(config, trained)


def _every(context: StepContext, worker: FamilyWorker, wanted: list[Member]) -> Iterator[TrainedMember]:
    """Those that are kept, then the others as they end, the deepest and widest first."""
    missing = []
    for member in wanted:
        if kept := worker.kept(context.store, member):
            yield kept
        else:
            missing.append(member)
    workers = context.config.scaling.workers
    if workers == 1:
        yield from (worker.train(member, context.store, context.stream) for member in missing)
    else:
        longest_first = sorted(missing, key=lambda member: member.depth * member.width, reverse=True)
        yield from side_by_side(worker.train_in_own_process, longest_first, workers)


def _worker(context: StepContext) -> FamilyWorker:
    config, dataset = context.config, context.manifest("dataset")
    training = FamilyTraining(
        config=config.scaling,
        sizes=config.model,
        dataset=dataset,
        seed=config.seed,
        device=pick_device(config.profiling.training_device),
        threads=config.profiling.threads,
    )
    work = config.scaling.model_dump(mode="json", include=_DECIDES) | {
        "model": config.model.model_dump(mode="json"),
        "kernels": config.kernels.model_dump(mode="json"),
        "dataset": dataset.sha256,
        "seed": config.seed,
        "device": training.device,
        "threads": training.threads,
        "code": context.parameters.get("code_digest", ""),
    }
    return FamilyWorker(training, context.settings, config.kernels, digest(work)[:32])
