"""Component prepare_new_data: text that the champion has not seen, to token shards."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("prepare_new_data"), install_kfp_package=False)
def prepare_new_data(
    seed: int,
    data: dict,
    retraining: dict,
    code_digest: str,
    source_digest: str,
    champion: Input[Artifact],
    dataset: Output[Dataset],
) -> str:
    from flashslm.steps.component import run_component

    return run_component("prepare_new_data", locals(), ("dataset",))["decision"]
