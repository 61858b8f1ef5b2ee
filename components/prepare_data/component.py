"""Component prepare_data: text to tokenizer and token shards."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.images import image_of


@dsl.component(base_image=image_of("prepare_data"), install_kfp_package=False)
def prepare_data(config: str, code_digest: str, source_digest: str, dataset: Output[Dataset]):
    """Read the source, train or load the tokenizer, write token shards; a changed `source_digest` is a cache miss."""
    from flashslm.steps.run import run_step

    run_step(
        "prepare_data",
        config=config,
        outputs={"dataset": dataset.path},
        parameters={"code_digest": code_digest},
    )
