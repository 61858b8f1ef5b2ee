"""Component check_recipe: every value of the recipe, before any work."""

from typing import Dict, List, NamedTuple

from kfp import dsl

from components.images import image_of


@dsl.component(base_image=image_of("check_recipe"), install_kfp_package=False)
def check_recipe(
    name: str,
    seed: int,
    data: dict,
    model: dict,
    kernels: dict,
    profiling: dict,
    latency: dict,
    scaling: dict,
    search: dict,
    training: dict,
    evaluation_config: dict,
    export: dict,
    gate: dict,
    retraining: dict,
    code_digest: str,
) -> NamedTuple("Checked", [("Output", List[Dict[str, str]]), ("config_digest", str)]):
    from flashslm.steps.component import run_component

    checked = run_component("check_recipe", locals())
    return checked["variants"], checked["config_digest"]
