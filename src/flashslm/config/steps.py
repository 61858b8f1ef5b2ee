"""What the configuration knows of the pipeline's steps: what each reads, and which want a GPU."""

# Which sections of the recipe a step reads. A step is given these and no others, so a change elsewhere in the recipe
# leaves its cache entry valid.
EVERY_SECTION = (
    "name",
    "seed",
    "data",
    "model",
    "kernels",
    "profiling",
    "latency",
    "scaling",
    "search",
    "training",
    "evaluation",
    "export",
    "gate",
    "retraining",
)
DESIGN_STEPS: dict[str, tuple[str, ...]] = {
    "check_recipe": EVERY_SECTION,
    "plan_data": ("seed", "data"),
    "prepare_data": ("seed", "data"),
    "merge_data": ("data",),
    "profile_latency": ("model", "kernels", "profiling", "latency"),
    "fit_scaling_law": ("seed", "model", "kernels", "profiling", "latency", "scaling"),
    "search_architecture": ("seed", "model", "kernels", "profiling", "latency", "scaling", "search"),
    "select_architecture": ("seed", "model", "kernels", "profiling", "latency", "scaling", "search"),
    "pretrain": ("model", "kernels", "training"),
    "compare_weight_norm": ("training",),
    "evaluate": ("seed", "kernels", "profiling", "training", "evaluation", "export"),
    "export_model": ("kernels", "profiling", "latency", "export"),
    "gate": ("gate",),
    "register_model": ("name", "gate"),
    "report": ("name", "gate"),
}

# `retraining` has these besides check_recipe, export_model and register_model.
RETRAINING_STEPS: dict[str, tuple[str, ...]] = {
    "fetch_champion": ("training", "evaluation", "latency", "gate"),
    "prepare_new_data": ("seed", "data", "training", "evaluation", "retraining"),
    "continue_pretraining": ("seed", "kernels", "training", "retraining"),
    "compare_with_champion": ("seed", "kernels", "training", "evaluation", "export", "retraining"),
    "gate_challenger": ("gate",),
    "report_retraining": ("name",),
}
STEP_SECTIONS = DESIGN_STEPS | RETRAINING_STEPS

# Which artifacts a step reads. In a pipeline it takes the last ones, and finds the others in their files.
STEP_INPUTS: dict[str, tuple[str, ...]] = {
    "check_recipe": (),
    "plan_data": (),
    "prepare_data": ("plan",),
    "merge_data": ("plan", "pieces"),
    "profile_latency": ("dataset",),
    "fit_scaling_law": ("dataset", "latency_table"),
    "search_architecture": ("dataset", "latency_table", "scaling_law"),
    "select_architecture": ("dataset", "latency_table", "scaling_law"),
    "pretrain": ("dataset", "architecture"),
    "compare_weight_norm": ("checkpoints",),
    "evaluate": ("dataset", "chosen"),
    "export_model": ("dataset", "chosen", "latency_table"),
    "gate": ("evaluation", "exported"),
    "register_model": ("dataset", "evaluation", "exported", "verdict"),
    "report": (
        *("dataset", "latency_table", "scaling_law", "architecture", "ablation", "chosen"),
        *("evaluation", "exported", "verdict"),
    ),
    "fetch_champion": (),
    "prepare_new_data": ("champion",),
    "continue_pretraining": ("champion", "deployed", "dataset"),
    "compare_with_champion": ("champion", "deployed", "exported", "dataset"),
    "gate_challenger": ("champion", "evaluation", "exported"),
    "report_retraining": ("champion", "dataset", "chosen", "exported", "evaluation", "verdict"),
}

# These train together on `platform.nodes`.
MULTI_NODE_STEPS = {"pretrain", "continue_pretraining"}

# These measure latencies, on `profiling.device`.
MEASURING_STEPS = {"profile_latency", "select_architecture", "export_model"}

# These train proxies, on `profiling.proxy_device`.
PROXY_STEPS = {"fit_scaling_law", "search_architecture"}

GPU_STEPS = {
    "profile_latency",
    "fit_scaling_law",
    "search_architecture",
    "select_architecture",
    "pretrain",
    "evaluate",
    "export_model",
    "continue_pretraining",
    "compare_with_champion",
}


def section_parameter(section: str) -> str:
    """The component's parameter that holds a section of the recipe: of its name, unless an artifact has that."""
    return "evaluation_config" if section == "evaluation" else section
