"""The platform section: what a step of each kind gets, and mistakes in it."""

from pathlib import Path

import pytest

from flashslm.config import PlatformConfig
from flashslm.config.file import ConfigError, dump, load


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: x\nplatform: {text}\n", encoding="utf-8")
    return path


def test_a_step_has_the_resources_of_its_kind_and_its_own_differences() -> None:
    platform = PlatformConfig.model_validate(
        {"gpu_steps": {"memory": "100Gi"}, "steps": {"pretrain": {"cpu": 64, "gpus": 0, "shared_memory": ""}}}
    )
    pretrain, evaluate, gate = (platform.resources(step) for step in ("pretrain", "evaluate", "gate"))
    assert (pretrain.cpu, pretrain.memory, pretrain.gpus, pretrain.shared_memory) == ("64", "100Gi", 0, "")
    assert (evaluate.cpu, evaluate.memory, evaluate.gpus, evaluate.shared_memory) == ("8", "100Gi", 1, "16Gi")
    assert (gate.cpu, gate.memory, gate.gpus) == ("2", "8Gi", 0)


def test_dump_round_trips(tmp_path: Path) -> None:
    text = "{gpu_types: {h200: {node_selector: {a: b}}}, steps: {pretrain: {gpu_type: h200}}}"
    config = load(write(tmp_path, text))
    assert load(write(tmp_path, dump(config).split("platform:")[1].replace("\n", "\n "))).platform == config.platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{steps: {pretrian: {gpus: 2}}}", "pretrian unknown; allowed: check_recipe, "),
        ("{steps: {pretrain: {gpu_type: h100}}, gpu_types: {h200: {}}}", "h100 not in gpu_types; there are: h200"),
        ("{gpu_steps: {gpu_type: h100}}", "h100 not in gpu_types; there are: none"),
        ("{cpu_steps: {memory: 8GB}}", "platform.cpu_steps.memory: String should match"),
        ("{cpu_steps: {cpu: 0}}", "platform.cpu_steps.cpu: String should match"),
        (
            "{gpu_types: {h200: {nodes: 3}}}",
            "nodes: unknown key; did you mean 'platform.nodes'? allowed here: node_selector, resource, tolerations",
        ),
        (
            "{gpu_types: {h200: {tolerations: [{kee: a}]}}}",
            "kee: unknown key; did you mean 'key'? allowed here: effect, key, operator",
        ),
        (
            "{gpu_types: {h200: {tolerations: [{key: a, value: b}]}}}",
            "value is 'b' and operator 'Exists', which reads none",
        ),
        (
            "{gpu_types: {h200: {tolerations: [{operator: Equal, value: b}]}}}",
            "operator 'Equal' needs a key",
        ),
        ("{namespace: My_Team}", "platform.namespace: String should match"),
        ("{nodes: 0}", "platform.nodes: Input should be greater than or equal to 1"),
        (
            "{config_map: shared, s3_secret: shared}",
            "shared names two volumes of a pod: give each ConfigMap and Secret",
        ),
        ("{hook_secret: shm}", "shm names two volumes of a pod"),
        ("{s3_secret: keys.team}", "platform.s3_secret: String should match"),
        ("{queue: My_Queue}", "platform.queue: String should match"),
        ("{training_runtime: My_Runtime}", "platform.training_runtime: String should match"),
    ],
)
def test_mistakes_say_what_is_allowed(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    assert expected in str(caught.value)
