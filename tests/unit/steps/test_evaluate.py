import pytest
import torch

from flashslm.config import RunConfig
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.steps.evaluate import for_evaluation, precision
from tests.unit.training.tiny import SIZES, VOCAB


@pytest.mark.parametrize(
    ("device", "exported", "expected"),
    [("cpu", "bfloat16", "float32"), ("cuda", "bfloat16", "bfloat16"), ("cuda", "float32", "float32")],
)
def test_precision_is_the_export_s_on_a_gpu(device: str, exported: str, expected: str) -> None:
    recipe = RunConfig.model_validate({"name": "x", "export": {"dtype": exported}})
    assert precision(device, recipe) == expected


def test_an_export_in_bf16_is_evaluated_in_fp32_on_a_cpu() -> None:
    model = HybridLM.build(build_architecture("DFMF", 32, SIZES, VOCAB), dtype=torch.bfloat16)
    values = {name: p.float() for name, p in model.named_parameters()}
    ready = for_evaluation(model.train(), RunConfig(name="x"))
    assert not ready.training
    for name, parameter in ready.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, values[name])
