"""How the pipelines make a task of a component: its part of the recipe, retries, caching, what KFP calls it."""

from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

from flashslm.config import section_parameter

RETRIES = 2  # the recipe's platform.retries replaces it at launch


class Steps:
    """Makes tasks that get those of the pipeline's `parameters` that their component declares."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = {section_parameter(name): channel for name, channel in parameters.items()}

    def __call__(self, component: Callable[..., dsl.PipelineTask], label: str, **inputs: Any) -> dsl.PipelineTask:
        """A step may be killed at any time: the retry resumes its work or repeats it. KFP shows it as `label`."""
        declared = component.component_spec.inputs
        shared = {name: channel for name, channel in self._parameters.items() if name in declared}
        task = component(**(shared | inputs)).set_display_name(label)
        return task.set_retry(RETRIES, backoff_duration="5s", backoff_factor=2.0)

    def fresh(self, component: Callable[..., dsl.PipelineTask], label: str, **inputs: Any) -> dsl.PipelineTask:
        """A step that must look, or act, in every run: the registry, the source and the world change between them."""
        return self(component, label, **inputs).set_caching_options(False)
