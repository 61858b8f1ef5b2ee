"""Component prepare_new_data: text that the champion has not seen, to token shards."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("prepare_new_data"), install_kfp_package=False)
def prepare_new_data(
    config: str,
    code_digest: str,
    source_digest: str,
    champion: Input[Artifact],
    dataset: Output[Dataset],
) -> str:
    """Read the source; return "retrain", or "hold" where too little is new: the word the pipeline branches on."""
    from flashslm.steps.run import run_step

    result = run_step(
        "prepare_new_data",
        config=config,
        inputs={"champion": champion.path},
        outputs={"dataset": dataset.path},
        parameters={"code_digest": code_digest},
    )
    return result["decision"]
