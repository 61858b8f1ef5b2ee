"""One module a pipeline step, each with one function `run(context) -> dict`; no kfp here.

The KFP components and the command line both go through `flashslm.steps.run.run_step`.
"""
