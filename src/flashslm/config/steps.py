"""What the configuration knows of the pipeline's steps: what each reads, and which want a GPU."""

# Which sections of the recipe a step reads. A step is given these and no others, so a change elsewhere in the recipe
# leaves its cache entry valid.
STEP_SECTIONS: dict[str, tuple[str, ...]] = {
    "prepare_data": ("seed", "data"),
    "profile_latency": ("model", "kernels", "profiling"),
    "fit_scaling_law": ("seed", "model", "kernels", "profiling", "latency", "scaling"),
    "search_architecture": ("seed", "model", "kernels", "profiling", "latency", "scaling", "search"),
    "select_architecture": ("seed", "model", "kernels", "profiling", "latency", "scaling", "search"),
    "pretrain": ("model", "kernels", "training"),
    "compare_weight_norm": ("training",),
    "evaluate": ("seed", "kernels", "training", "evaluation"),
    "export_model": ("kernels", "profiling", "latency", "export"),
    "gate": ("gate",),
    "register_model": ("name", "gate"),
    "report": ("name", "gate"),
}

GPU_STEPS = {"profile_latency", "fit_scaling_law", "search_architecture", "pretrain", "evaluate", "export_model"}
