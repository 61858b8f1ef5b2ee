"""design_and_train: from text and a device to an evaluated, exported and, if it is better, promoted model."""

from collections.abc import Callable

from kfp import dsl

from components.compare_weight_norm.component import compare_weight_norm
from components.evaluate.component import evaluate
from components.export_model.component import export_model
from components.fit_scaling_law.component import fit_scaling_law
from components.gate.component import gate
from components.prepare_data.component import prepare_data
from components.pretrain.component import pretrain
from components.profile_latency.component import profile_latency
from components.register_model.component import register_model
from components.report.component import report
from components.search_architecture.component import search_architecture
from components.select_architecture.component import select_architecture

RETRIES = 2  # the recipe's platform.retries replaces it at launch


def step(component: Callable[..., dsl.PipelineTask], **inputs: object) -> dsl.PipelineTask:
    """A step may be killed at any time: the retry resumes its work or repeats it."""
    return component(**inputs).set_retry(RETRIES, backoff_duration="5s", backoff_factor=2.0)


def side_effect(component: Callable[..., dsl.PipelineTask], **inputs: object) -> dsl.PipelineTask:
    """A step that must act in every run."""
    return step(component, **inputs).set_caching_options(False)


@dsl.pipeline(name="design-and-train", description=__doc__)
def design_and_train(  # noqa: PLR0913 - one configuration a step: a change leaves the other steps' cache entries valid
    prepare_data_config: str,
    profile_latency_config: str,
    fit_scaling_law_config: str,
    search_architecture_config: str,
    select_architecture_config: str,
    pretrain_config: str,
    compare_weight_norm_config: str,
    evaluate_config: str,
    export_model_config: str,
    gate_config: str,
    register_model_config: str,
    report_config: str,
    code_digest: str,
    config_digest: str,
    image: str,
    source_digest: str,
    device_digest: str,
    workers: list[str],
    variants: list[dict],
):
    code = {"code_digest": code_digest}
    dataset = step(prepare_data, config=prepare_data_config, source_digest=source_digest, **code).outputs["dataset"]
    measured_on = {"device_digest": device_digest, **code}
    profile = step(profile_latency, config=profile_latency_config, dataset=dataset, **measured_on)
    known = {"dataset": dataset, "latency_table": profile.outputs["latency_table"], **code}
    known["scaling_law"] = step(fit_scaling_law, config=fit_scaling_law_config, **known).outputs["scaling_law"]

    with dsl.ParallelFor(workers, name="search-workers") as worker:
        search = step(search_architecture, config=search_architecture_config, worker=worker, **known)
    done = dsl.Collected(search.output)
    architecture = step(select_architecture, config=select_architecture_config, workers=done, **known).output

    inputs = {"dataset": dataset, **code}
    with dsl.ParallelFor(variants, name="weight-norm-variants") as variant:
        settings = {"config": pretrain_config, "weight_norm": variant.weight_norm, "seed": variant.seed}
        training = step(pretrain, architecture=architecture, **settings, **inputs)
    checkpoints = dsl.Collected(training.outputs["checkpoint"])
    comparison = step(compare_weight_norm, config=compare_weight_norm_config, checkpoints=checkpoints, **inputs)
    chosen = comparison.outputs["chosen"]

    inputs |= {"chosen": chosen}
    evaluation = step(evaluate, config=evaluate_config, **inputs).outputs["evaluation"]
    latency_table = known["latency_table"]
    exported = step(export_model, config=export_model_config, latency_table=latency_table, **inputs).outputs["exported"]

    candidate = {"evaluation": evaluation, "exported": exported, **code}
    judgement = side_effect(gate, config=gate_config, chosen=chosen, latency_table=latency_table, **candidate)
    candidate["verdict"] = judgement.outputs["verdict"]
    with dsl.If(judgement.outputs["Output"] == "promote", name="promote"):
        origin = {"dataset": dataset, "config_digest": config_digest, "image": image}
        side_effect(register_model, config=register_model_config, **origin, **candidate)
    results = known | candidate | {"architecture": architecture, "chosen": chosen}
    side_effect(report, config=report_config, ablation=comparison.outputs["ablation"], **results)
