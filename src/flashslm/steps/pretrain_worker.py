"""One process of a distributed pretraining run: python -m flashslm.steps.pretrain_worker <key of the order>.

torchrun starts it, on one node under the pretrain step or on each node of a TrainJob.
"""

import sys

from flashslm.ops import kernels
from flashslm.platform.object_store import ObjectStore
from flashslm.platform.process import die_with_parent
from flashslm.platform.settings import Settings
from flashslm.steps.context import tree_cache
from flashslm.training.distributed import world_from_environment
from flashslm.training.pretraining import Order, execute
from flashslm.training.workers import failure_told, tell_metrics


def main(key: str) -> None:
    """Carry out the order stored at `key`; rank 0 stores the outcome where the step looks for it."""
    die_with_parent()
    store, cache = ObjectStore(Settings.from_env()), tree_cache()
    found = store.get_json(key)
    if found is None:
        raise ValueError(f"there is no order at '{key}': the pretrain step writes it before it starts workers")
    order = Order.model_validate(found[0])
    kernels.configure(order.kernels)
    with world_from_environment():
        outcome = execute(order, store, lambda tree: store.get_tree(tree, cache / tree.sha256), tell_metrics)
        if outcome:
            store.put_json(order.outcome_key, outcome.model_dump(mode="json"))


if __name__ == "__main__":
    with failure_told():
        main(sys.argv[1])
