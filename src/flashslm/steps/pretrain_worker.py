"""One process of a training run on several: python -m flashslm.steps.pretrain_worker <key of the TrainSpec> [watched].

torchrun starts it, on one node under the step or on each node of a TrainJob.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from flashslm.infra import outages
from flashslm.infra.mounted_environment import load_mounted_environment
from flashslm.infra.process.collection import end_without_collection
from flashslm.infra.process.parent import die_with_parent
from flashslm.infra.process.private_logs import log_privately
from flashslm.infra.settings import Settings
from flashslm.infra.storage.heartbeat import SILENCE_S, require_heartbeats
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.streamed_tree import StreamedTree
from flashslm.ops import kernels
from flashslm.steps.context import stream_tree
from flashslm.steps.kernel_object import shared_kernels
from flashslm.steps.pretrain import WATCHED, train_in_process
from flashslm.training.distributed import World, any_rank, world_from_environment
from flashslm.training.spec import TrainSpec
from flashslm.training.workers import print_failure, print_metrics, print_outage, print_resumed


def main(key: str, watched: bool) -> None:
    """Train by the spec stored at `key`; rank 0 stores the outcome where the step looks for it.

    Where the step runs on another machine it is to be `watched`: rank 0 listens whether it is still there, and nodes
    fetch and store compiled kernels themselves.
    """
    die_with_parent()
    log_privately()
    load_mounted_environment()
    settings = Settings.from_env()
    store = ObjectStore(settings)
    found = store.get_json(key)
    if found is None:
        raise ValueError(f"there is no TrainSpec at '{key}': the step writes it before it starts workers")
    spec = TrainSpec.model_validate(found[0])
    if spec.kernels:
        kernels.configure(spec.kernels)

    def stream(dataset: Manifest) -> StreamedTree:
        return stream_tree(store, settings, dataset)

    with world_from_environment(settings.patience_s) as world, ExitStack() as apart:
        if watched and world.is_main:
            silence_s = SILENCE_S + settings.patience_s  # the step may wait for a store that is away
            apart.enter_context(require_heartbeats(store, spec.object_key("heartbeat"), silence_s=silence_s))
        if watched:
            apart.enter_context(_kernels_of_nodes(store, world))
        outcome = train_in_process(spec, stream, store, print_metrics, print_resumed)
        if world.is_main:
            store.put_json(spec.object_key("outcome"), outcome.model_dump(mode="json"))


@contextmanager
def _kernels_of_nodes(store: ObjectStore, world: World) -> Iterator[None]:
    """Each node's first worker fetches compiled kernels while all others wait; rank 0 stores what the block has added.

    A step does this for workers on its own machine (`steps/run.py`).
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with shared_kernels(store, stores=world.is_main) if first else nullcontext():
        any_rank(False)  # waits for all ranks
        yield


if __name__ == "__main__":
    end_without_collection()
    with print_failure(), outages.heard_by(print_outage):
        main(sys.argv[1], watched=WATCHED in sys.argv[2:])
