"""Component plan_data: the source in pieces, and the tokenizer of all of them."""

from kfp import dsl
from kfp.dsl import Artifact, Output

from components.images import image_of


@dsl.component(base_image=image_of("plan_data"), install_kfp_package=False)
def plan_data(
    seed: int,
    data: dict,
    code_digest: str,
    source_digest: str,
    plan: Output[Artifact],
):
    from flashslm.steps.component import run_component

    run_component("plan_data", locals(), ("plan",))
