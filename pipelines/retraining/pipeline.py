"""retraining: train the champion on text it has not seen, and promote the result if it is nowhere worse."""

from kfp import dsl

from components.check_recipe.component import check_recipe
from components.compare_with_champion.component import compare_with_champion
from components.continue_pretraining.component import continue_pretraining
from components.export_model.component import export_model
from components.fetch_champion.component import fetch_champion
from components.gate_challenger.component import gate_challenger
from components.prepare_new_data.component import prepare_new_data
from components.register_model.component import register_model
from components.report_retraining.component import report_retraining
from components.step_task import Steps


@dsl.pipeline(name="retraining", description=__doc__)
def retraining(
    name: str,
    code_digest: str,
    image: str,
    source_digest: str = "",
    seed: int = 0,
    data: dict = {},
    model: dict = {},
    kernels: dict = {},
    profiling: dict = {},
    latency: dict = {},
    scaling: dict = {},
    search: dict = {},
    training: dict = {},
    evaluation: dict = {},
    export: dict = {},
    gate: dict = {},
    retraining: dict = {},
):
    """Sections hold what differs from a recipe's defaults; each step gets only those that its work depends on.

    Of artifacts a step takes the last ones: in their files are the manifests of those that they were made of.
    """
    step = Steps(locals())
    recipe = step(check_recipe, "Check the recipe")
    current = step.fresh(fetch_champion, "Fetch the champion").after(recipe)
    found = step.fresh(prepare_new_data, "Prepare new data", champion=current.outputs["champion"])
    dataset = found.outputs["dataset"]

    with dsl.If(found.outputs["Output"] == "retrain", name="retrain"):
        models = {"deployed": current.outputs["deployed"], "dataset": dataset}
        continued = step(continue_pretraining, "Continue pretraining", **models)
        chosen = continued.outputs["checkpoint"]
        with dsl.If(continued.outputs["Output"] == "trained", name="trained"):
            exported = step(export_model, "Export", chosen=chosen).outputs["exported"]
            comparison = step(compare_with_champion, "Compare with the champion", exported=exported)
            evaluation = comparison.outputs["evaluation"]
            judgement = step.fresh(gate_challenger, "Promote or hold", evaluation=evaluation)
            verdict = judgement.outputs["verdict"]
            with dsl.If(judgement.outputs["Output"] == "promote", name="promote"):
                config_digest = recipe.outputs["config_digest"]
                step.fresh(register_model, "Register the champion", config_digest=config_digest, verdict=verdict)
            step.fresh(report_retraining, "Report", verdict=verdict)
        with dsl.If(continued.outputs["Output"] == "diverged", name="diverged"):
            step.fresh(report_retraining, "Report: training diverged", chosen=chosen)
    with dsl.If(found.outputs["Output"] == "hold", name="nothing-new"):
        step.fresh(report_retraining, "Report: nothing new", dataset=dataset)
