"""retraining: train the champion on text it has not seen, and promote the result if it is nowhere worse."""

from collections.abc import Callable

from kfp import dsl

from components.compare_with_champion.component import compare_with_champion
from components.continue_pretraining.component import continue_pretraining
from components.export_model.component import export_model
from components.fetch_champion.component import fetch_champion
from components.gate_challenger.component import gate_challenger
from components.prepare_new_data.component import prepare_new_data
from components.register_model.component import register_model
from components.report_retraining.component import report_retraining

RETRIES = 2  # the recipe's platform.retries replaces it at launch


def step(component: Callable[..., dsl.PipelineTask], **inputs: object) -> dsl.PipelineTask:
    """A step may be killed at any time: the retry resumes its work or repeats it."""
    return component(**inputs).set_retry(RETRIES, backoff_duration="5s", backoff_factor=2.0)


def fresh(component: Callable[..., dsl.PipelineTask], **inputs: object) -> dsl.PipelineTask:
    """A step that must look, or act, in every run: the registry, the source and the world change between them."""
    return step(component, **inputs).set_caching_options(False)


@dsl.pipeline(name="retraining", description=__doc__)
def retraining(  # noqa: PLR0913 - one configuration a step: a change leaves the other steps' cache entries valid
    fetch_champion_config: str,
    prepare_new_data_config: str,
    continue_pretraining_config: str,
    export_model_config: str,
    compare_with_champion_config: str,
    gate_challenger_config: str,
    register_model_config: str,
    report_retraining_config: str,
    code_digest: str,
    config_digest: str,
    image: str,
    source_digest: str,
):
    code = {"code_digest": code_digest}
    current = fresh(fetch_champion, config=fetch_champion_config, **code)
    champion, deployed = current.outputs["champion"], current.outputs["deployed"]
    found = fresh(
        prepare_new_data, config=prepare_new_data_config, champion=champion, source_digest=source_digest, **code
    )
    dataset = found.outputs["dataset"]
    known = {"champion": champion, "dataset": dataset, **code}

    with dsl.If(found.outputs["Output"] == "retrain", name="retrain"):
        models = {"deployed": deployed}
        training = step(continue_pretraining, config=continue_pretraining_config, **models, **known)
        chosen = training.outputs["checkpoint"]
        with dsl.If(training.outputs["Output"] == "trained", name="trained"):
            exporting = step(export_model, config=export_model_config, dataset=dataset, chosen=chosen, **code)
            models["exported"] = exporting.outputs["exported"]
            comparison = step(compare_with_champion, config=compare_with_champion_config, **models, **known)
            candidate = {"exported": models["exported"], "evaluation": comparison.outputs["evaluation"]}
            judgement = fresh(gate_challenger, config=gate_challenger_config, champion=champion, **candidate, **code)
            candidate["verdict"] = judgement.outputs["verdict"]
            with dsl.If(judgement.outputs["Output"] == "promote", name="promote"):
                origin = {"dataset": dataset, "config_digest": config_digest, "image": image, **code}
                fresh(register_model, config=register_model_config, **origin, **candidate)
            fresh(report_retraining, config=report_retraining_config, chosen=chosen, **candidate, **known)
        with dsl.If(training.outputs["Output"] == "diverged", name="diverged"):
            fresh(report_retraining, config=report_retraining_config, chosen=chosen, **known)
    with dsl.If(found.outputs["Output"] == "hold", name="nothing-new"):
        fresh(report_retraining, config=report_retraining_config, **known)
