"""design_and_train: from text and a device to an evaluated, exported and, if it is better, promoted model."""

from kfp import dsl

from components.check_recipe.component import check_recipe
from components.compare_weight_norm.component import compare_weight_norm
from components.evaluate.component import evaluate
from components.export_model.component import export_model
from components.fit_scaling_law.component import fit_scaling_law
from components.gate.component import gate as gate_component
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
):
    """Sections hold what differs from a recipe's defaults; each step gets only those that its work depends on."""
    step = Steps(locals())
    recipe = step(check_recipe, "Check the recipe")
    preparation = step(prepare_data, "Prepare data").after(recipe)
    inputs = {"dataset": preparation.outputs["dataset"]}
    profile = step(profile_latency, "Profile latency", **inputs)
    latency_table = profile.outputs["latency_table"]
    known = inputs | {"latency_table": latency_table}
    known["scaling_law"] = step(fit_scaling_law, "Fit the scaling law", **known).outputs["scaling_law"]

    with dsl.ParallelFor(workers, name="search-workers") as worker:
        searching = step(search_architecture, "Search architectures", worker=worker, **known)
    done = dsl.Collected(searching.output)
    architecture = step(select_architecture, "Select the architecture", workers=done, **known).output

    with dsl.ParallelFor(recipe.outputs["Output"], name="weight-norm-variants") as variant:
        settings = {"weight_norm": variant.weight_norm, "seed": variant.seed}
        pretraining = step(pretrain, "Pretrain", architecture=architecture, **settings, **inputs)
    checkpoints = dsl.Collected(pretraining.outputs["checkpoint"])
    comparison = step(compare_weight_norm, "Compare weight normalisation", checkpoints=checkpoints)
    chosen = comparison.outputs["chosen"]

    inputs |= {"chosen": chosen}
    quality = step(evaluate, "Evaluate", **inputs).outputs["evaluation"]
    exported = step(export_model, "Export", latency_table=latency_table, **inputs).outputs["exported"]

    candidate = {"evaluation": quality, "exported": exported}
    judgement = step.fresh(gate_component, "Promote or hold", **candidate)
    candidate["verdict"] = judgement.outputs["verdict"]
    with dsl.If(judgement.outputs["Output"] == "promote", name="promote"):
        origin = {"dataset": inputs["dataset"], "config_digest": recipe.outputs["config_digest"]}
        step.fresh(register_model, "Register the champion", **origin, **candidate)
    results = known | candidate | {"architecture": architecture, "chosen": chosen}
    step.fresh(report, "Report", ablation=comparison.outputs["ablation"], **results)
