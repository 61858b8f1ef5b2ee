"""design_and_train: from text and a device to an evaluated, exported and, if it is better, promoted model."""

from kfp import dsl

from components.check_recipe.component import check_recipe
from components.compare_weight_norm.component import compare_weight_norm
from components.evaluate.component import evaluate
from components.export_model.component import export_model
from components.fit_scaling_law.component import fit_scaling_law
from components.gate.component import gate as gate_component
from components.merge_data.component import merge_data
from components.plan_data.component import plan_data
from components.prepare_data.component import prepare_data
from components.pretrain.component import pretrain
from components.profile_latency.component import profile_latency
from components.register_model.component import register_model
from components.report.component import report
from components.search_architecture.component import search_architecture
from components.select_architecture.component import select_architecture
from components.step_task import Steps


@dsl.pipeline(name="design-and-train", description=__doc__)
def design_and_train(
    name: str,
    code_digest: str,
    image: str,
    source_digest: str = "",
    device_digest: str = "",
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
    workers: list[str] = ["0", "1"],
    data_workers: list[str] = ["0"],
):
    """Sections hold what differs from a recipe's defaults; each step gets only those that its work depends on.

    Of artifacts a step takes the last ones: in their files are the manifests of those that they were made of.
    """
    step = Steps(locals())
    recipe = step(check_recipe, "Check the recipe")
    plan = step(plan_data, "Plan the data").after(recipe).output
    with dsl.ParallelFor(data_workers, name="data-workers") as data_worker:
        preparation = step(prepare_data, "Prepare data", plan=plan, worker=data_worker)
    dataset = step(merge_data, "Merge the data", pieces=dsl.Collected(preparation.output)).output

    profile = step(profile_latency, "Profile latency", dataset=dataset)
    law = step(fit_scaling_law, "Fit the scaling law", latency_table=profile.outputs["latency_table"]).output

    with dsl.ParallelFor(workers, name="search-workers") as worker:
        searching = step(search_architecture, "Search architectures", worker=worker, scaling_law=law)
    done = dsl.Collected(searching.output)
    architecture = step(select_architecture, "Select the architecture", workers=done, scaling_law=law).output

    with dsl.ParallelFor(recipe.outputs["Output"], name="weight-norm-variants") as variant:
        settings = {"weight_norm": variant.weight_norm, "seed": variant.seed}
        pretraining = step(pretrain, "Pretrain", architecture=architecture, **settings)
    checkpoints = dsl.Collected(pretraining.outputs["checkpoint"])
    comparison = step(compare_weight_norm, "Compare weight normalisation", checkpoints=checkpoints)
    chosen = comparison.outputs["chosen"]

    quality = step(evaluate, "Evaluate", chosen=chosen).outputs["evaluation"]
    exported = step(export_model, "Export", chosen=chosen).outputs["exported"]

    judgement = step.fresh(gate_component, "Promote or hold", evaluation=quality, exported=exported)
    verdict = judgement.outputs["verdict"]
    with dsl.If(judgement.outputs["Output"] == "promote", name="promote"):
        config_digest = recipe.outputs["config_digest"]
        step.fresh(register_model, "Register the champion", config_digest=config_digest, verdict=verdict)
    step.fresh(report, "Report", ablation=comparison.outputs["ablation"], verdict=verdict)
