"""Component merge_data: the pieces of all workers to one data set."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("merge_data"), install_kfp_package=False)
def merge_data(
    code_digest: str,
    pieces: Input[list[Artifact]],
    dataset: Output[Dataset],
):
    from flashslm.steps.component import run_component

    run_component("merge_data", locals(), ("dataset",))
