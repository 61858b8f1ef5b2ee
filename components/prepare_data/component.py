"""Component prepare_data: text to tokenizer and token shards."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.images import image_of


@dsl.component(base_image=image_of("prepare_data"), install_kfp_package=False)
def prepare_data(
    seed: int,
    data: dict,
    code_digest: str,
    source_digest: str,
    dataset: Output[Dataset],
):
    from flashslm.steps.component import run_component

    run_component("prepare_data", locals(), ("dataset",))
